"""What a checkpoint of a run holds, checked whole before any of it is used: the file may come from anywhere."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, ValidationError
from torch import Tensor

from featherweight.budget.costs import Spent
from featherweight.network import generators
from featherweight.recipe.schema import Recipe
from featherweight.run.report import Row
from featherweight.training.schedule import Training

MOST_EDITS = 10_000


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)


def _all(kind: type, keys: type = str) -> AfterValidator:
    """Every value is of a kind. By hand: pydantic would make a record of each that is not."""

    def check(given: dict[Any, Any]) -> dict[Any, Any]:
        if not all(type(key) is keys for key in given) or not all(isinstance(value, kind) for value in given.values()):
            raise ValueError(f"its entries must be of {keys.__name__} to {kind.__name__}")
        return given

    return AfterValidator(check)


def _drawn(given: Any) -> Any:
    if wrong := generators.problem(given):
        raise ValueError(f"no states of random generators: {wrong}")
    return given


def _edit(given: dict[Any, Any]) -> dict[Any, Any]:
    if not isinstance(given.get("edit"), str):
        raise ValueError("an edit must name its kind")
    return given


Named = Annotated[dict[Any, Any], _all(object)]
State = Annotated[dict[Any, Any], _all(Tensor)]
Random = Annotated[dict[Any, Any], AfterValidator(_drawn)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class SavedSnapshot(_Plain):
    edits: Annotated[list[Annotated[dict[Any, Any], AfterValidator(_edit)]], FailFast(), Field(max_length=MOST_EDITS)]
    state: State


class SavedResult(_Plain):
    network: Count
    rows: Annotated[list[Named], FailFast()]
    loss: float


class SavedUnfinished(_Plain):
    phase: Literal["train", "retrain"]
    steps: Count
    snapshot: SavedSnapshot
    optimizer: Named
    guide: Named | None
    residuals: Annotated[dict[Any, Any], _all(float)]
    seconds: Annotated[Finite, Field(ge=0)]
    random: Random
    began: Random
    losses: Annotated[list[Finite], FailFast()]
    spent: Named | None
    heads: Annotated[dict[Any, Any], _all(dict)]
    course: Annotated[list[tuple[Finite, Finite | None]], FailFast()] = []


class Saved(_Plain):
    """`RunState.to_dict`, as it lies in a file."""

    featherweight: Annotated[str, Field(max_length=100)]
    fingerprint: Annotated[dict[Any, Any], _all(dict)]
    recipe: Named
    stage: Count
    newest: Count
    epochs: Count
    random: Random
    pool: Annotated[list[SavedResult], FailFast(), Field(min_length=1, max_length=1000)]
    results: Annotated[list[SavedResult], FailFast(), Field(max_length=1000)]
    baseline: Count
    unfinished: SavedUnfinished | None


def shape_problem(saved: Any) -> str:
    """Which field is missing, unknown, or not of its type; "" if none is."""
    return _problem(Saved, saved)


def network_problem(saved: Any) -> str:
    """The same of the file of a finished network."""
    return _problem(SavedSnapshot, saved)


def _problem(kind: type[BaseModel], saved: Any) -> str:
    try:
        kind.model_validate(saved)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        return f"{'.'.join(str(part)[:60] for part in first['loc'][:6]) or 'the whole'}: {first['msg'][:300]}"
    return ""


def problem(saved: dict[str, Any], recipe: Recipe) -> str:
    """What cannot be of a run of `recipe`, whose fields are of their types; "" if nothing is."""
    stages, work, stage = recipe.stages, saved["unfinished"], saved["stage"]
    pool, results = saved["pool"], saved["results"]
    # A stage that has begun is one of the recipe's, and the rows of a network are those of the stages behind it.
    checks = [
        (stage < len(stages) or (stage == len(stages) and not work and not results), f"stage {stage} of {len(stages)}"),
        (saved["newest"] < len(pool) <= recipe.candidates, f"network {saved['newest']} of {len(pool)}"),
        (len(results) <= recipe.candidates, f"{len(results)} results of a stage, more than candidates"),
        (saved["epochs"] == sum(done.epochs for done in stages[:stage]), f"{saved['epochs']} epochs after {stage} stages"),
        (all(len(one["rows"]) <= stage for one in pool), "more rows than stages"),
        (all(len(one["rows"]) <= stage + 1 for one in results), "more rows than stages"),
        (not any(math.isnan(one["loss"]) for one in [*pool, *results]), "a loss that is no number"),
    ]
    if work and stage < len(stages):
        phases = {"train": stages[stage].train, "retrain": getattr(stages[stage], "retrain", Training(0))}
        batches = saved["fingerprint"].get("task", {}).get("batches of epoch 0")
        most = phases[work["phase"]].epochs * batches if isinstance(batches, int) else math.inf
        checks.append(
            (work["steps"] <= most and len(work["losses"]) <= work["steps"], f"{work['steps']} steps of at most {most}")
        )
        checks.append((not work["heads"] or getattr(stages[stage], "auxiliary", False), "heads of a stage that has none"))
    failed = [said for holds, said in checks if not holds]
    if failed:
        return failed[0]
    try:
        for row in {id(row): row for one in [*pool, *results] for row in one["rows"]}.values():
            Row.from_dict(row)
        if work and work["spent"]:
            Spent.from_dict(work["spent"])
    except (ValidationError, ValueError, TypeError, RecursionError) as error:
        return f"a row of the report or a budget is none: {str(error)[:200]}"
    return ""
