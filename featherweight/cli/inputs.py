"""What the command line is given as text: networks, tasks and recipes, built-in by name or from the user's own files."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from featherweight.cli import console, usercode
from featherweight.errors import ArtifactError, FeatherweightError, InputError, RecipeError, did_you_mean, short, shortened
from featherweight.files import storage, tensors
from featherweight.network.calls import Inputs
from featherweight.network.devices import CPU, placed
from featherweight.network.evaluating import evaluating
from featherweight.recipe import notation, reading, schema
from featherweight.recipe.schema import Recipe
from featherweight.recipes import FILES, RECIPES
from featherweight.task import Task
from featherweight.zoo import arrays, imagefolder, own_data, sequences, sources, texts
from featherweight.zoo.networks import NETWORKS
from featherweight.zoo.tasks import TASKS

BUILT_IN_DATA = (*TASKS, *sequences.NAMES)  # what an artifact may name, and a command finds by itself

LARGEST_SETTING = 10**9  # of a whole number that a built-in recipe is made from
DTYPES = {str(t).removeprefix("torch."): t for t in (torch.float32, torch.float64, torch.float16, torch.bfloat16)}
DTYPES |= {str(t).removeprefix("torch."): t for t in (torch.int64, torch.int32, torch.bool)}
MOST_NUMBERS = 2**30  # of one input
UNDER = ("state_dict", "model", "model_state_dict", "network")  # where a checkpoint may hold the state
WRAPPERS = ("module.", "_orig_mod.", "model.")


# --- networks and tasks --------------------------------------------------------------------------------------------------


def network(text: str, weights: Path | None = None) -> nn.Module:
    """A built-in network, one of an installed library's, or what `file.py:function` returns when called; with the state in
    `weights`. Raises InputError, and what `sources.network` raises."""
    file, name = usercode.split(text)
    if file is None and sources.is_source(text):
        model: Any = sources.network(text)
    elif file is None:
        if text not in NETWORKS:
            raise InputError(_unknown("network", text, (*NETWORKS, *sources.FORMS), "def network() -> nn.Module"))
        model = NETWORKS[text]()
    else:
        model = usercode.called(text, usercode.named(text, file, name))
        if not isinstance(model, nn.Module):
            raise InputError(f"{text} must return a torch.nn.Module, it gave {type(model).__name__}")
    if weights is not None:
        _load(model, weights, text)
    return model


def task(text: str, seed: int, device: torch.device = CPU, model: str = "", network: nn.Module | None = None) -> Task:
    """A built-in task, the user's own data by a path, or the Task that `file.py:name` is, or gives for `seed`; its example on
    `device`, where built-in ones put their batches too. `model`: what the network was given as, whose library may say how it
    takes pictures and texts. Raises InputError, DataError."""
    file, name = usercode.split(text)
    if file is None and own_data.is_own(text):
        return _own_task(own_data.given(text, seed, device), model, network)
    if file is None:
        if text.startswith(sequences.PREFIX):
            return sequences.task(text.removeprefix(sequences.PREFIX), seed, device=device)
        if text not in TASKS:
            raise InputError(_unknown("data set", text, (*BUILT_IN_DATA, *own_data.FORMS), "a Task, or def task(seed) -> Task"))
        return TASKS[text](seed, device=device)
    found = usercode.named(text, file, name)
    if not isinstance(found, Task):
        found = usercode.called(text, found, seed)
    if not isinstance(found, Task):
        raise InputError(f"{text} must be a featherweight.Task or a function from a seed to one, it gave {type(found).__name__}")
    return dataclasses.replace(found, example_inputs=placed(found.example_inputs, device))


def _own_task(given: own_data.Given, model: str, network: nn.Module | None) -> Task:
    if given.form == "imagefolder":
        return imagefolder.task(given, own_data.pictures(model, network, given.settings))
    if given.form == "npz":
        return arrays.task(given, network)
    if network is None:
        raise InputError(f"{given.form}: holds texts, and no network is given whose tokenizer reads them")
    return texts.task(given, model, network)


def work(
    data: str | None,
    inputs: Sequence[str],
    seed: int,
    device: torch.device = CPU,
    model: str = "",
    network: nn.Module | None = None,
) -> tuple[Task, str]:
    """The task of a command on `device` and what to call it: of `--data`, or an example alone, of the shapes of `--input` or such
    as the library of `model` says that it takes."""
    if data is not None and inputs:
        raise InputError("give --data, or --input for the shape alone, not both")
    if data is not None:
        return task(data, seed, device, model, network), data
    if inputs:
        return shapes(inputs, device), f"--input {' '.join(inputs)}"
    if sources.is_source(model) and network is not None:
        return _looked_at(placed(sources.example(model, network), device)), f"inputs of {model}"
    raise InputError(f"give --data, one of {', '.join((*BUILT_IN_DATA, *own_data.FORMS))}, or file.py:task")


def shapes(texts: Sequence[str], device: torch.device = CPU) -> Task:
    """The task of a network that is only looked at: an example of each `1x3x224x224` or `1x16:int64`, by name where it is
    `tokens=1x16:int64`, and no data.

    Floating-point inputs hold random numbers, so that every path through the network carries some; others zeros, which are valid
    as class numbers and tokens. Raises InputError.
    """

    args: list[Tensor] = []
    kwargs: dict[str, Tensor] = {}
    for number, text in enumerate(texts):
        name, equals, shape = text.rpartition("=")
        if not equals:
            args.append(_input(text, number))
        elif not name.isidentifier() or name in kwargs:
            raise InputError(f"--input {short(text)}: before = stands the name of one input, once, such as tokens=1x16:int64")
        else:
            kwargs[name] = _input(shape, number)
    example = placed(Inputs(tuple(args), kwargs) if kwargs else tuple(args), device)
    return _looked_at(example)


def _looked_at(example: Any) -> Task:
    """The task of a network that is only looked at."""

    def without_data(*arguments: Any) -> NoReturn:
        raise InputError("the shape of an input is known and no data: give --data, such as imagefolder:PATH or file.py:task")

    return Task(example, without_data, without_data, without_data, without_data)


def _input(text: str, number: int) -> Tensor:
    sizes, _, kind = text.partition(":")
    if not re.fullmatch(r"[1-9]\d{0,9}(x[1-9]\d{0,9})*", sizes):
        raise InputError(f"--input {text!r}: give the sizes of one input, batch first, such as 1x3x224x224 or 1x16:int64")
    if kind and kind not in DTYPES:
        near = did_you_mean(kind, DTYPES)
        raise InputError(f"--input {text!r}: no type is named {kind!r}.{near} There are: {', '.join(DTYPES)}")
    shape, dtype = [int(size) for size in sizes.split("x")], DTYPES[kind or "float32"]
    if math.prod(shape) > MOST_NUMBERS:
        raise InputError(f"--input {text!r} has {math.prod(shape):,} numbers, more than the {MOST_NUMBERS:,} that one may have")
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype)
    return torch.randn(shape, generator=torch.Generator().manual_seed(number)).to(dtype)


def check_fit(model: nn.Module, work: Task, model_text: str, data_text: str) -> None:
    """Run the network on the task's example once. Raises InputError where they are not made for each other."""
    inputs = Inputs.of(work.example_inputs)
    if not inputs.tensors():
        raise InputError(
            f"the example of {data_text} holds no tensor: give the network's inputs as a tuple by position or as a dict by name"
        )
    try:
        with evaluating(model), torch.no_grad():
            inputs.call(model)
    except FeatherweightError:
        raise
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
        raise InputError(
            f"the network {model_text} does not take the example of {data_text} ({inputs}): {reason}{usercode.place(error)}"
        ) from error


def _load(model: nn.Module, path: Path, text: str) -> None:
    """Load the state in a file; every name and shape must agree, once a wrapper's prefix before all names is off."""
    expected = model.state_dict()
    state = _unwrapped(_weights(path, expected), expected, path)
    missing, foreign = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    mistakes = [f"{name} is missing.{did_you_mean(name, state)}" for name in missing[:8]]
    mistakes += [f"{shortened(name)} is not in the network.{did_you_mean(name, expected)}" for name in foreign[:8]]
    mistakes += [
        f"{name} has shape {tuple(state[name].shape)}, the network's has {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & state.keys())
        if state[name].shape != expected[name].shape
    ]
    if mistakes:
        shown = sorted(mistakes)[:8]
        count = len(mistakes) + len(missing[8:]) + len(foreign[8:])
        more = [f"and {count - len(shown)} more"] if count > len(shown) else []
        raise InputError("\n  - ".join([f"{path} does not hold the weights of {text}:", *shown, *more]))
    model.load_state_dict(state)


def _weights(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict in a .safetensors file, or in a .pt or .pth one, alone or under "state_dict" or "model"; no code is run."""
    if not path.exists():
        raise InputError(f"there is no file of weights {path}")
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise InputError(
            f"weights are read from .safetensors, .pt and .pth files, given {path}: "
            "safetensors.torch.save_file(network.state_dict(), 'weights.safetensors') makes one"
        )
    try:
        if path.suffix == ".safetensors":
            with storage.opened(path, follow=True) as file:
                return tensors.load_safetensors(file)
        size = sum(tensor.numel() * max(tensor.element_size(), 4) for tensor in expected.values())
        # The bound leaves room for the states of an optimizer and an average beside the network's, in double precision.
        held = tensors.load(path, 2**26 + 16 * size, 1000 + 16 * len(expected), follow=True)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
    except tensors.Damaged as error:
        raise ArtifactError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from None
    for key in ("", *UNDER):
        found = held if not key else held.get(key) if isinstance(held, dict) else None
        if isinstance(found, dict) and found and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()):
            if key:
                console.note(f"note: {path} is a checkpoint: the weights are those under {key!r}")
            return found
    raise ArtifactError(f"{path} holds no state dict, neither alone nor under {', '.join(map(repr, UNDER))}: {tensors.WAY_OUT}")


def _unwrapped(state: dict[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Without what a wrapper (DataParallel, torch.compile, Lightning) puts before every name."""
    for prefix in WRAPPERS:
        if state and all(name.startswith(prefix) for name in state) and not any(name.startswith(prefix) for name in expected):
            console.note(f"note: every name in {path} begins with {prefix!r}, which is left off")
            return _unwrapped({name.removeprefix(prefix): tensor for name, tensor in state.items()}, expected, path)
    return state


def _unknown(kind: str, text: str, known: Collection[str], signature: str) -> str:
    own = f"For your own give file.py:name ({signature})."
    return f"no {kind} is named {text!r}.{did_you_mean(text, known)} There are: {', '.join(known)}. {own}"


# --- recipes -------------------------------------------------------------------------------------------------------------


def recipe(text: str, settings: Sequence[str] = ()) -> Recipe:
    """A built-in recipe with `key=value` arguments, or a file's with `dotted.path=value` changes. Raises RecipeError."""
    mistakes = [f"--set {setting}: give key=value" for setting in settings if "=" not in setting]
    changes = [(key.strip(), value.strip()) for key, _, value in (setting.partition("=") for setting in settings)]
    if mistakes:
        raise RecipeError(mistakes, "settings")
    if text in RECIPES:
        return _built(text, changes)
    if text not in FILES and Path(text).suffix not in (".json", ".yaml", ".yml"):
        allowed = f"There are: {', '.join(RECIPES)}, {', '.join(FILES)}. For your own give a .yaml or .json file."
        raise InputError(f"no recipe is named {text!r}.{did_you_mean(text, (*RECIPES, *FILES))} {allowed}")
    read = reading.read(FILES.get(text, Path(text)))
    if not changes:
        return read
    data = read.to_dict()
    mistakes = [mistake for key, value in changes if (mistake := _assign(data, key, value))]
    if mistakes:
        raise RecipeError(mistakes, "settings")
    return reading.from_dict(data)


def parameters(name: str) -> list[tuple[str, str, str]]:
    """(name, type, default) of each parameter of a built-in recipe, as text."""
    function, hints = RECIPES[name], typing.get_type_hints(RECIPES[name])
    return [
        (key, _type_name(hints[key]), _shown(parameter.default))
        for key, parameter in inspect.signature(function).parameters.items()
    ]


def as_file(name: str, built: Recipe) -> str:
    """A built-in recipe as YAML that can be saved as a file: its paper and its parameters as comments above."""
    rows = parameters(name)
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = [f"{name}, {built.source}", *(inspect.getdoc(RECIPES[name]) or "").splitlines(), "", "Parameters, for --set:"]
    lines += [f"  {key.ljust(widths[0])}  {kind.ljust(widths[1])}  {default}" for key, kind, default in rows]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines) + reading.to_yaml(built)


def head_of(path: Path) -> tuple[str, str]:
    """(paper, first sentence) of the comments above a recipe that comes with the package."""
    name, said = (line.removeprefix("# ").strip() for line in path.read_text().splitlines()[:2])
    return name.partition(", ")[2], said


def first_sentence(text: str | None) -> str:
    """Of a docstring: all of it, however many lines it takes."""
    paragraph = " ".join((text or "").strip().partition("\n\n")[0].split())
    return re.split(r"(?<=[a-z0-9)]\.) (?=[A-Z])", paragraph, maxsplit=1)[0]


def _built(name: str, changes: Sequence[tuple[str, str]]) -> Recipe:
    function: Callable[..., Recipe] = RECIPES[name]
    hints = typing.get_type_hints(function)
    known = inspect.signature(function).parameters
    arguments: dict[str, Any] = {}
    mistakes = []
    for key, value in changes:
        if key == "ratios" and "keep" in known:  # of version 0.0, until 0.2
            key, value = "keep", ",".join(f"{part.strip()}x" for part in value.strip("()[] ").split(",") if part.strip())
        if key not in known:
            near = did_you_mean(key[:80], known)
            mistakes.append(f"--set {short(key)}: {name} has no such parameter.{near} There are: {', '.join(known)}")
            continue
        try:
            arguments[key] = TypeAdapter(hints[key]).validate_python(_parts(value, hints[key]))
            if isinstance(arguments[key], int) and abs(arguments[key]) > LARGEST_SETTING:
                mistakes.append(f"--set {key}: {short(arguments[key])} is beyond {LARGEST_SETTING:,}")
        except ValidationError as error:
            mistakes += [f"--set {key}={short(value)}: {item['msg']}" for item in error.errors()[:5]]
    try:
        built = function(**arguments)
    except InputError as error:
        if not mistakes:
            raise
        mistakes += error.mistakes if isinstance(error, RecipeError) else [str(error)]
    except ArithmeticError as error:
        raise InputError(f"{name} cannot be built from {', '.join(f'{k}={v}' for k, v in changes)}: {error}") from error
    if mistakes:
        raise RecipeError(mistakes, "settings")
    return built


def _parts(value: str, hint: Any) -> Any:
    """The text in the shape that `hint` wants: split at commas for a tuple, None for an optional; pydantic does the rest."""
    if typing.get_origin(hint) in (tuple, list):
        return [part.strip() for part in value.strip("()[] ").split(",") if part.strip()]
    if type(None) in typing.get_args(hint) and value.lower() in ("none", "null", ""):
        return None
    hints = (hint, *typing.get_args(hint))
    return schema.share(value) if float in hints and str not in hints else value  # with str, the recipe reads the unit itself


def _assign(data: Any, path: str, value: str) -> str | None:
    """Set `stages.1.keep` and the like in a recipe's data; what is wrong with the path, if anything."""
    *parents, last = path.split(".")
    if len(parents) > notation.DEEPEST:
        return f"--set {short(path)}: a recipe is nested no deeper than {notation.DEEPEST}"
    place, walked = data, "the recipe"
    for part in [*parents, None]:  # the last round checks that `last` can be set where the path has led
        key = last if part is None else part
        if isinstance(place, list):
            if not key.isdecimal() or len(key) > 9 or int(key) >= len(place):
                return f"--set {short(path)}: {walked} has the entries 0 to {len(place) - 1}, not {short(key)}"
        elif not isinstance(place, dict):
            return f"--set {short(path)}: {walked} is {_shown(place)} and has no {short(key)}"
        elif place and key not in place:
            near = did_you_mean(key[:80], place)
            return f"--set {short(path)}: {walked} has no {short(key)}.{near} It has: {', '.join(place)}"
        index = int(key) if isinstance(place, list) else key
        if part is None:
            try:
                place[index] = notation.from_yaml(value)
            except InputError:
                place[index] = value  # such as the name pattern *.weight, which YAML takes for an alias
            return None
        if isinstance(place, dict) and place.get(index) is None:
            place[index] = {}  # an optional part, such as `distill`, that the recipe leaves out
        place, walked = place[index], part if walked == "the recipe" else f"{walked}.{part}"
    return None


def _type_name(hint: Any) -> str:
    if isinstance(hint, type) and not typing.get_args(hint):
        return "none" if hint is type(None) else hint.__name__
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(str(choice) for choice in inner)
    if origin in (tuple, list):
        return f"{_type_name(inner[0])}, .."
    if origin in (typing.Union, UnionType):
        return " or ".join(_type_name(choice) for choice in inner)
    return str(hint)


def _shown(value: Any) -> str:
    """A value as `--set` would take it."""
    if isinstance(value, tuple | list):
        return ",".join(map(_shown, value))
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
