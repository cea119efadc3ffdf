"""Recipes read from plain data and files, with every mistake named at once, and written as YAML."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from featherweight.errors import RecipeError, did_you_mean, short
from featherweight.recipe import notation
from featherweight.recipe.schema import ADAPTER, KINDS, AnyDriver, AnySet, Layerwise, Recipe, Rule, fields_of
from featherweight.recipe.units import Adaptive, Blocks, Units
from featherweight.training.schedule import Distillation, Training
from featherweight.weights.views import View

MOST_MISTAKES = 50  # that are listed
LONGEST_SHOWN = 80  # characters of a name in a message


def from_dict(data: Any) -> Recipe:
    """A recipe from plain data. Raises RecipeError with every mistake at once."""
    try:
        return ADAPTER.validate_python(data)
    except ValidationError as error:
        found = error.errors(include_url=False)
        more = [f"and {len(found) - MOST_MISTAKES} more"] if len(found) > MOST_MISTAKES else []
        raise RecipeError([*map(_mistake, found[:MOST_MISTAKES]), *more]) from None


def read(path: str | Path) -> Recipe:
    """A recipe from a .json, .yaml or .yml file. Raises InputError."""
    return from_dict(notation.read(Path(path)))


def to_yaml(recipe: Recipe) -> str:
    """The recipe as YAML text that `read` takes back."""
    return yaml.safe_dump(recipe.to_dict(), sort_keys=False)


def _vocabulary() -> set[str]:
    weights = [kind for any_of in (AnySet, AnyDriver) for kind in get_args(get_args(any_of)[0])]
    described = (Recipe, *KINDS.values(), Units, Blocks, Adaptive, Layerwise, Rule, Training, Distillation, View, *weights)
    return {field.name for kind in described for field in dataclasses.fields(kind)}


def _mistake(item: Any) -> str:
    """One pydantic error as `where: what was given, what is allowed`."""
    loc = [part for i, part in enumerate(item["loc"]) if not (part in KINDS and i and isinstance(item["loc"][i - 1], int))]
    where = ".".join(str(part)[:LONGEST_SHOWN] for part in loc) or "recipe"
    given = item["input"]
    if item["type"] == "unexpected_keyword_argument":
        key = str(item["loc"][-1])
        if kinds := [kind for kind in KINDS if key in fields_of(kind)]:
            return f"{where}: only a stage of kind {' or '.join(kinds)} has {key!r}"
        return f"{where}: there is no key {short(key)}.{did_you_mean(key[:LONGEST_SHOWN], _vocabulary())}"
    if item["type"] == "value_error":
        return f"{where}: {str(item['ctx']['error'])[:1000]}"
    if item["type"] in ("missing", "missing_argument"):
        return f"{where}: is required"
    shown = f" (given {short(given)})" if not isinstance(given, dict | list) else ""
    return f"{where}: {item['msg'][:300]}{shown}"
