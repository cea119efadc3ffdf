"""What was done to a network, as data that can be written to JSON and replayed on a fresh instance of the same class.

An edit holds names, numbers and lists of numbers: no code, no paths that are imported, no pickle. Replaying sets tensors and
whole-number attributes that the network already has, and replaces named modules by `nn.Identity`; anything else is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from featherweight.structure.entries import pick
from featherweight.structure.errors import EditMismatch

Number = int | tuple[int, ...]


@dataclass(frozen=True)
class Cut:
    """Of dimension `dim` of this tensor, `size` entries long, only `keep` stay.

    blocks  more than 1 for the columns of a grouped convolution: so many equal parts of dimension 0 have `size` entries each of
            their own (see `entries`), numbered part after part, and keep equally many
    """

    tensor: str
    dim: int
    size: int
    keep: tuple[int, ...]
    blocks: int = 1

    @property
    def left(self) -> int:
        """How long the dimension is afterwards."""
        return len(self.keep) // self.blocks

    @property
    def is_even(self) -> bool:
        """Does every block keep equally many entries, and at least one?"""
        numbers = [entry // self.size for entry in self.keep]
        return all(numbers.count(block) == self.left > 0 for block in range(self.blocks))


@dataclass(frozen=True)
class Attribute:
    """A whole number (or tuple of them) that a module holds: `before` becomes `after`."""

    module: str
    name: str
    before: Number
    after: Number


@dataclass(frozen=True)
class Edit:
    """One change of structure.

    kind        "cut" (units went), "drop" (a residual branch went)
    sites       site -> number of units kept, or the block's name; for reading, not needed to replay
    cuts        tensors that lose entries
    attributes  numbers that change
    identities  modules that become `nn.Identity()`
    """

    kind: str
    sites: tuple[tuple[str, int], ...] = ()
    cuts: tuple[Cut, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    identities: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data; lists of kept entries that several tensors share are written once."""
        keeps: dict[tuple[int, ...], int] = {}
        cuts = [
            [c.tensor, c.dim, c.size, keeps.setdefault(c.keep, len(keeps)), *([c.blocks] * (c.blocks > 1))] for c in self.cuts
        ]
        return {
            "kind": self.kind,
            "sites": dict(self.sites),
            "keeps": [list(keep) for keep in keeps],
            "cuts": cuts,
            "attributes": [[a.module, a.name, _plain(a.before), _plain(a.after)] for a in self.attributes],
            "identities": list(self.identities),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Edit:
        """Read `to_dict`; raises EditMismatch for anything that is not such data."""
        known = {"kind", "sites", "keeps", "cuts", "attributes", "identities"}
        extra, missing = sorted(set(data) - known), sorted(known - set(data))
        if extra or missing:
            raise EditMismatch(f"not an edit: unknown keys {extra}, missing keys {missing}; expected {sorted(known)}")
        if data["kind"] not in ("cut", "drop"):
            raise EditMismatch(f"unknown kind of edit {data['kind']!r}; known are 'cut' and 'drop'")
        try:
            keeps = [_numbers(keep) for keep in data["keeps"]]
            cuts = tuple(
                Cut(_text(t), _number(d), _number(s), keeps[_number(k)], *map(_number, blocks))
                for t, d, s, k, *blocks in data["cuts"]
            )
            attributes = tuple(Attribute(_text(m), _text(n), _either(b), _either(a)) for m, n, b, a in data["attributes"])
            sites = tuple((_text(name), _number(number)) for name, number in data["sites"].items())
            identities = tuple(_text(name) for name in data["identities"])
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            raise EditMismatch(f"not an edit: {error}") from error
        for cut in cuts:
            entries = cut.size * cut.blocks
            if not cut.keep or max(cut.keep) >= entries or list(cut.keep) != sorted(set(cut.keep)) or not cut.is_even:
                raise EditMismatch(
                    f"entries kept of {cut.tensor!r} must be rising numbers below {entries}, equally many of each of "
                    f"{cut.blocks} blocks"
                )
        return Edit(str(data["kind"]), sites, cuts, attributes, identities)


def _plain(number: Number) -> int | list[int]:
    return list(number) if isinstance(number, tuple) else number


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a whole number")
    return value


def _numbers(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is not a list of whole numbers")
    return tuple(_number(v) for v in value)


def _either(value: Any) -> Number:
    """A size or a shape; -1 stands for "what is left" in a shape."""
    number = as_number(value)
    if number is None or isinstance(value, tuple):
        raise ValueError(f"{value!r} is not a whole number or a list of them")
    return number


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a name")
    return value


@dataclass(frozen=True)
class Moved:
    """A tensor that a cut replaced: which entries of the old one the new one holds. new is None where the tensor went whole."""

    old: Tensor
    new: Tensor | None
    cuts: tuple[Cut, ...]

    def select(self, like_old: Tensor) -> Tensor:
        """The surviving entries of a tensor that has the shape of the old one (a momentum, a moment, an average)."""
        result = like_old
        for cut in self.cuts:
            result = pick(result, cut.dim, cut.size * cut.blocks, cut.keep)
        return result.clone() if result is like_old else result


def all_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under all their names, tied ones too."""
    return dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])


def attribute_tensor(model: nn.Module, name: str) -> Tensor | None:
    """A tensor that a module holds as a plain attribute."""
    path, _, leaf = name.rpartition(".")
    try:
        value = vars(model.get_submodule(path)).get(leaf)
    except AttributeError:
        return None
    return value if isinstance(value, Tensor) else None


def apply(model: nn.Module, edit: Edit) -> tuple[Moved, ...]:
    """Carry out an edit on `model` itself. Returns what became of its tensors. Everything is checked before anything is
    changed.
    """
    tensors = all_tensors(model)
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    problems: list[str] = []
    work: dict[str, list[Cut]] = {}
    for cut in edit.cuts:
        found = tensors.get(cut.tensor)
        if found is None:
            found = attribute_tensor(model, cut.tensor)
        if found is None:
            problems.append(f"the network has no tensor {cut.tensor!r}")
        elif found.dim() <= cut.dim or found.shape[cut.dim] != cut.size or found.shape[0] % cut.blocks:
            parts = f" in {cut.blocks} blocks" if cut.blocks > 1 else ""
            problems.append(
                f"{cut.tensor!r} has shape {tuple(found.shape)}; the edit was made for {cut.size} entries along dimension "
                f"{cut.dim}{parts}"
            )
        else:
            work.setdefault(cut.tensor, []).append(cut)
    modules = dict(model.named_modules(remove_duplicate=False))
    for attribute in edit.attributes:
        owner = modules.get(attribute.module)
        if owner is None:
            problems.append(f"the network has no module {attribute.module!r}")
        elif _read(owner, attribute.name) != attribute.before:
            held = _read(owner, attribute.name)
            problems.append(
                f"{attribute.module + '.' if attribute.module else ''}{attribute.name} is {held}; the edit was made for "
                f"{attribute.before}"
            )
    problems += [f"the network has no module {name!r}" for name in edit.identities if name not in modules]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise EditMismatch(
            f"the edit does not fit this network: {problems[0]}{more}. Build the network as it was before it was compressed"
        )
    moved: list[Moved] = []
    for name, cuts in work.items():
        old = tensors[name] if name in tensors else attribute_tensor(model, name)
        assert old is not None
        new = Moved(old, None, tuple(cuts)).select(old.detach()).contiguous()
        result: Tensor = nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
        vars(result).update(vars(old))  # the marks that the user's code put on it
        moved.append(Moved(old, result, tuple(cuts)))
        for other in names.get(id(old), [name]):
            path, _, leaf = other.rpartition(".")
            setattr(modules[path], leaf, result)
    for attribute in edit.attributes:
        held = vars(modules[attribute.module])[attribute.name]
        after: Any = attribute.after
        setattr(modules[attribute.module], attribute.name, type(held)(after) if isinstance(held, (tuple, list)) else after)
    for name in edit.identities:
        path, _, leaf = name.rpartition(".")
        parent = modules[path]
        parent._modules[leaf] = nn.Identity().train(modules[name].training)
    if edit.identities:
        left = {id(t) for t in all_tensors(model).values()}
        moved += [Moved(t, None, ()) for t in {id(t): t for t in tensors.values()}.values() if id(t) not in left]
    return tuple(moved)


def _read(module: nn.Module, name: str) -> Number | None:
    """A whole-number attribute the module itself holds; None where there is none."""
    return as_number(vars(module).get(name))


def as_number(value: Any) -> Number | None:
    """An int or a tuple or list of ints; None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, (tuple, list)) and value and all(isinstance(v, int) and not isinstance(v, bool) for v in value):
        return tuple(value)
    return None


def replay(model: nn.Module, edits: Iterable[Edit | Mapping[str, Any]]) -> nn.Module:
    """Give a fresh `model` the structure that these edits made, in order; afterwards `load_state_dict(strict=True)` works.

    Nothing is traced and no data is needed. Raises EditMismatch, naming the first difference, when the network is not the one
    the edits were made for; what was applied before the error stays applied.
    """
    for edit in edits:
        apply(model, edit if isinstance(edit, Edit) else Edit.from_dict(edit))
    return model
