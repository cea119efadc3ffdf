"""A stored graph is data: it is interpreted, its operations come from a table, and what it takes is bounded before it runs."""

from __future__ import annotations

import copy
import functools
import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from probes import build
from torch import Tensor, nn

from featherweight.errors import ArtifactError
from featherweight.structure import interpreted, operations, prune, trace
from featherweight.structure.errors import EditMismatch
from featherweight.structure.exported import from_dict, to_dict
from featherweight.structure.interpreted import GraphArtifactError, Interpreted
from featherweight.structure.rules import RULES

X = ["placeholder", "x", "x", [], {}]


def n(name: str) -> dict[str, str]:
    return {"node": name}


def call(name: str, target: str, *args: Any, **by_name: Any) -> list[Any]:
    return ["call_function", name, target, list(args), by_name]


def module(*nodes: list[Any], out: Any = "y", state: dict[str, Tensor] | None = None) -> Interpreted:
    """The graph x -> nodes -> out, with the tensors of `state` read first."""
    state = state or {}
    read = [["get_attr", name, name, [], {}] for name in state]
    tensors = {name: [True, list(t.shape), operations.type_name(t.dtype), True] for name, t in state.items()}
    output = [n(name) for name in out] if isinstance(out, list) else n(out)
    last = ["output", "output", "output", [output], {}]
    return from_dict({"format": 1, "tensors": tensors, "nodes": [X, *read, *nodes, last]}, state)


events: list[str] = []
watching = False


def watch(event: str, args: tuple[Any, ...]) -> None:
    if watching and event in ("compile", "exec", "open", "import", "os.system", "subprocess.Popen"):
        events.append(event)


sys.addaudithook(watch)


@contextmanager
def watched() -> Iterator[list[str]]:
    """What python compiles, runs, opens and imports inside."""
    global watching
    events.clear()
    watching = True
    try:
        yield events
    finally:
        watching = False


def test_a_graph_is_read_and_run_without_compiling_importing_or_opening_anything() -> None:
    module(call("y", "aten.relu.default", n("x")))(torch.ones(1))  # what torch imports at its first use
    with watched() as seen:
        made = module(call("y", "aten.relu.default", n("x")))
        result = made(torch.tensor([-1.0, 2.0]))
    assert result.tolist() == [0.0, 2.0] and seen == []
    with watched() as seen:
        compile("1", "x", "eval")
    assert seen == ["compile"], "the watch sees what it is for"


@pytest.mark.parametrize(
    "target",
    [
        *("aten.save.default", "aten.manual_seed.default", "aten.backward.default", "aten._print.default"),
        *("aten._reshape_alias.default", "aten.as_strided.default", "aten.set_.source_Tensor", "aten.resize_.default"),
        *("aten._sparse_csr_tensor_unsafe.default", "aten._nested_view_from_buffer.default", "aten.nonzero.default"),
        *("aten.add.out", "aten.view.dtype", "aten.where.default", "aten.to.prim_dtype", "aten.add.int", "aten.item.default"),
        *("aten.native_batch_norm.default", "aten.unique_dim.default", "aten.rand.default", "prims.add.default", "getattr"),
    ],
)
def test_operations_that_are_not_in_the_table_are_refused(target: str) -> None:
    with pytest.raises(EditMismatch, match="not an operation"):
        module(call("y", target, n("x")))


def test_every_operation_with_a_rule_may_be_stored() -> None:
    """But for those that read memory nobody has set (`empty` is stored as zeros; rows of no expert in `_grouped_mm`) or beyond a
    tensor (`_reshape_alias` is stored as a reshape), and whose memory hangs on numbers in the data: a graph with them is not
    stored."""
    known = {packet.__name__ for packet in RULES if not isinstance(packet, str)}
    assert known - operations._ALLOWED == {
        *("_reshape_alias", "empty", "empty_like", "new_empty"),
        *("bincount", "_grouped_mm"),
    }


def test_counts_normed_weights_checks_and_aliases_are_stored() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    aten = torch.ops.aten
    flat = graph.call_function(aten._reshape_alias.default, (x, [6], [1]))
    counts = graph.call_function(aten.histc.default, (flat, 4, -1, 1))
    enough = graph.call_function(aten.gt.Scalar, (graph.call_function(aten.sum.default, (counts,)), 2))
    graph.call_function(aten._assert_async.msg, (enough, "too few"))
    normed = graph.call_function(aten._weight_norm.default, (x, graph.call_function(aten.sum.dim_IntList, (x, [1], True)), 0))
    graph.output((counts, normed))
    made = torch.fx.GraphModule({}, graph)
    read = from_dict(to_dict(made), {})
    given = torch.tensor([[-0.9, 0.1, 0.2], [0.3, 5.0, 0.9]])
    for found, wanted in zip(read(given), made(given), strict=True):
        torch.testing.assert_close(found, wanted)
    with pytest.raises(GraphArtifactError, match="too few"):
        read(torch.full((2, 3), 9.0))


def test_lengths_of_fewer_rows_than_a_normed_weight_has_are_refused() -> None:
    """torch's kernel would read on behind them."""
    network = module(call("y", "aten._weight_norm.default", n("x"), n("g"), 0), state={"g": torch.randn(2, 1)})
    assert network(torch.randn(2, 3)).shape == (2, 3)
    with pytest.raises(GraphArtifactError, match="lengths of shape"):
        network(torch.randn(4, 3))


def test_no_operation_of_the_table_writes_but_into_its_first_operand() -> None:
    checked = 0
    for name in sorted(operations._ALLOWED):
        for overload in getattr(torch.ops.aten, name).overloads():
            try:
                found = operations.find(f"aten.{name}.{overload}")
            except operations.BadArgument:
                continue
            written = [a.alias_info is not None and a.alias_info.is_write for a in found._schema.arguments]
            assert not any(written[1:]), found
            checked += 1
    assert checked > 400


@pytest.mark.parametrize(
    ("target", "args", "by_name"),
    [
        ("aten.clone.default", [n("x")], {"memory_format = None);print(1)#": None}),
        ("aten.clone.default", [n("x")], {"self": n("x")}),
        ("aten.relu.default", [n("x"), n("x")], {}),
        ("aten.relu.default", [], {}),
        ("aten.relu.default", [[n("x")]], {}),
        ("aten.relu.default", ["x"], {}),
        ("aten.gelu.default", [n("x")], {"approximate": "exact"}),
        ("aten.view.default", [n("x"), [1.5]], {}),
        ("aten.view.default", [n("x"), [[1]]], {}),
        ("aten.view.default", [n("x"), [1] * 5000], {}),
        ("aten.mul.Scalar", [n("x"), 10**30], {}),
        ("aten.mul.Scalar", [n("x"), float("nan")], {}),
        ("aten.leaky_relu.default", [n("x"), "steep"], {}),
        ("aten.diff.default", [n("x"), 2], {}),
        ("aten.batch_norm.default", [n("x"), None, None, None, None, False, 0.1, {"float": "inf"}, False], {}),
        ("aten._to_copy.default", [n("x")], {"dtype": {"dtype": "quint8"}}),
        ("aten._to_copy.default", [n("x")], {"layout": {"layout": "sparse_coo"}}),
        ("aten.rrelu.default", [n("x")], {"generator": 1}),
        ("aten.relu.default", [n("later")], {}),
        ("aten.relu.default", [n("y")], {}),
        ("getitem", [n("x"), {"slice": [0, 1, 1]}], {}),
        ("mul", ["a", 2_000_000_000], {}),
        ("mul", [[0], 200_000_000], {}),
        ("add", [1], {}),
    ],
)
def test_arguments_that_the_schema_has_not_are_refused(target: str, args: list[Any], by_name: dict[str, Any]) -> None:
    with pytest.raises(EditMismatch):
        module(["call_function", "y", target, args, by_name])


def deep(depth: int) -> list[list[Any]]:
    return [call(f"y{i}", "aten.add.Tensor", n(f"y{i - 1}" if i else "x"), 1) for i in range(depth)]


FLOATS = {"dtype": {"dtype": "float32"}, "device": {"device": "cpu"}}
GREEDY: dict[str, list[list[Any]]] = {
    "very many lists of tensors": [
        call("r", "aten.expand.default", n("x"), [4096, 2]),
        call("p", "aten.unbind.int", n("r")),
        *[call(f"c{i}", "aten.stack.default", n("p")) for i in range(40)],
        call("y", "getitem", n("p"), 0),
    ],
    "a grid of many dimensions": [
        call("r", "aten.expand.default", n("x"), [70, 2]),
        call("p", "aten.unbind.int", n("r")),
        call("y", "aten.meshgrid.default", n("p")),
    ],
    "a tensor of many dimensions": [call("y", "aten.view.default", n("x"), [2] + [1] * 3000)],
    "rolled on and on": [
        call("r", "aten.repeat.default", n("x"), [1_000_000]),
        call("y", "aten.roll.default", n("r"), [1] * 300, [0] * 300),
    ],
    "a copy of an expansion": [
        call("e", "aten.expand.default", n("x"), [100_000_000, 2]),
        call("y", "aten.logsumexp.default", n("e"), [0]),
    ],
    "steps without end": [
        call("s", "aten.sum.default", n("x")),
        call("v", "aten.view.default", n("s"), [1, 1, 1]),
        call("e", "aten.expand.default", n("v"), [3_000_000, 1, 1]),
        call("w", "aten.zeros.default", [3, 1]),
        call("b", "aten.zeros.default", [3]),
        call("g", "aten.gru.input", n("e"), n("v"), [n("w"), n("w"), n("b"), n("b")], True, 1, 0.0, False, False, False),
        call("y", "getitem", n("g"), 0),
    ],
    "a scale that is not that of the sizes": [
        call("v", "aten.view.default", n("x"), [1, 1, 1, 2]),
        call("y", "aten._upsample_bilinear2d_aa.default", n("v"), [1, 1_000_000], False, None, 1 / 1024),
    ],
    "zeros": [call("y", "aten.zeros.default", [3_000_000_000])],
    "zeros on a device": [call("y", "aten.zeros.default", [3_000_000_000], **FLOATS)],
    "repeat": [call("y", "aten.repeat.default", n("x"), [700_000_000])],
    "a sum over an expansion": [call("e", "aten.expand.default", n("x"), [10**12, 2]), call("y", "aten.sum.default", n("e"))],
    "very many parts": [call("e", "aten.expand.default", n("x"), [10**9, 2]), call("y", "aten.unbind.int", n("e"))],
    "numbers squared": [call("s0", "add", 3, 0), *[call(f"s{i + 1}", "mul", n(f"s{i}"), n(f"s{i}")) for i in range(34)]],
    "copies that stay alive": [
        *[call(f"r{i}", "aten.repeat.default", n("x"), [2_000_000 + i]) for i in range(20)],
        call("y", "aten.cat.default", [n(f"r{i}") for i in range(20)]),
    ],
    "an outer product of three": [
        call("r", "aten.repeat.default", n("x"), [500]),
        call("e", "aten.einsum.default", "a,b,c->abc", [n("r"), n("r"), n("r")]),
        call("y", "aten.sum.default", n("e")),
    ],
    "a window beyond": [
        call("r", "aten.repeat.default", n("x"), [1, 1, 2000, 1000]),
        call("y", "aten.avg_pool2d.default", n("r"), [1000, 1000], [1, 1]),
    ],
    "work upon work": [
        call("a", "aten.repeat.default", n("x"), [1000, 500]),
        *[call(f"m{i}", "aten.mm.default", n(f"m{i - 1}" if i else "a"), n("a")) for i in range(30)],
    ],
    "a power of two in inputs": [call("y0", "aten.cat.default", [n("x")] * 4000)]
    + [call(f"y{i}", "aten.cat.default", [n(f"y{i - 1}")] * 4000) for i in range(1, 5)],
    "resampling": [
        call("v", "aten.view.default", n("x"), [1, 1, 2]),
        call("y", "aten.upsample_nearest1d.vec", n("v"), [2_000_000_000], None),
    ],
    "positions that overflow": [
        call("v", "aten.view.default", n("x"), [1, 1, 2]),
        call("y", "aten.upsample_nearest1d.default", n("v"), [4], 1e-38),
    ],
}


@pytest.mark.third
@pytest.mark.parametrize("name", GREEDY)
def test_what_takes_too_much_is_refused_before_it_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = GREEDY[name]
    made = module(*nodes, out=nodes[-1][1])
    monkeypatch.setattr(interpreted, "run", lambda *given: pytest.fail("it was run"))
    with pytest.raises(GraphArtifactError) as caught:
        made(torch.zeros(2))
    assert isinstance(caught.value, ArtifactError) and isinstance(caught.value, RuntimeError) and len(str(caught.value)) < 500


def test_what_ends_the_process_or_shows_its_memory_is_refused() -> None:
    """The least whole number divided by -1, towards zero; a sampler whose modes are none, which leaves its result unwritten."""
    least = {"a": torch.tensor(-(2**63)), "b": torch.tensor(-1)}
    tensors = {name: [False, [], "int64", False] for name in least}
    reads = [["get_attr", name, name, [], {}] for name in least]
    divided = call("y", "aten.div.Tensor_mode", n("a"), n("b"), rounding_mode="trunc")
    nodes = [X, *reads, divided, ["output", "output", "output", [n("y")], {}]]
    with pytest.raises(GraphArtifactError, match="whole numbers"):
        from_dict({"format": 1, "tensors": tensors, "nodes": nodes}, least)(torch.zeros(1))
    for modes in ((7, 0), (0, 7), (-1, -1)):
        sampled = module(
            call("y", "aten.grid_sampler_3d.default", n("x"), n("g"), *modes, False), state=weights(g=(1, 2, 2, 2, 3))
        )
        with pytest.raises(GraphArtifactError, match="modes"):
            sampled(torch.ones(1, 1, 2, 2, 2))


@pytest.mark.parametrize("target", ["aten.zero_.default", "aten.t_.default", "aten.unsqueeze_.default"])
def test_a_graph_changes_neither_the_inputs_nor_the_form_of_weights(target: str) -> None:
    args = [0] if "unsqueeze" in target else []
    given = torch.ones(2, 3)
    module(call("y", target, n("x"), *args))(given)
    module(call("p", "getitem", n("x"), 1), call("y", target, n("p"), *args))([given, given])
    assert torch.equal(given, torch.ones(2, 3))
    if "zero" not in target:
        made = module(call("y", target, n("w"), *args), state=weights(w=(2, 3)))
        with torch.no_grad():
            assert made(given).shape == made(given).shape
        assert made.w.shape == (2, 3)


def test_inputs_in_lists_and_on_meta_are_looked_at_too(monkeypatch: pytest.MonkeyPatch) -> None:
    greedy = [call("r", "aten.repeat.default", n("p"), [300_000_000]), call("y", "aten.sum.default", n("r"))]
    monkeypatch.setattr(interpreted, "run", lambda *given: pytest.fail("it was run"))
    with pytest.raises(GraphArtifactError):
        module(call("p", "getitem", n("x"), 0), *greedy)([torch.ones(2), torch.ones(2)])
    with pytest.raises(GraphArtifactError):
        module(*greedy, state=weights(p=(2,)))(torch.ones(1, device="meta"))


def test_what_comes_in_a_list_is_checked_for_each_shape() -> None:
    made = module(
        call("p", "getitem", n("x"), 0), call("t", "aten.t.default", n("p")), call("y", "aten.mm.default", n("p"), n("t"))
    )
    assert made([torch.ones(2, 1)]).shape == (2, 2)
    with pytest.raises(GraphArtifactError, match="would take more"):
        made([torch.ones(40_000, 1)])


def test_a_graph_that_grows_with_the_batch_is_refused_where_it_is_traced() -> None:
    """`export` traces with a batch of two what was run with a batch of one."""
    state = weights(h=(1, 1, 1), a=(3, 1), b=(3, 1), c=(3,), d=(3,))
    made = module(
        call("batch", "aten.sym_size.int", n("x"), 0),
        call("less", "sub", n("batch"), 1),
        call("many", "mul", n("less"), 3_000_000),
        call("steps", "add", n("many"), 1),
        call("s", "aten.sum.default", n("x")),
        call("v", "aten.view.default", n("s"), [1, 1, 1]),
        call("e", "aten.expand.default", n("v"), [n("steps"), 1, 1]),
        call("g", "aten.gru.input", n("e"), n("h"), [n(k) for k in "abcd"], True, 1, 0.0, False, False, False),
        call("y", "getitem", n("g"), 0),
        state=state,
    )
    made(torch.ones(1, 2))
    with pytest.raises(GraphArtifactError, match="would take more work"), torch.no_grad():
        torch.export.export(made, (torch.ones(2, 2),), dynamic_shapes={"inputs": ({0: torch.export.Dim.DYNAMIC},)})


def test_names_that_stand_in_very_many_modules_are_refused() -> None:
    state = {f"{number}." + ".".join("a" * 60): torch.zeros(0) for number in range(900)}
    with pytest.raises(EditMismatch, match="modules"):
        module(state=state, out="x")


def test_the_allowance_lifts_the_limit_for_a_network_that_is_trusted() -> None:
    made = module(call("r", "aten.repeat.default", n("x"), [10_000_000]), call("y", "aten.sum.default", n("r")))
    made.allowance = 0.5
    with pytest.raises(GraphArtifactError, match=r"network\.allowance"):
        made(torch.ones(2))
    made.allowance = 10
    assert float(made(torch.ones(2))) == 2e7


def weights(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("key", "value", "mask"),
    [((1, 2, 6, 8), (1, 2, 5, 8), None), ((1, 3, 6, 8), (1, 2, 6, 8), None), ((1, 2, 6, 8), (1, 2, 6, 8), (4, 5))],
)
def test_attention_of_other_shapes_is_refused(key: tuple[int, ...], value: tuple[int, ...], mask: tuple[int, ...] | None) -> None:
    state = weights(k=key, v=value, **({"m": mask} if mask else {}))
    args = [n("x"), n("k"), n("v"), *([n("m")] if mask else [])]
    made = module(call("y", "aten.scaled_dot_product_attention.default", *args), state=state)
    with pytest.raises(GraphArtifactError, match="attention"):
        made(torch.zeros(1, 2, 4, 8))


@pytest.mark.parametrize("wrong", ["a", "b", "c", "d", "h"])
def test_recurrent_weights_of_other_shapes_are_refused(wrong: str) -> None:
    state = weights(h=(1, 2, 5), a=(15, 3), b=(15, 5), c=(15,), d=(15,))
    args = (n("x"), n("h"), [n(k) for k in "abcd"], True, 1, 0.0, False, False, False)
    nodes = [call("r", "aten.gru.input", *args), call("y", "getitem", n("r"), 0)]
    assert module(*nodes, state=state)(torch.ones(4, 2, 3)).shape == (4, 2, 5)
    state[wrong] = state[wrong][..., :-1].contiguous()
    with pytest.raises(GraphArtifactError, match="gru"):
        module(*nodes, state=state)(torch.ones(4, 2, 3))


def test_inputs_of_other_shapes_and_names_are_named_errors() -> None:
    made = module(call("y", "aten.mm.default", n("x"), n("w")), state=weights(w=(3, 2)))
    assert made(x=torch.ones(4, 3)).shape == (4, 2)
    with pytest.raises(GraphArtifactError, match=r"inputs of \(4, 5\)"):
        made(torch.ones(4, 5))
    for wrong in ({}, {"y": torch.ones(1)}, {"x": torch.ones(1), "z": 1}):
        with pytest.raises(TypeError, match="the network takes x"):
            made(**wrong)
    with pytest.raises(TypeError):
        made(torch.ones(1), torch.ones(1))


@pytest.mark.parametrize(
    "nodes",
    [
        [],
        [X],
        [X, ["output", "output", "output", [n("x")], {}], X],
        [X, X, ["output", "output", "output", [n("x")], {}]],
        [X, ["placeholder", "z", "x", [], {}], ["output", "output", "output", [n("x")], {}]],
        [["placeholder", "x", "a b", [], {}], ["output", "output", "output", [n("x")], {}]],
        [X, ["get_attr", "w", "w", [], {}], ["output", "output", "output", [n("x")], {}]],
        [X, ["output", "output", "output", [functools.reduce(lambda inside, _: [inside], range(9), n("x"))], {}]],
        [X] * 60_000,
        [X, 3],
    ],
    ids=lambda nodes: str(len(nodes)),
)
def test_graphs_of_another_form_are_refused(nodes: list[Any]) -> None:
    with pytest.raises(EditMismatch):
        from_dict({"format": 1, "tensors": {}, "nodes": nodes}, {})


@pytest.mark.parametrize("name", ["", "a..b", ".a", "a\nb", "a" * 600, ".".join("a" * 100), "forward", "__class__.x", "_program"])
def test_names_of_tensors_that_no_module_can_have_are_refused(name: str) -> None:
    with pytest.raises(EditMismatch):
        module(state={name: torch.zeros(1)}, out="x")


def test_a_tensor_of_another_shape_type_or_kind_than_the_file_holds_is_refused() -> None:
    held, output = {"w": torch.zeros(2)}, ["output", "output", "output", [n("x")], {}]
    for claim in ([True, [3], "float32", True], [True, [2], "float64", True], [True, [True], "float32", True], [True, [2]], 3):
        with pytest.raises(EditMismatch):
            from_dict({"format": 1, "tensors": {"w": claim}, "nodes": [X, output]}, held)
    with pytest.raises(EditMismatch, match="parameter"):
        from_dict(
            {"format": 1, "tensors": {"w": [True, [2], "int64", False]}, "nodes": [X, output]}, {"w": torch.zeros(2).long()}
        )


class Names(nn.Module):
    """A network whose modules have names that are no identifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.rest = nn.ModuleDict({"layer-1": nn.Linear(6, 8), "last 1": nn.Linear(8, 3)})

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.rest["layer-1"](torch.relu(self.first(x))))
        return self.rest["last 1"](hidden.new_empty(hidden.shape).copy_(hidden))


def test_a_stored_network_is_pruned_copied_and_stored_again() -> None:
    torch.manual_seed(0)
    network, x = Names().eval(), torch.randn(3, 4)
    graph = trace(network, (x,))
    first = prune(network, graph, {name: range(4) for name in graph.sites}, where="graph").model
    read = from_dict(to_dict(first), first.state_dict())
    assert torch.equal(read(x), first(x))
    again = trace(read, (x,))
    second = prune(read, again, {name: range(2) for name in again.sites}).model
    stored = from_dict(to_dict(second), second.state_dict())
    assert torch.equal(stored(x), second(x)) and sum(p.numel() for p in stored.parameters()) < sum(
        p.numel() for p in first.parameters()
    )
    twin = copy.deepcopy(stored)
    assert twin._program is stored._program and torch.equal(twin(x), stored(x))
    twin(x).sum().backward()
    assert all(p.grad is not None for p in twin.parameters()) and all(p.grad is None for p in stored.parameters())


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = (1, 64, 128, 256, 512)
        self.down = nn.ModuleList([nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(b, a, 2, 2) for a, b in itertools.pairwise(widths[1:])])

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for layer in self.down:
            x = F.relu(layer(x))
            kept.append(x)
            x = F.max_pool2d(x, 2)
        x = kept.pop()
        for layer in reversed(self.up):
            x = torch.cat([kept[-1], layer(x)], 1)[:, : kept.pop().shape[1]]
        return x


class Upscale(nn.Module):
    """Few weights and a large picture: most memory for what goes in."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 64, 5, padding=2), nn.Conv2d(64, 32, 3, padding=1), nn.Conv2d(32, 9, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.c(torch.tanh(self.b(torch.tanh(self.a(x))))), 3)


def text() -> nn.Module:
    layer = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True)
    return nn.Sequential(
        nn.Embedding(1000, 128), nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), nn.Linear(128, 1000)
    )


ROOMY: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...]]] = {  # network, shape to trace, shape to run
    "u-net": (UNet, (1, 1, 32, 32), (1, 1, 512, 512)),
    "upscaling": (Upscale, (1, 1, 16, 16), (1, 1, 1080, 1920)),
    "text": (text, (1, 128), (64, 128)),
}


@pytest.mark.third
@pytest.mark.parametrize("name", ROOMY)
def test_ordinary_networks_stay_well_below_the_limits(name: str) -> None:
    """At the size they are used at, on tensors without memory: half of what is allowed is enough."""
    make, small, large = ROOMY[name]
    network = make().eval()
    kind = torch.long if name == "text" else torch.float32
    graph = trace(network, (torch.zeros(small, dtype=kind),))
    site = next(iter(graph.sites))
    cut = prune(network, graph, site, range(graph.sites[site].size - 1), where="graph", any_batch=True).model
    read = from_dict(to_dict(cut), cut.state_dict())
    given = torch.zeros(large, dtype=kind, device="meta")
    held = dict(read.named_parameters()) | dict(read.named_buffers())
    most = interpreted.limits([given], held.values(), allowance=0.5)
    interpreted.dry_run(read._program, [given], held, most)
    with pytest.raises(GraphArtifactError):
        interpreted.dry_run(read._program, [given], held, interpreted.Limits(most.bytes / 1e5, most.work / 1e5))


def test_what_an_input_leaves_free_is_not_free_for_others() -> None:
    """Two layers of 63 planes are alive at one time, and the input that was let go before does not count for one of them."""
    network, x = Upscale().eval(), torch.zeros(1, 1, 16, 16)
    graph = trace(network, (x,))
    cut = prune(network, graph, next(iter(graph.sites)), range(63), where="graph", any_batch=True).model
    read = from_dict(to_dict(cut), cut.state_dict())
    given, held = torch.zeros(1, 1, 1080, 1920, device="meta"), dict(read.named_parameters())
    one = 63 * 1080 * 1920 * 4
    with pytest.raises(GraphArtifactError, match="bytes"):
        interpreted.dry_run(read._program, [given], held, interpreted.Limits(1.5 * one, 1e15))
    interpreted.dry_run(read._program, [given], held, interpreted.Limits(2.1 * one, 1e15))


def test_a_probe_runs_where_its_inputs_are() -> None:
    """What the code makes is made on the device of the inputs, not on the CPU that the file names."""
    network, example = build("constant order")
    graph = trace(network, example)
    cut = prune(network, graph, {n: range(s.size // 2) for n, s in graph.sites.items()}, where="graph").model
    read = from_dict(to_dict(cut), cut.state_dict()).to("meta")
    assert read(*(value.float().to("meta") for value in example)).device.type == "meta"
