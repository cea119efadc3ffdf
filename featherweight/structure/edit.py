"""What was done to a network, as data that can be written to JSON and replayed on a fresh instance of the same class.

An edit holds names, numbers and lists of numbers: no code, no paths that are imported, no pickle. Replaying cuts tensors that the
network has, makes whole-number attributes of its modules smaller where a cut explains it (see `numbers`), and replaces named
modules that hold parameters by `nn.Identity`; anything else is refused. The work is bounded by the size of the network, whatever
the edit says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from featherweight.errors import short
from featherweight.structure.entries import Cut, pick
from featherweight.structure.errors import EditMismatch
from featherweight.structure.numbers import Number, Numbers, as_number
from featherweight.structure.plain import NotPlain, check_plain

LARGEST = 2**53  # of a number in an edit
UNINITIALIZED = (UninitializedParameter, UninitializedBuffer)


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
        try:
            check_plain(data, bounded=False)  # `replay` bounds it by the network
        except NotPlain as error:
            raise EditMismatch(f"not an edit: {error}") from error
        if not isinstance(data, dict):
            raise EditMismatch(f"not an edit: it must be an object, it is {short(data)}")
        extra, missing = set(data) - KEYS, sorted(KEYS - set(data))
        if extra or missing:
            odd = f"unknown key {short(min(map(str, extra)))}" if extra else f"missing keys {missing}"
            raise EditMismatch(f"not an edit: {odd}; expected {sorted(KEYS)}")
        if data["kind"] not in ("cut", "drop"):
            raise EditMismatch(f"unknown kind of edit {short(data['kind'])}; known are 'cut' and 'drop'")
        try:
            keeps = [_rising(keep) for keep in data["keeps"]]
            cuts = tuple(
                Cut(_text(t), _number(d), _number(s), keeps[_number(k)], *map(_number, blocks))
                for t, d, s, k, *blocks in data["cuts"]
            )
            attributes = tuple(Attribute(_text(m), _text(n), _either(b), _either(a)) for m, n, b, a in data["attributes"])
            sites = tuple((_text(name), _number(number)) for name, number in data["sites"].items())
            identities = tuple(_text(name) for name in data["identities"])
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            raise EditMismatch(f"not an edit: {str(error)[:200]}") from error
        seen: set[tuple[int, int, int]] = set()  # cuts share lists: each is looked at once for each size
        for cut in cuts:
            if (key := (id(cut.keep), cut.size, cut.blocks)) in seen:
                continue
            seen.add(key)
            if cut.keep[-1] >= cut.size * cut.blocks or not cut.is_even:
                raise EditMismatch(
                    f"entries kept of {short(cut.tensor)} must be rising numbers below {cut.size * cut.blocks}, equally many of "
                    f"each of {cut.blocks} blocks"
                )
        return Edit(str(data["kind"]), sites, cuts, attributes, identities)


KEYS = {"kind", "sites", "keeps", "cuts", "attributes", "identities"}


def _plain(number: Number) -> int | list[int]:
    return list(number) if isinstance(number, tuple) else number


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < LARGEST:
        raise ValueError(f"{short(value)} is not a whole number from 0 to 2^53")
    return value


def _rising(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{short(value)} is not a list of whole numbers")
    before = -1
    for number in value:
        if type(number) is not int or not before < number < LARGEST:
            raise ValueError(f"the entries kept must be rising whole numbers; {short(number)} follows {before}")
        before = number
    return tuple(value)


def _either(value: Any) -> Number:
    """A size or a shape; -1 stands for "what is left" in a shape."""
    number = as_number(value)
    if number is None or isinstance(value, tuple):
        raise ValueError(f"{short(value)} is not a whole number or a list of them")
    return number


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{short(value)} is not a name")
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
    owner = dict(model.named_modules(remove_duplicate=False)).get(path)
    value = None if owner is None else vars(owner).get(leaf)
    return value if isinstance(value, Tensor) else None


def apply(model: nn.Module, edit: Edit, *, values: bool = True) -> tuple[Moved, ...]:
    """Carry out an edit on `model` itself. Returns what became of its tensors. Everything is checked before anything is
    changed.

    values  False: a state is loaded afterwards, and parameters that are cut hold anything until then. A thousand edits of a file
            then cost no copies
    """
    tensors = all_tensors(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    work, problem = _work(edit.cuts, tensors, modules)
    problem = problem or _numbers_problem(edit.attributes, modules, Numbers(tensors, edit.cuts))
    problem = problem or _identities_problem(edit.identities, modules)
    if problem:
        raise EditMismatch(f"the edit does not fit this network: {problem}. Build the network as it was before it was compressed")
    moved: list[Moved] = []
    for name, (old, cuts) in work.items():
        if values or not isinstance(old, nn.Parameter):
            new = Moved(old, None, tuple(cuts)).select(old.detach()).contiguous()
        else:
            shorter = {cut.dim: cut.left for cut in cuts}
            new = old.detach().new_empty([shorter.get(dim, size) for dim, size in enumerate(old.shape)])
        result: Tensor = nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
        vars(result).update(vars(old))  # the marks that the user's code put on it
        moved.append(Moved(old, result, tuple(cuts)))
        for other in names.get(id(old), [name]):
            path, _, leaf = other.rpartition(".")
            owner = modules[path]
            # the registries, not setattr, which a class of the user may have made its own
            registries: tuple[dict[str, Any], ...] = (owner._parameters, owner._buffers, owner.__dict__)
            next(registry for registry in registries if leaf in registry)[leaf] = result
    for attribute in edit.attributes:
        numbers = modules[attribute.module].__dict__
        after: Any = attribute.after
        held = numbers[attribute.name]
        numbers[attribute.name] = (
            list(after) if isinstance(held, list) else torch.Size(after) if isinstance(held, torch.Size) else after
        )
    for name in edit.identities:
        path, _, leaf = name.rpartition(".")
        modules[path]._modules[leaf] = nn.Identity().train(modules[name].training)
    if edit.identities:
        left = {id(t) for t in all_tensors(model).values()}
        moved += [Moved(t, None, ()) for t in {id(t): t for t in tensors.values()}.values() if id(t) not in left]
    return tuple(moved)


Work = dict[str, tuple[Tensor, list[Cut]]]  # name -> the tensor of that name, and its cuts


def _work(cuts: Iterable[Cut], tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module]) -> tuple[Work, str]:
    """The cuts by tensor, and what is wrong with the first that does not fit."""
    work: Work = {}
    done: set[tuple[int, int]] = set()
    for cut in cuts:
        shown = short(cut.tensor)
        path, _, leaf = cut.tensor.rpartition(".")
        found = tensors.get(cut.tensor)
        if found is None and path in modules:
            found = vars(modules[path]).get(leaf)
        if not isinstance(found, Tensor) or isinstance(found, UNINITIALIZED):
            return work, f"the network has no tensor {shown}"
        if found.dim() <= cut.dim or found.shape[cut.dim] != cut.size or cut.blocks < 1 or found.shape[0] % cut.blocks:
            parts = f" in {cut.blocks} blocks" if cut.blocks > 1 else ""
            return work, (
                f"{shown} has shape {tuple(found.shape)}; the edit was made for {cut.size} entries along dimension "
                f"{cut.dim}{parts}"
            )
        if len(cut.keep) >= cut.size * cut.blocks:
            return work, f"it leaves {shown} as large as it is along dimension {cut.dim}"
        if (id(found), cut.dim) in done:
            return work, f"it cuts {shown} twice along dimension {cut.dim}"
        done.add((id(found), cut.dim))
        work.setdefault(cut.tensor, (found, []))[1].append(cut)
    if len({id(tensor) for tensor, _ in work.values()}) < len(work):
        return work, "it cuts one tensor under two of its names"
    return work, ""


def _numbers_problem(attributes: Iterable[Attribute], modules: Mapping[str, nn.Module], numbers: Numbers) -> str:
    done: set[tuple[int, str]] = set()
    for attribute in attributes:
        path, owner = attribute.module, modules.get(attribute.module)
        if owner is None:
            return f"the network has no module {short(path)}"
        shown = short(f"{path}.{attribute.name}" if path else attribute.name)
        held = as_number(vars(owner).get(attribute.name))
        if held is None:
            return f"the network has no whole number {shown}"
        if held != attribute.before:
            return f"{shown} is {short(held)}; the edit was made for {short(attribute.before)}"
        if (id(owner), attribute.name) in done:
            return f"it changes {shown} twice"
        done.add((id(owner), attribute.name))
        if not numbers.allows(path, owner, attribute.name, attribute.before, attribute.after):
            pair = " to ".join(str(n) if isinstance(n, int) else short(n) for n in (attribute.before, attribute.after))
            return f"its cuts do not explain that {shown} goes from {pair}"
    return ""


def _identities_problem(identities: Iterable[str], modules: Mapping[str, nn.Module]) -> str:
    done: set[str] = set()
    for name in identities:
        if name not in modules:
            return f"the network has no module {short(name)}"
        if not replaceable(name, modules[name]):
            return f"it replaces {short(name) if name else 'the network itself'}, which holds no branch"
        if name in done:
            return f"it replaces {short(name)} twice"
        done.add(name)
    return ""


def replaceable(path: str, module: nn.Module) -> bool:
    """May this module become the identity? A part of the network that holds a parameter, as a branch does."""
    return bool(path) and next(module.parameters(), None) is not None


def replay(model: nn.Module, edits: Iterable[Edit | Mapping[str, Any]], *, values: bool = True) -> nn.Module:
    """Give a fresh `model` the structure that these edits made, in order; afterwards `load_state_dict(strict=True)` works.

    Nothing is traced and no data is needed. Raises EditMismatch, naming the first difference, when the network is not the one
    the edits were made for; what was applied before the error stays applied. `values`: see `apply`.
    """
    for edit in edits:
        if not isinstance(edit, Edit):
            _bounded(model, edit)
            edit = Edit.from_dict(edit)
        apply(model, edit, values=values)
    return model


def _bounded(model: nn.Module, data: Mapping[str, Any]) -> None:
    """Raises EditMismatch where the lists of an edit are longer than those of any edit of this network, before they are read."""
    shapes = [tuple(tensor.shape) for tensor in _every_tensor(model)]
    entries = sum(sum(shape) + shape[0] * shape[1] if len(shape) > 1 else sum(shape) for shape in shapes)
    modules = dict(model.named_modules(remove_duplicate=False))
    numbers = sum(as_number(value) is not None for module in modules.values() for value in vars(module).values())
    most = {"keeps": sum(map(len, shapes)), "cuts": sum(map(len, shapes)), "attributes": numbers, "identities": len(modules)}
    lists = {key: data.get(key) for key in KEYS} if isinstance(data, Mapping) else {}
    for key, limit in {**most, "sites": entries}.items():
        if isinstance(held := lists.get(key), list | dict) and len(held) > limit:
            raise EditMismatch(f"the edit has {len(held)} {key}; no edit of this network has more than {limit}")
    keeps = lists.get("keeps")
    kept = sum(len(keep) for keep in keeps if isinstance(keep, list)) if isinstance(keeps, list) else 0
    if kept > entries:
        raise EditMismatch(f"the edit keeps {kept} entries, more than the tensors of this network have along all dimensions")


def _every_tensor(model: nn.Module) -> Iterable[Tensor]:
    """Parameters, buffers and plain attributes, each once for each name; those without a shape yet are left out."""
    for module in model.modules():
        for value in [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]:
            if isinstance(value, Tensor) and not isinstance(value, UNINITIALIZED):
                yield value
