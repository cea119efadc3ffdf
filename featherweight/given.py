"""What the command line is given as text: networks, tasks and recipes, built-in by name or from the user's own files."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import inspect
import sys
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any

import torch
import yaml
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from featherweight import recipe as recipes_as_data
from featherweight.devices import CPU, placed
from featherweight.errors import ArtifactError, DataError, InputError, RecipeError, did_you_mean
from featherweight.modes import evaluating
from featherweight.recipe import Recipe
from featherweight.recipes import RECIPES
from featherweight.tasks import TASKS
from featherweight.training import Task
from featherweight.zoo import NETWORKS

FRAMES_SHOWN = 4  # of a traceback through the user's file


# --- networks and tasks --------------------------------------------------------------------------------------------------


def network(text: str, weights: Path | None = None) -> nn.Module:
    """A built-in network, or what `file.py:function` returns when called; with the state in `weights`. Raises InputError."""
    file, name = _split(text)
    if file is None:
        if text not in NETWORKS:
            raise InputError(_unknown("network", text, NETWORKS, "def network() -> nn.Module"))
        model: Any = NETWORKS[text]()
    else:
        model = _called(text, file, _named(text, file, name))
        if not isinstance(model, nn.Module):
            raise InputError(f"{text} must return a torch.nn.Module, it gave {type(model).__name__}")
    if weights is not None:
        _load(model, weights, text)
    return model


def task(text: str, seed: int, device: torch.device = CPU) -> Task:
    """A built-in task, or the Task that `file.py:name` is, or gives for `seed`; its example on `device`, where built-in ones put
    their batches too. Raises InputError, DataError."""
    file, name = _split(text)
    if file is None:
        if text not in TASKS:
            raise InputError(_unknown("data set", text, TASKS, "a Task, or def task(seed) -> Task"))
        return TASKS[text](seed, device=device)
    found = _named(text, file, name)
    if not isinstance(found, Task):
        found = _called(text, file, found, seed)
    if not isinstance(found, Task):
        raise InputError(f"{text} must be a featherweight.Task or a function from a seed to one, it gave {type(found).__name__}")
    return dataclasses.replace(found, example=placed(found.example, device))


def check_fit(model: nn.Module, work: Task, model_text: str, data_text: str) -> None:
    """Run the network on the task's example once. Raises InputError where they are not made for each other."""
    try:
        with evaluating(model), torch.no_grad():
            model(*work.example)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in work.example)
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"the network {model_text} does not take the example of {data_text}, of shape {shapes}: {reason}"
        ) from error


def _load(model: nn.Module, path: Path, text: str) -> None:
    """Load the state of a .safetensors file; every name and shape must agree."""
    if not path.is_file():
        raise InputError(f"there is no file of weights {path}")
    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read as safetensors: {error}") from None
    expected = model.state_dict()
    mistakes = [f"{name} is missing.{did_you_mean(name, state)}" for name in expected.keys() - state.keys()]
    mistakes += [f"{name} is not in the network.{did_you_mean(name, expected)}" for name in state.keys() - expected.keys()]
    mistakes += [
        f"{name} has shape {tuple(state[name].shape)}, the network's has {tuple(expected[name].shape)}"
        for name in expected.keys() & state.keys()
        if state[name].shape != expected[name].shape
    ]
    if mistakes:
        shown = sorted(mistakes)[:8]
        more = [f"and {len(mistakes) - len(shown)} more"] if len(mistakes) > len(shown) else []
        raise InputError("\n  - ".join([f"{path} does not hold the weights of {text}:", *shown, *more]))
    model.load_state_dict(state)


def _unknown(kind: str, text: str, known: Mapping[str, Any], signature: str) -> str:
    own = f"For your own give file.py:name ({signature})."
    return f"no {kind} is named {text!r}.{did_you_mean(text, known)} There are: {', '.join(known)}. {own}"


# --- the user's files ----------------------------------------------------------------------------------------------------


def _split(text: str) -> tuple[Path | None, str]:
    """(file, name) of `file.py:name`; (None, "") for a built-in name."""
    file, colon, name = text.rpartition(":")
    if text.endswith(".py"):
        raise InputError(f"{text} is a file: say what to take from it, {text}:name")
    return (Path(file), name) if colon and file.endswith(".py") else (None, "")


def _named(text: str, file: Path, name: str) -> Any:
    if not file.is_file():
        raise InputError(f"there is no file {file} (given as {text})")
    module = _imported(file.resolve())
    if name not in vars(module):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise InputError(f"{file} has no {name!r}.{did_you_mean(name, public)} It has: {', '.join(public) or 'nothing'}")
    return vars(module)[name]


@functools.cache
def _imported(file: Path) -> ModuleType:
    """The user's file as a module, run once, with its own folder importable as for `python file.py`."""
    specification = importlib.util.spec_from_file_location(f"_user_{file.stem}", file)
    assert specification is not None and specification.loader is not None  # the suffix is .py
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    try:
        specification.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(f"{file} cannot be imported:\n{_tail(error, file)}") from error
    return module


def _called(text: str, file: Path, function: Any, *arguments: Any) -> Any:
    """`function(*arguments)`, or without them where it takes none."""
    if not callable(function):
        raise InputError(f"{text} must be a function, it is {type(function).__name__}")
    try:
        takes = inspect.signature(function).parameters
    except ValueError:
        takes = {"of a builtin": None}  # type: ignore[assignment]
    try:
        return function(*arguments if takes else ())
    except DataError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{text} failed:\n{_tail(error, file.resolve())}") from error


def _tail(error: BaseException, file: Path) -> str:
    """The end of the traceback, from the first frame in the user's file on."""
    frames = traceback.extract_tb(error.__traceback__)
    first = next((number for number, frame in enumerate(frames) if frame.filename == str(file)), len(frames))
    return "".join([*traceback.format_list(frames[first:][-FRAMES_SHOWN:]), *traceback.format_exception_only(error)]).rstrip()


# --- recipes -------------------------------------------------------------------------------------------------------------


def recipe(text: str, settings: Sequence[str] = ()) -> Recipe:
    """A built-in recipe with `key=value` arguments, or a file's with `dotted.path=value` changes. Raises RecipeError."""
    mistakes = [f"--set {setting}: give key=value" for setting in settings if "=" not in setting]
    changes = [(key.strip(), value.strip()) for key, _, value in (setting.partition("=") for setting in settings)]
    if mistakes:
        raise RecipeError(mistakes, "settings")
    if text in RECIPES:
        return _built(text, changes)
    if Path(text).suffix not in (".json", ".yaml", ".yml"):
        allowed = f"There are: {', '.join(RECIPES)}. For your own give a .yaml or .json file."
        raise InputError(f"no recipe is named {text!r}.{did_you_mean(text, RECIPES)} {allowed}")
    read = recipes_as_data.read(text)
    if not changes:
        return read
    data = read.to_dict()
    mistakes = [mistake for key, value in changes if (mistake := _assign(data, key, value))]
    if mistakes:
        raise RecipeError(mistakes, "settings")
    return recipes_as_data.from_dict(data)


def parameters(name: str) -> list[tuple[str, str, str]]:
    """(name, type, default) of each parameter of a built-in recipe, as text."""
    function, hints = RECIPES[name], typing.get_type_hints(RECIPES[name])
    return [
        (key, _type_name(hints[key]), _shown(parameter.default))
        for key, parameter in inspect.signature(function).parameters.items()
    ]


def _built(name: str, changes: Sequence[tuple[str, str]]) -> Recipe:
    function: Callable[..., Recipe] = RECIPES[name]
    hints = typing.get_type_hints(function)
    known = inspect.signature(function).parameters
    arguments: dict[str, Any] = {}
    mistakes = []
    for key, value in changes:
        if key not in known:
            mistakes.append(f"--set {key}: {name} has no such parameter.{did_you_mean(key, known)} There are: {', '.join(known)}")
            continue
        try:
            arguments[key] = TypeAdapter(hints[key]).validate_python(_parts(value, hints[key]))
        except ValidationError as error:
            mistakes += [f"--set {key}={value}: {item['msg']}" for item in error.errors()]
    if mistakes:
        raise RecipeError(mistakes, "settings")
    try:
        return function(**arguments)
    except ArithmeticError as error:
        raise InputError(f"{name} cannot be built from {', '.join(f'{k}={v}' for k, v in changes)}: {error}") from error


def _parts(value: str, hint: Any) -> Any:
    """The text in the shape that `hint` wants: split at commas for a tuple, None for an optional; pydantic does the rest."""
    if typing.get_origin(hint) in (tuple, list):
        return [part.strip() for part in value.strip("()[] ").split(",") if part.strip()]
    if type(None) in typing.get_args(hint) and value.lower() in ("none", "null", ""):
        return None
    return value


def _assign(data: Any, path: str, value: str) -> str | None:
    """Set `stages.1.keep` and the like in a recipe's data; what is wrong with the path, if anything."""
    *parents, last = path.split(".")
    place, walked = data, "the recipe"
    for part in [*parents, None]:  # the last round checks that `last` can be set where the path has led
        key = last if part is None else part
        if isinstance(place, list):
            if not key.isdecimal() or int(key) >= len(place):
                return f"--set {path}: {walked} has the entries 0 to {len(place) - 1}, not {key!r}"
        elif not isinstance(place, dict):
            return f"--set {path}: {walked} is {_shown(place)} and has no {key!r}"
        elif place and key not in place:
            return f"--set {path}: {walked} has no {key!r}.{did_you_mean(key, place)} It has: {', '.join(place)}"
        index = int(key) if isinstance(place, list) else key
        if part is None:
            try:
                place[index] = yaml.safe_load(value)
            except yaml.YAMLError:
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
