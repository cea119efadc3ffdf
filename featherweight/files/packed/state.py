"""The tensors of a network's state, coded one after the other, each in the light of those before it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from featherweight.errors import ArtifactError, InputError
from featherweight.files.packed.coder import Coder
from featherweight.files.packed.entries import Budget, Layout, code_dense, code_marks, code_places
from featherweight.files.packed.floats import as_words, code_floats, code_planes
from featherweight.files.packed.raw_bytes import Bulk
from featherweight.weights.codes import Code
from featherweight.weights.parametrized import owner
from featherweight.weights.views import View

ORDERED = 1 << 22  # entries up to which a matrix is followed back to its parameter
SMALL_INTEGERS = 4096


@dataclass
class Known:
    """What the tensors so far tell of those to come.

    outputs  the units of the last weight: does each have any input; the next weight's inputs, and its own bias, follow them
    modules  the same for one-dimensional tensors, by module: a batch norm's buffers follow its weight
    """

    outputs: NDArray[np.int64] | None = None
    modules: dict[str, NDArray[np.int64]] = field(default_factory=dict)


def code_coded(
    coder: Coder,
    bulk: Bulk,
    budget: Budget,
    known: Known,
    name: str,
    shape: tuple[int, ...],
    network: nn.Module,
    state: Mapping[str, Tensor] | None,
) -> dict[str, Tensor]:
    """All tensors of the code on parameter `name`, under their names in the state."""
    module, attribute = owner(network, name)
    path = f"{name.rpartition('.')[0]}.parametrizations.{attribute}".lstrip(".")
    listed: parametrize.ParametrizationList = getattr(module.parametrizations, attribute)
    viewed: Any = listed[0]
    code: Code = viewed.code
    layout = _layout(name, shape, viewed.view, (code.rows, code.cols), known)
    done: dict[str, Tensor] = {}
    places: NDArray[np.int64] | None = None  # of the entries in the matrix
    symbols: NDArray[np.int64] | None = None  # of each of them
    ranges = code.ranges()
    for buffer, tensor in code.state_dict().items():  # in the types of files
        key = f"{path}.0.code.{buffer}"
        given = None if state is None else state[key]
        if buffer not in ranges:
            coder.section = f"{name}: values"
            done[key] = code_tensor(coder, bulk, budget, given, tuple(tensor.shape), tensor.dtype)
            continue
        limit, ascending = ranges[buffer]
        numbers = None if given is None else _legal(key, given, limit, ascending)
        count = tensor.numel()
        if ascending:
            coder.section = f"{name}: places"
            if count > limit:
                raise ArtifactError(f"the file is damaged: {count} entries of {name!r} in {limit} places")
            whole = layout if limit == layout.size else Layout((1, limit, 1), (1, limit))
            found = code_places(coder, bulk, budget, numbers, whole, count)
            places = found if limit == layout.size else (found[:, None] * code.cols + np.arange(code.cols)).reshape(-1)
        elif places is not None and count == places.size:
            coder.section = f"{name}: symbols"
            found = symbols = code_marks(coder, bulk, budget, numbers, places, layout, limit)
        elif count == layout.size:
            coder.section = f"{name}: symbols"
            found = symbols = code_dense(coder, bulk, budget, numbers, layout, limit)
        else:
            raise InputError(f"the code of {name!r} has a buffer {buffer!r} that a packed file cannot hold")
        done[key] = torch.from_numpy(np.require(found, requirements=["C", "W"])).to(tensor.dtype).reshape(tensor.shape)
    coder.section = f"{name}: values"
    for free, tensor in listed.named_parameters(recurse=False):
        key = f"{path}.{free}"
        given = None if state is None else state[key]
        done[key] = code_tensor(coder, bulk, budget, given, tuple(tensor.shape), tensor.dtype)
    if places is None and symbols is not None and symbols.size <= ORDERED:  # dense symbols: entries that are not zero
        tables = [tensor for key, tensor in done.items() if tensor.is_floating_point() and tensor.dim() == 1]
        living = [table.numpy(force=True) != 0 for table in tables[:1]]
        indexes = living and int(symbols.max(initial=0)) < living[0].size  # a table of shared values, not a scale
        places = np.flatnonzero(living[0][symbols]) if indexes and not bool(living[0].all()) else None
    _learn(known, name, shape, None if places is None else layout, places)
    return done


def _layout(name: str, shape: tuple[int, ...], view: View, matrix: tuple[int, int], known: Known) -> Layout:
    size = matrix[0] * matrix[1]
    left, _, right = view.pattern.partition("->")
    same = re.findall(r"[\w.]+", left) == re.findall(r"[\w.]+", right)
    rows = shape[0] if shape else 1
    if not same and size > ORDERED:
        return Layout((matrix[0], matrix[1], 1), matrix)
    order = None
    if not same:
        order = view.to_matrix(torch.arange(size).view(shape)).reshape(-1).numpy()
    if len(shape) < 2:
        alive = known.outputs if known.outputs is not None and known.outputs.size == size else None
        return Layout((size, 1, 1), (1, size), order, (_hint(alive), None))
    channels, cells = shape[1], size // (rows * shape[1]) if size else 1
    inputs = known.outputs
    if inputs is not None and inputs.size > 1 and channels % inputs.size == 0 and (cells == 1 or channels == inputs.size):
        channels, cells = inputs.size, cells * (channels // inputs.size)
    else:
        inputs = None
    return Layout((rows, channels, cells), (rows, size // rows) if same else matrix, order, (None, _hint(inputs)))


def _hint(alive: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    """None where nothing is dead, so that no contrast has to be stored."""
    return alive if alive is not None and bool((alive == 0).any()) and bool((alive > 0).any()) else None


def _learn(known: Known, name: str, shape: tuple[int, ...], layout: Layout | None, places: NDArray[np.int64] | None) -> None:
    """Note which outputs of a weight have any entry; all of them if `places` is None."""
    if len(shape) < 2:
        return
    if places is None or layout is None or (layout.order is None and layout.matrix[0] != shape[0]):
        known.outputs = np.ones(shape[0], np.int64)
    else:
        width = layout.size // shape[0]
        known.outputs = np.bincount(layout.places(places) // width, minlength=shape[0])
    known.modules[name.rpartition(".")[0]] = known.outputs


def code_parameter(
    coder: Coder, bulk: Bulk, budget: Budget, known: Known, name: str, given: Tensor | None, expected: Tensor
) -> Tensor:
    """A parameter without a code."""
    coder.section = f"{name}: values"
    shape = tuple(expected.shape)
    alive = known.outputs if len(shape) == 1 else None
    tensor = code_tensor(coder, bulk, budget, given, shape, expected.dtype, alive)
    if len(shape) == 1 and alive is not None and alive.size == shape[0]:
        known.modules[name.rpartition(".")[0]] = alive
    _learn(known, name, shape, None, None)
    return tensor


def code_tensor(
    coder: Coder,
    bulk: Bulk,
    budget: Budget,
    given: Tensor | None,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    alive: NDArray[np.int64] | None = None,
) -> Tensor:
    """Any tensor, bitwise."""
    count = int(np.prod(shape, dtype=np.int64))
    flat = None if given is None else given.contiguous().reshape(-1)
    live = None if alive is None else alive > 0
    if dtype.is_floating_point and dtype.itemsize >= 2:
        single = flat is not None and same(flat, flat.float().to(dtype))
        if coder.choice(int(not single), "double", 2) == 0:
            words = None if flat is None else as_words(flat.float().numpy())
            found = code_floats(coder, bulk, budget, words, count, live)
            return torch.from_numpy(found.view(np.float32).copy()).to(dtype).reshape(shape)
    elif not dtype.is_floating_point and not dtype.is_complex and count <= SMALL_INTEGERS:
        if dtype == torch.uint64:
            raise InputError("tensors of type uint64 cannot be packed")
        numbers = [0] * count if flat is None else flat.tolist()
        budget.spend(8 * count)
        read = [coder.signed(int(number), "integer value") for number in numbers]
        limits = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
        if any(not limits[0] <= number <= limits[1] for number in read):
            raise ArtifactError(f"the file is damaged: {coder.section} do not fit {dtype}")
        return torch.tensor(read, dtype=torch.int64).to(dtype).reshape(shape)
    planes = None if flat is None else _bytes(flat).numpy().reshape(count, dtype.itemsize)
    raw = code_planes(coder, bulk, planes, count, dtype.itemsize)
    return torch.from_numpy(np.ascontiguousarray(raw).reshape(-1)).view(dtype).reshape(shape).clone()


def _legal(key: str, given: Tensor, limit: int, ascending: bool) -> NDArray[np.int64]:
    numbers: NDArray[np.int64] = given.reshape(-1).numpy()
    numbers = numbers.astype(np.int64) if ascending or numbers.size <= ORDERED else numbers
    if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) < limit:
        raise InputError(f"{key!r} has entries outside 0 .. {limit - 1}: the snapshot is damaged")
    if ascending and bool((np.diff(numbers) <= 0).any()):
        raise InputError(f"{key!r} is not strictly ascending: the snapshot is damaged")
    return numbers


def same(one: Tensor, two: Tensor) -> bool:
    """Equal bit for bit, NaNs included."""
    return one.shape == two.shape and one.dtype == two.dtype and torch.equal(_bytes(one), _bytes(two))


def _bytes(tensor: Tensor) -> Tensor:
    return torch.cat([tensor.reshape(-1)]).view(torch.uint8)  # cat: a fresh tensor whose stride is 1, empty ones too
