"""`plan --devices`: what each of several devices needs for a step, and whether it has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from featherweight.budget import amounts
from featherweight.cli import console, inputs
from featherweight.errors import InputError
from featherweight.recipe.schema import Constrain, Recipe
from featherweight.run.capacity import Counted, Needs, count

SIZE = 8  # of a set that a plan has still to size: what is held beside a weight does not hang on it


def counted(model: str, data: str | None, shapes: Sequence[str], seed: int, recipe: Recipe | None) -> Counted:
    """A step of MODEL, built without values, under the first driver of `recipe`. Raises InputError."""
    task, _ = inputs.work(data, shapes, seed)
    stages = [stage for stage in recipe.stages if isinstance(stage, Constrain) and stage.driver] if recipe else []
    if recipe is not None and not stages:
        raise InputError("no stage of this recipe drives weights towards sets: it takes what its training takes")
    more: dict[str, Any] = {} if data is None else {"optimizer": task.optimizer}
    for stage in stages[:1]:
        kind = stage.rules[0].set
        more |= {"kind": kind if kind.complete() else kind.sized(SIZE), "driver": stage.driver}
    return count(lambda: inputs.network(model), task.example_inputs, **more)


def bytes_of(text: str | None) -> int | None:
    """`80GB` in bytes. Raises InputError."""
    if text is None:
        return None
    told = amounts.parts(text)
    if told is None or told[1] not in amounts.BYTES or told[0] <= 0:
        raise InputError(f"--memory {text!r}: give what a device has, such as 80GB")
    return int(told[0] * amounts.BYTES[told[1]])


def found(step: Counted, devices: int, memory: int | None) -> dict[str, Any]:
    """As plain data. Raises InputError for less than one device."""
    if devices < 1:
        raise InputError(f"--devices is at least 1, given {devices}")
    both = {name: step.on(devices, sharded) for name, sharded in (("in shards", True), ("whole on each", False))}
    made = {name: asdict(needs) | {"bytes": needs.bytes} for name, needs in both.items()}
    fits = {} if memory is None else {"memory": memory, "fewest devices": step.least(memory)}
    return {"counted": asdict(step), **made, **fits}


def show(step: Counted, devices: int, memory: int | None) -> None:
    """Print it."""
    told = found(step, devices, memory)
    both: list[Needs] = [step.on(devices, True), step.on(devices, False)]
    screen = console.output()
    unit, name = (1e9, "GB") if both[1].bytes >= 1e9 else (1e6, "MB")

    def told_in(size: float | None) -> str:
        return "-" if size is None else f"{size / unit:,.3g}"

    parts = {**both[0].parts, **both[1].parts}
    rows = [(part, *(told_in(needs.parts.get(part)) for needs in both)) for part in parts]
    rows.append(("all", *(told_in(needs.bytes) for needs in both)))
    screen.print(console.table((f"{name} on each of {devices}", "in shards (FSDP2)", "whole on each"), rows))
    sent = {**both[0].sent, **both[1].sent}
    if sent:
        rows = [(part, *(told_in(needs.sent.get(part)) for needs in both)) for part in sent]
        screen.print(console.table((f"{name} that each sends a step", "in shards (FSDP2)", "whole on each"), rows))
    lines = [f"{step.parameters:,} parameters, {step.targets:,} of them driven; {both[0].flops:.3g} operations a step"]
    if memory is not None:
        verdict = [
            f"{how} it {'fits' if needs.bytes <= memory else 'does not fit'}"
            for how, needs in zip(("in shards", "whole on each"), both, strict=True)
        ]
        least = told["fewest devices"]
        fewest = (
            f"by doubling, {least} device{'s hold' if least > 1 else ' holds'} it in shards"
            if least
            else "no number of devices holds it"
        )
        lines.append(f"{told_in(memory)} {name} a device: {', '.join(verdict)}; {fewest}")
    lines.append("counted without values: buffers of the communication, and what an allocator loses, come on top")
    for line in lines:
        screen.print(console.written(line))
