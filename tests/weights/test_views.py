"""Views: exact in both directions, as element-by-element loops say, and malformed or misfitting patterns are refused."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import table
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from table import Seen

from featherweight.errors import InputError
from featherweight.weights.views import View, ViewError

EACH = pytest.mark.parametrize("seen", table.VIEWS.values(), ids=table.VIEWS)


def numbered(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)


@EACH
def test_matrix_is_what_the_loops_give(seen: Seen) -> None:
    weight = numbered(seen.shape)
    expected = oracles.view_by_loops(weight.numpy(), seen.left, seen.right, seen.sizes)
    np.testing.assert_array_equal(View(seen.pattern, seen.given).to_matrix(weight).numpy(), expected)


@EACH
def test_weight_comes_back(seen: Seen) -> None:
    view, weight = View(seen.pattern, seen.given), numbered(seen.shape)
    assert torch.equal(view.to_weight(view.to_matrix(weight), seen.shape), weight)


@EACH
def test_matrix_comes_back(seen: Seen) -> None:
    view = View(seen.pattern, seen.given)
    matrix = numbered(view.matrix_shape(seen.shape))
    assert torch.equal(view.to_matrix(view.to_weight(matrix, seen.shape)), matrix)


@EACH
def test_shape_is_told_without_a_tensor(seen: Seen) -> None:
    view = View(seen.pattern, seen.given)
    assert view.matrix_shape(seen.shape) == tuple(view.to_matrix(numbered(seen.shape)).shape)


@EACH
def test_gradients_pass_in_both_directions(seen: Seen) -> None:
    view = View(seen.pattern, seen.given)
    weight = numbered(seen.shape).requires_grad_()
    factor = numbered(view.matrix_shape(seen.shape))
    (view.to_matrix(weight) * factor).sum().backward()
    assert torch.equal(weight.grad, view.to_weight(factor, seen.shape))


@EACH
def test_another_number_of_dimensions_is_refused(seen: Seen) -> None:
    if "..." in seen.pattern:
        assert View(seen.pattern).matrix_shape((3, *seen.shape)) == (1, 3 * math.prod(seen.shape))
        return
    with pytest.raises(ViewError, match="dimensions"):
        View(seen.pattern, seen.given).to_matrix(torch.zeros(1, *seen.shape))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
@settings(max_examples=40, deadline=None)
def test_any_order_and_split_of_axes_is_a_bijection(shape: list[int], data: st.DataObject) -> None:
    axes = [f"a{i}" for i in range(len(shape))]
    order = data.draw(st.permutations(axes))
    cut = data.draw(st.integers(0, len(axes)))
    view = View(f"{' '.join(axes)} -> ({' '.join(order[:cut])}) ({' '.join(order[cut:])})")
    weight = numbered(tuple(shape))
    sizes = dict(zip(axes, shape, strict=True))
    expected = oracles.view_by_loops(weight.numpy(), [(axis,) for axis in axes], [order[:cut], order[cut:]], sizes)
    matrix = view.to_matrix(weight)
    np.testing.assert_array_equal(matrix.numpy(), expected)
    assert torch.equal(view.to_weight(matrix, tuple(shape)), weight)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (2, 1, 3)])
def test_the_whole_tensor_is_one_row_whatever_its_shape(shape: tuple[int, ...]) -> None:
    view = View()
    matrix = view.to_matrix(numbered(shape))
    assert matrix.shape == (1, math.prod(shape))
    assert torch.equal(view.to_weight(matrix, shape), numbered(shape))


MALFORMED = {
    "no arrow": ("o i", ()),
    "two arrows": ("o i -> o i -> o i", ()),
    "one group": ("o i -> (o i)", ()),
    "three groups": ("o i h -> o i h", ()),
    "a lost axis": ("o i h -> o i", ()),
    "a new axis": ("o i -> o (i h)", ()),
    "an axis twice": ("o o -> o o", ()),
    "a size for no axis": ("o i -> o i", (("h", 2),)),
    "a size of nothing": ("(g h) i -> h (g i)", (("g", 0),)),
    "nothing": ("", ()),
    # einops would refuse these only at use, with an error of its own that no caller expects
    "a number for a name": ("1 o -> 1 o", ()),
    "a name that is none": ("o-x i -> o-x i", ()),
    "an open parenthesis": ("(o i j -> o (i j)", ()),
    "nested parentheses": ("(o (i)) j -> o (i j)", ()),
}


@pytest.mark.parametrize(("pattern", "sizes"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_pattern_is_refused_when_it_is_made(pattern: str, sizes: tuple[tuple[str, int], ...]) -> None:
    with pytest.raises(ViewError) as caught:
        View(pattern, sizes)
    assert repr(pattern) in str(caught.value)


MISFITS = {
    "does not divide": ("(g h) i -> h (g i)", (("g", 4),), (10, 3)),
    "too many unknown": ("(g h) i -> h (g i)", (), (12, 3)),
    "another size": ("(g h) i -> h (g i)", (("g", 4), ("h", 2)), (12, 3)),
    "too few dimensions": ("o i h w -> o (i h w)", (), (4, 3)),
}


@pytest.mark.parametrize(("pattern", "sizes", "shape"), MISFITS.values(), ids=MISFITS)
def test_a_pattern_that_does_not_fit_is_refused_in_every_method(
    pattern: str, sizes: tuple[tuple[str, int], ...], shape: tuple[int, ...]
) -> None:
    view = View(pattern, sizes)
    for attempt in (lambda: view.to_matrix(torch.zeros(shape)), lambda: view.matrix_shape(shape)):
        with pytest.raises(ViewError) as caught:
            attempt()
        assert pattern in str(caught.value)
        assert isinstance(caught.value, InputError)


def test_a_matrix_of_another_shape_is_refused() -> None:
    with pytest.raises(ViewError, match="is not a"):
        View("o i h w -> o (i h w)").to_weight(torch.zeros(4, 31), (4, 3, 2, 5))


AXES = " ".join(f"a{number}" for number in range(33))
NOT_TAKEN = {
    "long": "a" * 10**6 + " b -> b " + "a" * 10**6,
    "parentheses": "(" * 200_000 + " b -> b a",
    "blanks": "a b -> b a" + " " * 300,
    "axes": f"{AXES} -> () ({AXES})",
    "underscore": "_a b -> _a b",
    "a word of einops": "axis b -> b axis",
    "a word of Python": "if b -> b if",
    "a name of its own": "axis0 ... -> axis0 (...)",
}


@pytest.mark.parametrize("pattern", NOT_TAKEN.values(), ids=NOT_TAKEN)
def test_a_pattern_that_einops_would_not_take_is_refused_before_it_is_asked(pattern: str) -> None:
    with pytest.raises(InputError) as caught:
        View(pattern)
    assert len(str(caught.value)) < 1000
