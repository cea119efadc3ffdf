"""Codes: decoding is the projection, a refit is an orthogonal projection, and layout, state and bits are what is stored."""

from __future__ import annotations

import json

import oracles
import pytest
import table
import torch
from torch import nn
from torch.nn.utils import parametrize

from featherweight.weights import codes
from featherweight.weights.codes import Code
from featherweight.weights.parametrized import attach, coded, detach
from featherweight.weights.sets import Codebook, Levels, LowRank, Set, SparseCodebook, TopK, TopRows
from featherweight.weights.views import View

EVERY_SET = pytest.mark.parametrize("one", table.ALL_SETS, ids=str)
EVERY_KIND = pytest.mark.parametrize("kind", table.CODES)
FILTERS = View("o i h w -> o (i h w)")


def free_part(code: Code, matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
    free = code.right_inverse(matrix)
    return free if isinstance(free, tuple) else (free,)


def refitted(code: Code, matrix: torch.Tensor) -> torch.Tensor:
    return code(*free_part(code, matrix))


@EVERY_SET
def test_decoding_the_encoding_is_the_projection(one: Set) -> None:
    for matrix in table.MATRICES.values():
        assert torch.equal(refitted(one.encode(matrix), matrix), one.project(matrix))


@pytest.mark.parametrize("kind", table.LINEAR)
def test_a_refit_is_an_orthogonal_projection(kind: str) -> None:
    code = table.SAMPLE[kind].encode(table.suited(kind))
    for seed in range(5):
        other = table.matrix(seed=50 + seed)
        near = refitted(code, other)
        torch.testing.assert_close(refitted(code, near), near, rtol=1e-12, atol=1e-12)
        for step in range(3):  # the residual is orthogonal to everything the code can express
            free = tuple(f.cos() for f in free_part(code, table.matrix(seed=step)))
            assert float(((other - near) * code(*free)).sum()) == pytest.approx(0, abs=1e-10)


@EVERY_KIND
def test_a_refit_is_idempotent(kind: str) -> None:
    code = table.SAMPLE[kind].encode(table.suited(kind))
    near = refitted(code, table.matrix(seed=60))
    torch.testing.assert_close(refitted(code, near), near, rtol=1e-10, atol=1e-10)


@EVERY_SET
def test_a_refit_of_any_matrix_stays_in_the_set(one: Set) -> None:
    code = one.encode(table.matrix())
    if isinstance(one, LowRank) and one.energy is not None:
        one = LowRank(code.rank)
    assert one.violation(refitted(code, table.matrix(seed=61))) <= 1e-7


@EVERY_KIND
def test_gradients_reach_the_whole_free_part(kind: str) -> None:
    code = table.SAMPLE[kind].encode(table.suited(kind))
    free = tuple(f.clone().requires_grad_() for f in free_part(code, table.matrix()))
    loss = (code(*free) * table.matrix(seed=62)).sum()
    for part in torch.autograd.grad(loss, free):
        assert int(part.count_nonzero()) == part.numel()


@EVERY_KIND
def test_gradients_are_right(kind: str) -> None:
    code = table.SAMPLE[kind].encode(table.suited(kind))
    free = tuple(f.clone().requires_grad_() for f in free_part(code, table.matrix()))
    assert torch.autograd.gradcheck(code, free)


@EVERY_SET
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_blank_of_the_layout_takes_the_state(one: Set, dtype: torch.dtype) -> None:
    matrix = table.matrix(dtype=dtype)
    code = one.encode(matrix)
    layout = json.loads(json.dumps(code.layout()))
    blank = codes.CODES[layout["kind"]](layout["rows"], layout["cols"], **layout["sizes"])
    assert blank.layout() == code.layout()
    for name, value in blank.state_dict().items():
        assert value.shape == code.state_dict()[name].shape
    blank.load_state_dict(code.state_dict())
    assert torch.equal(refitted(blank, matrix), refitted(code, matrix))
    assert blank.bits() == code.bits()


@EVERY_KIND
def test_an_encoding_has_nothing_wrong_with_it(kind: str) -> None:
    assert table.SAMPLE[kind].encode(table.suited(kind)).problem() is None


def damaged(kind: str, buffer: str, change: object) -> str | None:
    code = table.SAMPLE[kind].encode(table.suited(kind))
    index = code.get_buffer(buffer)
    setattr(code, buffer, change(index.long()).to(index.dtype))
    return code.problem()


@pytest.mark.parametrize(("kind", "buffer", "limit"), [
    ("sparse", "index", 48), ("rows", "index", 6), ("scaled", "index", 8), ("shared", "index", 5),
    ("sparse_shared", "position", 48), ("sparse_shared", "index", 3),
    ("sparse_scaled", "position", 48), ("sparse_scaled", "index", 4),
])  # fmt: skip
def test_an_index_out_of_range_is_a_problem(kind: str, buffer: str, limit: int) -> None:
    assert f"outside 0 .. {limit - 1}" in damaged(kind, buffer, lambda index: index.index_fill(-1, torch.tensor(0), limit))
    assert damaged(kind, buffer, lambda index: index) is None


@pytest.mark.parametrize(("kind", "buffer"), [
    ("sparse", "index"), ("rows", "index"), ("sparse_shared", "position"), ("sparse_scaled", "position"),
])  # fmt: skip
def test_positions_that_do_not_ascend_are_a_problem(kind: str, buffer: str) -> None:
    assert "not strictly ascending" in damaged(kind, buffer, lambda index: index.flip(0))
    assert "not strictly ascending" in damaged(kind, buffer, lambda index: index[0].expand_as(index))


# --- bits and weights ----------------------------------------------------------------------------------------------------

BITS = [
    (TopK(13), 13 * 32 + oracles.choose_bits(48, 13)),
    (TopK(0), 0),
    (TopK(48), 48 * 32),
    (TopRows(4), 4 * 8 * 32 + oracles.choose_bits(6, 4)),
    (LowRank(2), 2 * (6 + 8) * 32),
    (Levels("binary"), 6 * 32 + oracles.index_bits(48, 2)),
    (Levels("ternary"), 6 * 32 + oracles.index_bits(48, 3)),
    (Levels("uniform", 3), 6 * 32 + oracles.index_bits(48, 8)),
    (Levels("power_of_two", 3), 6 * 32 + oracles.index_bits(48, 8)),
    (Codebook(5), 5 * 32 + oracles.index_bits(48, 5)),
    (Codebook(1), 32),
    (SparseCodebook(11, 3), 3 * 32 + oracles.choose_bits(48, 11) + oracles.index_bits(11, 3)),
]


@pytest.mark.parametrize(("one", "expected"), BITS, ids=str)
def test_bits_are_the_free_numbers_and_an_enumerative_code(one: Set, expected: int) -> None:
    assert one.encode(table.matrix()).bits() == expected


@pytest.mark.parametrize(
    ("one", "expected"),
    [(TopK(13), 13), (TopRows(4), 32), (LowRank(2), 28), (Levels("binary"), 48), (Codebook(5), 48), (SparseCodebook(11, 3), 11)],
    ids=str,
)
def test_weights_are_the_entries_not_forced_to_zero(one: Set, expected: int) -> None:
    assert one.encode(table.matrix()).weights() == expected


def test_ternary_weights_are_those_off_zero() -> None:
    code = Levels("ternary").encode(table.matrix())
    assert code.weights() == int(refitted(code, table.matrix()).count_nonzero())


@pytest.mark.parametrize(("count", "size"), [(255, 1), (256, 1), (257, 2), (2**15, 2), (2**15 + 1, 4)])
def test_an_index_is_stored_in_the_smallest_type_that_holds_the_largest(count: int, size: int) -> None:
    code = codes.Sparse(1, count, torch.tensor([0, count - 1]))
    stored = code.state_dict()["index"]
    assert code.index.tolist() == stored.tolist() == [0, count - 1]
    assert stored.element_size() == size
    again = codes.Sparse.blank(1, count, 2)
    again.load_state_dict({"index": stored})  # a file's, of any version
    assert torch.equal(again.index, code.index) and again.index.dtype == code.index.dtype


@pytest.mark.parametrize("count", [5, 300, 2**15, 2**15 + 1])
@EVERY_KIND
def test_every_backend_of_torch_distributed_sends_the_buffers_of_a_code(kind: str, count: int) -> None:
    """DistributedDataParallel sends buffers before each pass; gloo and NCCL know these types and no int16."""
    sizes = dict.fromkeys(table.SAMPLE[kind].encode(table.suited(kind)).sizes(), count)
    code = codes.CODES[kind](1, count, **sizes)
    assert {buffer.dtype for buffer in code.buffers()} <= {torch.uint8, torch.int32, torch.int64, torch.float32}


# --- on a network --------------------------------------------------------------------------------------------------------


@EVERY_KIND
def test_attaching_projects_the_weight_and_frees_the_code(kind: str) -> None:
    layer = nn.Linear(8, 6, dtype=torch.float64)
    layer.weight.data.copy_(table.suited(kind))
    code = table.SAMPLE[kind].encode(table.suited(kind))
    attach(layer, "weight", View("o i -> o i"), code)
    assert torch.equal(layer.weight, table.SAMPLE[kind].project(table.suited(kind)))
    assert list(coded(layer)) == ["weight"]
    free = [p for name, p in layer.named_parameters() if "original" in name]
    assert [p.shape for p in free] == [f.shape for f in free_part(code, table.suited(kind))]


@EVERY_KIND
def test_a_blank_code_is_zeros_of_the_free_shapes_and_takes_a_state(kind: str) -> None:
    layer, other = nn.Linear(8, 6, dtype=torch.float64), nn.Linear(8, 6, dtype=torch.float64)
    layer.weight.data.copy_(table.suited(kind))
    code = table.SAMPLE[kind].encode(table.suited(kind))
    assert tuple(part.shape for part in free_part(code, table.matrix())) == code.free()
    attach(layer, "weight", View("o i -> o i"), code)
    layout = code.layout()
    attach(other, "weight", View("o i -> o i"), codes.CODES[kind](6, 8, **layout["sizes"]), blank=True)
    assert all(int(p.count_nonzero()) == 0 for name, p in other.named_parameters() if "original" in name)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight, layer.weight)
    with torch.no_grad():
        other.weight = table.matrix(seed=4)  # only the first refit is blank
    torch.testing.assert_close(other.weight, refitted(code, table.matrix(seed=4)), rtol=1e-12, atol=1e-12)


@EVERY_KIND
def test_a_view_stands_between_the_code_and_the_parameter(kind: str) -> None:
    network = table.toy().double()
    network.hidden.weight.data = table.suited(kind, network.hidden.weight.data)
    view = View("(a p) q -> a (p q)", (("p", 2),))  # 12 x 96 -> 6 x 192
    before = network.hidden.weight.detach().clone()
    one = table.SAMPLE[kind]
    attach(network, "hidden.weight", view, one.encode(view.to_matrix(before)))
    expected = one.project(before.reshape(6, 192)).reshape(12, 96)
    assert torch.equal(network.hidden.weight, expected)
    assert list(coded(network)) == ["hidden.weight"]


@EVERY_KIND
def test_detaching_leaves_a_plain_parameter_with_the_decoded_weight(kind: str) -> None:
    network = table.toy()
    keys = set(network.state_dict())
    with torch.no_grad():
        code = table.SAMPLE[kind].encode(FILTERS.to_matrix(network.conv.weight).repeat(1, 2)[:, :4])
    attach(network, "conv.weight", FILTERS, code)
    held, outputs = network.conv.weight.detach().clone(), network(table.images())
    detach(network, "conv.weight")
    assert torch.equal(network.conv.weight, held)
    assert torch.equal(network(table.images()), outputs)
    assert network.conv.weight.is_leaf and network.conv.weight.requires_grad
    assert network.conv.weight.shape == (6, 1, 2, 2)
    assert not parametrize.is_parametrized(network.conv)
    assert set(network.state_dict()) == keys
    assert coded(network) == {}


def test_codes_are_found_by_the_name_of_their_parameter() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.Sequential(nn.Linear(2, 2)))
    attach(network, "1.0.weight", View(), TopK(1).encode(torch.ones(1, 4)))
    attach(network, "0.bias", View(), TopK(1).encode(torch.ones(1, 2)))
    assert sorted(coded(network)) == ["0.bias", "1.0.weight"]
    alone = nn.Linear(3, 2)
    attach(alone, "weight", View(), TopK(1).encode(torch.ones(1, 6)))
    assert list(coded(alone)) == ["weight"]


def test_autocast_does_not_round_a_product_of_factors() -> None:
    layer = nn.Linear(8, 6)
    attach(layer, "weight", View("o i -> o i"), LowRank(2).encode(layer.weight.detach()))
    plain = layer.weight.detach().clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.weight, plain)
