"""Nothing public is missing from the table, so that every law runs over everything."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing

import pytest
import table
from torch import nn

import featherweight
from featherweight.criteria import CRITERIA, NEEDS
from featherweight.recipe.schema import AnyDriver, AnySet, Recipe
from featherweight.recipes import RECIPES
from featherweight.task import Task
from featherweight.weights import codes, drivers, sets, views
from featherweight.weights.counts import ALLOCATORS
from featherweight.zoo.networks import NETWORKS
from featherweight.zoo.tasks import TASKS

ELSEWHERE = tuple(f"featherweight.{name}" for name in ("structure", "console", "job", "cli", "__main__"))  # hold no sets


def spine() -> list[object]:
    names = [info.name for info in pkgutil.walk_packages(featherweight.__path__, "featherweight.")]
    return [importlib.import_module(name) for name in names if not name.startswith(ELSEWHERE)]


def concrete(base: type) -> set[type]:
    found = set()
    for module in spine():
        for value in vars(module).values():
            if inspect.isclass(value) and issubclass(value, base) and not inspect.isabstract(value):
                found.add(value)
    return found


def functions(module: object, returns: str) -> set[str]:
    found = inspect.getmembers(module, inspect.isfunction)
    return {
        name
        for name, function in found
        if function.__module__ == module.__name__
        and not name.startswith("_")
        and function.__annotations__.get("return") == returns
    }


def choices(annotated: object) -> set[type]:
    return set(typing.get_args(typing.get_args(annotated)[0]))


def test_every_set_has_instances() -> None:
    assert concrete(sets.Set) == set(table.INSTANCES) == set(sets.SETS)


def test_every_set_that_has_a_size_is_listed_with_its_range() -> None:
    resizable = {kind for kind in concrete(sets.Set) if kind.sized is not sets.Set.sized}
    assert {type(sized.at(1)) for sized in table.SIZED.values()} == resizable
    with_menu = {kind for kind in concrete(sets.Set) if kind.menu is not sets.Set.menu}
    assert {type(sized.at(1)) for sized in table.SIZED.values() if sized.has_menu} == with_menu


def test_every_kind_of_levels_has_an_instance() -> None:
    kinds = typing.get_args(typing.get_type_hints(sets.Levels)["levels"])
    assert {instance.levels for instance in table.INSTANCES[sets.Levels]} == set(kinds)


def test_every_code_has_a_set_that_encodes_to_it() -> None:
    assert concrete(codes.Code) == set(table.CODES.values())
    assert set(codes.CODES) == set(table.CODES) == set(table.SAMPLE)
    for kind, sample in table.SAMPLE.items():
        assert type(sample.encode(table.suited(kind))) is table.CODES[kind]
        assert table.CODES[kind].kind == kind


def test_every_driver_has_instances() -> None:
    assert concrete(drivers.Driver) == set(table.DRIVERS)


def test_a_recipe_can_hold_every_set_and_driver() -> None:
    assert choices(AnySet) == concrete(sets.Set)
    assert choices(AnyDriver) == concrete(drivers.Driver)


def test_every_view_pattern_of_the_design_is_listed() -> None:
    patterns = {views.View(seen.pattern, seen.given).pattern for seen in table.VIEWS.values()}
    assert views.WHOLE.pattern in patterns
    assert len(table.VIEWS) == 9


def test_every_allocator_is_listed() -> None:
    from featherweight.weights import counts

    public = functions(counts, "dict[str, int]")
    assert {function.__name__ for function in ALLOCATORS.values()} == public
    assert ALLOCATORS == table.ALLOCATORS


def test_every_criterion_is_listed() -> None:
    public = {
        name
        for module in spine()
        if module.__name__.startswith("featherweight.criteria.") and not module.__name__.endswith(".ranking")  # how, not which
        for name in functions(module, "Rankings")
    }
    assert public == set(CRITERIA) == set(NEEDS) == set(table.CRITERIA)
    assert all(function.__name__ == name for name, function in CRITERIA.items())


def test_every_network_is_listed() -> None:
    from featherweight.zoo import deepmotif, networks

    public = functions(networks, "nn.Module") | functions(deepmotif, "nn.Module")
    assert public == set(NETWORKS) == set(table.NETWORKS)


def test_every_task_is_listed() -> None:
    from featherweight.zoo import tasks

    assert functions(tasks, Task.__name__) == set(TASKS) == set(table.TASKS)


def test_every_recipe_is_listed() -> None:
    public = {
        name
        for module in spine()
        if module.__name__.startswith("featherweight.recipes.")
        for name in functions(module, Recipe.__name__)
    }
    assert public == set(table.RECIPES)
    assert set(RECIPES) == public - table.NEED_ARGUMENTS


@pytest.mark.parametrize("name", table.NETWORKS)
def test_every_network_builds(name: str) -> None:
    network = table.NETWORKS[name][1]()
    assert isinstance(network, nn.Module)
    assert NETWORKS[name] is table.NETWORKS[name][1]
