"""The suite about itself and the shape of the package: tests assert, oracles stand alone, imports go strictly downward."""

from __future__ import annotations

import ast
import functools
import sys
from pathlib import Path

import pytest
from long_cases import chosen

import featherweight

TESTS = Path(__file__).parent
PACKAGE = Path(featherweight.__file__).parent
TEST_FILES = sorted(TESTS.rglob("test_*.py"))

ORDER = (  # the rooms: each may import only what stands before it
    *("version", "errors"),
    *("network", "task"),  # a stranger's network and problem: how they are called, copied, moved
    *("weights", "structure", "measurement"),  # what weights may be; what can go; what is there
    *("training", "criteria", "budget", "lowrank", "files"),
    *("recipe", "recipes", "zoo", "ship"),
    *("run", "compression", "evidence", "__init__", "cli", "__main__"),
)
ASSERTING = ("assert_close", "assert_array_equal", "assert_allclose", "raises", "gradcheck", "warns")  # calls that are assertions


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def asserts(node: ast.AST, helpers: set[str]) -> bool:
    for inside in ast.walk(node):
        if isinstance(inside, ast.Assert):
            return True
        if isinstance(inside, ast.Call):
            name = inside.func.attr if isinstance(inside.func, ast.Attribute) else getattr(inside.func, "id", "")
            if name in ASSERTING or name in helpers:
                return True
    return False


def test_functions(path: Path) -> list[tuple[str, bool]]:
    """(name, does it assert, itself or through a helper of its file that asserts) of each test."""
    functions = {node.name: node for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef)}
    helpers = {name for name, node in functions.items() if not name.startswith("test") and asserts(node, set())}
    return [(name, asserts(node, helpers)) for name, node in functions.items() if name.startswith("test")]


test_functions.__test__ = False  # a helper, whatever its name


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_every_test_asserts(path: Path) -> None:
    silent = [name for name, speaks in test_functions(path) if not speaks and name != "test_functions"]
    assert silent == []


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_no_two_tests_of_a_file_share_a_name(path: Path) -> None:
    """The later of two functions of one name replaces the earlier, which then never runs."""
    names = [node.name for node in parsed(path).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert sorted(names) == sorted(set(names))


def test_an_assertion_is_found_and_its_absence_too(tmp_path: Path) -> None:
    source = "def check(x):\n    assert x\ndef test_a():\n    check(1)\ndef test_b():\n    x == 1\ndef test_c():\n    assert 1\n"
    (tmp_path / "test_x.py").write_text(source)
    assert test_functions(tmp_path / "test_x.py") == [("test_a", True), ("test_b", False), ("test_c", True)]


def imported(path: Path) -> set[str]:
    """The dotted names of all modules that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {"featherweight.__init__" if alias.name == "featherweight" else alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def test_oracles_do_not_import_what_they_judge() -> None:
    names = imported(TESTS / "oracles.py")
    assert {name.split(".")[0] for name in names} <= {"__future__", "collections", "itertools", "math", "numpy"}
    assert "featherweight" not in (TESTS / "oracles.py").read_text()


def units() -> dict[str, list[Path]]:
    """Unit -> its files; a subpackage is one unit."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE)
        found.setdefault(inside.parts[0] if len(inside.parts) > 1 else inside.stem, []).append(path)
    return found


@functools.cache
def graph() -> dict[str, set[str]]:
    """Unit -> the other units that it imports. `from featherweight import x` is of unit x, or of the package's own names."""
    files = units()
    edges: dict[str, set[str]] = {}
    for unit, paths in files.items():
        edges[unit] = set()
        for name in set().union(*(imported(path) for path in paths)):
            parts = name.split(".")
            if parts[0] == "featherweight" and len(parts) > 1:
                edges[unit].add(parts[1] if parts[1] in files else "__init__")
        edges[unit] -= {unit}
    return edges


def test_imports_have_no_cycle() -> None:
    waiting, done = dict(graph()), []
    while waiting:
        free = sorted(unit for unit, needs in waiting.items() if needs <= set(done))
        assert free, f"a cycle among {sorted(waiting)}"
        done += free
        waiting = {unit: needs for unit, needs in waiting.items() if unit not in free}
    assert set(done) == set(units())


def test_imports_go_strictly_downward_in_the_order() -> None:
    edges = graph()
    assert set(edges) <= set(ORDER), f"say where these stand in ORDER: {sorted(set(edges) - set(ORDER))}"
    upward = [(unit, need) for unit, needs in edges.items() for need in needs if ORDER.index(need) >= ORDER.index(unit)]
    assert upward == []


EVERYWHERE = {"einops", "numpy", "pydantic", "rich", "safetensors", "scipy", "torch", "typer", "yaml", "zstandard"}


def test_a_command_imports_no_package_that_only_another_needs() -> None:
    """Every file is imported by every command: a runtime, a library of networks or of pictures, and the exporters and compilers
    of torch are imported by the function that uses them. Half of what `inspect` takes from a cold start is imports."""
    named: dict[str, str] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in parsed(path).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            named |= dict.fromkeys(names, path.name)
    packages = {name.partition(".")[0]: where for name, where in named.items()}
    needless = {name: where for name, where in packages.items() if name not in EVERYWHERE | sys.stdlib_module_names}
    assert set(needless) == {"featherweight"}
    heavy = ("torch._dynamo", "torch._inductor", "torch._functorch", "torch.onnx", "torch.export._", "scipy.", "rich.markdown")
    assert [(name, where) for name, where in named.items() if name.startswith(heavy)] == []


def test_the_house_stays_small_enough_to_be_drawn() -> None:
    """Rooms, arrows between them, and floors, a room standing on the highest of those it imports."""
    edges = graph()
    floors: dict[str, int] = {}
    for unit in ORDER:
        if unit in edges:
            floors[unit] = 1 + max((floors[need] for need in edges[unit]), default=0)
    assert len(edges) <= 22 and sum(map(len, edges.values())) <= 110 and max(floors.values()) <= 12


def test_the_order_names_each_unit_once() -> None:
    assert len(set(ORDER)) == len(ORDER)


def test_no_bare_except_and_no_print_in_the_library() -> None:
    for unit, paths in units().items():
        for path in paths:
            for node in ast.walk(parsed(path)):
                assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{path}:{node.lineno}"
                called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id
                assert called != "print" or unit == "cli", f"{path}:{node.lineno}"


class Case:
    """What `chosen` asks of a case."""

    def __init__(self, test: str, number: int, mark: str = "") -> None:
        self.name, self.nodeid, self.mark = f"{test}[{number}]", f"tests/test_x.py::{test}[{number}]", mark

    def get_closest_marker(self, name: str) -> bool:
        return name == self.mark


def test_of_many_cases_a_third_is_chosen_of_each_test_one_and_of_unmarked_ones_all() -> None:
    many = [Case("many", number, "third") for number in range(600)]
    single = [Case(f"test{number}", 0, "third") for number in range(20)]
    plain, long = [Case("plain", number) for number in range(9)], [Case("long", 0, "long")]
    kept = chosen([*many, *single, *plain, *long])  # type: ignore[list-item]
    assert 150 < len([case for case in kept if case in many]) < 250
    assert [case for case in kept if case not in many] == [*single, *plain]
    assert [case for case in chosen([*many, Case("many", 600, "third")]) if case in many] == kept[: len(kept) - 29]  # type: ignore[list-item]
