"""One walk over the exported graph that gives every tensor its planes (see `labels`), by a table of rules, one per kind of
operation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from featherweight.structure.balance import Even, balance
from featherweight.structure.capture import Captured, overlapping
from featherweight.structure.labels import Labels, Planes
from featherweight.structure.nodes import as_int, ints, operation, shape_of
from featherweight.structure.values import ALWAYS, NEVER, Count, Factor, Reading, Value, tensors_in

Rule = Callable[["Walk", fx.Node, dict[str, Any]], Any]

# operations that make entries of their own, or take a part of a tensor's: as many as the code says, which may follow the input
_MAKES = (
    "zeros ones full new_zeros new_ones new_full empty new_empty expand expand_as broadcast_to repeat tile repeat_interleave pad "
    "constant_pad_nd"
)
_TAKES = (
    "slice narrow select split split_with_sizes chunk unbind unsafe_split unsafe_chunk unsafe_split_with_sizes slice_copy "
    "select_copy index index_select tensor_split"
)
MAKES, TAKES = frozenset(_MAKES.split()), frozenset(_TAKES.split())
FOLLOWS = "how much of it is read follows the size of the input"
UNREAD = "the network does not read these entries on an input of this size; on a larger one it may"


@dataclass
class Walk:
    """The state of the walk: labels, a value per node, and what is learnt on the way.

    counted  grouped convolutions (nodes) whose groups only have to lose equally many channels, not the same places
    grouped  the other grouped convolutions that could be treated so -> the planes of their input and output channels
    training  the walk over the graph of training mode, where that reads more, with the same labels and tensors
    varying  dimensions of nodes that follow the size of the input (see `lengths`): nothing of them goes
    divided  (tensor, dimension) of which an entry must not be 0 throughout, since the network divides by its size
    doubtful  what may follow it, as (node, its planes), as long as nobody has looked at another size
    """

    captured: Captured
    soft: bool
    counted: frozenset[str] = frozenset()
    labels: Labels = field(default_factory=Labels)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    tensors: dict[str, Value] = field(default_factory=dict)
    counts: list[Count] = field(default_factory=list)
    uncounted: dict[str, int] = field(default_factory=dict)
    readings: list[Reading] = field(default_factory=list)
    softened: list[tuple[str, Planes]] = field(default_factory=list)
    even: list[Even] = field(default_factory=list)
    grouped: dict[str, tuple[Planes, Planes]] = field(default_factory=dict)
    owner: dict[fx.Node, str] = field(default_factory=dict)
    training: Walk | None = None
    varying: Mapping[str, frozenset[int]] = field(default_factory=dict)
    divided: set[tuple[str, int]] = field(default_factory=set)
    doubtful: list[tuple[fx.Node, Planes]] = field(default_factory=list)
    _taken: dict[tuple[fx.Node, int], tuple[set[fx.Node], NDArray[np.bool_]]] = field(default_factory=dict)
    _root: dict[fx.Node, fx.Node] = field(default_factory=dict)
    _aliases: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    _depends: set[fx.Node] = field(default_factory=set)

    # ---- naming

    def module_of(self, node: fx.Node) -> str:
        """The path of the module whose forward made this node."""
        stack = node.meta.get("nn_module_stack") or {}
        return next((str(path) for path, _ in reversed(stack.values())), "")

    def root_of(self, node: fx.Node) -> fx.Node:
        """The node whose memory this one is a view of."""
        return self._root.get(node, node)

    def where(self, node: fx.Node) -> str:
        """`node in module`, for reasons."""
        module = self.module_of(node)
        return f"{operation(node)} in {module}" if module else operation(node)

    # ---- planes

    def freeze(self, value: Any, dims: Sequence[int], node: fx.Node, reason: str) -> None:
        """No entry along these dimensions ever goes. The frozen planes stay, for what is tied to them inherits the reason."""
        for d in dims:
            if value.planes[d]:
                self.labels.freeze(value.planes[d], f"{reason} ({self.where(node)})")

    def live(self, value: Value, dim: int) -> Planes:
        """The planes of a dimension, resolved; empty when nothing of it can go."""
        resolved = self.labels.resolve(value.planes[dim])
        if resolved:
            value.planes[dim] = resolved
        return resolved

    def equal(self, parts: Sequence[tuple[Value, int]], node: fx.Node, reason: str) -> Planes:
        """These dimensions must lose the same entries; size 1 beside larger ones is a broadcast and says nothing. The planes
        agreed on.
        """
        size = max(value.shape[dim] for value, dim in parts)
        full = [(value, dim) for value, dim in parts if value.shape[dim] == size]
        first = full[0][0].planes[full[0][1]]
        for value, dim in full[1:]:
            other = value.planes[dim]
            a, b = self.labels.resolve(first), self.labels.resolve(other)
            if a or b:
                # where nothing of one can go, the other is frozen for the same reason
                inherited = self.labels.reasons(other if a else first) if not (a and b) else []
                self.labels.equal(a, b, inherited[0] if inherited else f"{reason} ({self.where(node)})")
            first = first or other
        return self.labels.resolve(first) or first

    # ---- counting

    def count(self, node: fx.Node, factors: Sequence[Factor], times: int = 1) -> None:
        self.counts.append(Count(node.name, self.module_of(node), times, tuple(factors), node in self._depends))

    def factor(self, value: Value, dim: int) -> Factor:
        return Factor(value.planes[dim], value.shape[dim])

    # ---- the walk

    def run(self, rules: dict[Any, Rule]) -> None:
        """Visit every node once, in order. Constraints are kept by joining labels, so nothing has to be visited twice."""
        places = iter(self.captured.sources)
        shared = overlapping(self.captured.tensors)
        training = self.captured.training
        unread = set(self.captured.tensors) - self.captured.read() - (training.read() if training is not None else set())
        whole = shared | unread
        for node in self.captured.module.graph.nodes:
            if node.op == "placeholder":
                kind, name = next(places)
                self.values[node] = self._source(node, kind, name, whole)
                if kind in ("parameter", "buffer", "constant"):
                    self.owner[node] = name
                else:
                    self._depends.add(node)
            elif node.op == "output":
                self._output(node)
            elif node.op == "get_attr":
                self.values[node] = None
            elif node.op == "call_function":
                if any(a in self._depends for a in node.all_input_nodes):
                    self._depends.add(node)
                self._call(node, rules)
        if training is not None:
            # what training mode reads is tied to what it reads there; it is neither counted nor rewritten
            self.training = Walk(
                training, self.soft, self.counted, self.labels, tensors=self.tensors, even=self.even, varying=self.varying
            )
            self.training.run(rules)
            self.softened += self.training.softened
            self.divided |= self.training.divided
        self._freeze_unread()
        if training is None:
            balance(self.labels, self.even)

    def stuck(self) -> frozenset[str]:
        """Grouped convolutions, as they were treated, of whose input or output channels nothing can go, or all at once only."""

        def fixed(planes: Planes) -> bool:
            return all(len(np.unique(plane[plane > 0])) < 2 for plane in self.labels.resolve(planes))

        return frozenset(name for name, sides in self.grouped.items() if any(side and fixed(side) for side in sides))

    def _source(self, node: fx.Node, kind: str, name: str, whole: set[str]) -> Any:
        """The value of a placeholder; tensors in `whole` have no units."""
        shape = shape_of(node)
        if shape is None:
            return None
        if kind not in ("parameter", "buffer", "constant"):
            return Value.plain(shape)
        if name in self.tensors:
            return self.tensors[name].like()
        value = Value.plain(shape)
        tensor = self.captured.tensors[name]
        if kind == "constant" and not tensor.is_floating_point():
            # indices made in the code: their entries matter, they are not units
            value.known = tensor.detach().cpu() if tensor.device.type != "meta" else None
        elif name in whole:
            pass
        else:
            for d, size in enumerate(shape):
                if size > 1:
                    value.planes[d] = [self.labels.fresh(size)]
                if kind == "parameter":
                    value.zero[d] = frozenset({frozenset({(name, d)})})
                if all(other == 1 for e, other in enumerate(shape) if e != d):
                    value.constant[d] = ALWAYS  # a vector: its entries do not depend on the input
        self.tensors[name] = value
        result = value.like()
        result.known = value.known
        return result

    def _output(self, node: fx.Node) -> None:
        for argument in node.all_input_nodes:
            for value in tensors_in(self.values.get(argument)):
                self.freeze(value, range(len(value.shape)), node, "an output of the network")

    def _call(self, node: fx.Node, rules: dict[Any, Rule]) -> None:
        target: Any = node.target
        if getattr(target, "__module__", "") == "_operator" or not isinstance(target, torch._ops.OpOverload):
            self.values[node] = self._python(node)
            return
        bound = self.bind(node)
        rule = rules.get(target.overloadpacket) or rules.get(operation(node))
        if rule is None and torch.Tag.pointwise in target.tags:
            rule = rules["pointwise"]
        if rule is None:
            self.values[node] = self.opaque(node, "the operation has no rule")
        else:
            self.values[node] = rule(self, node, bound)
        self._follow(node, bound)
        self._evaluate(node)
        self._alias(node, bound)

    # ---- what follows the size of the input

    def take(self, node: fx.Node, dim: int, positions: NDArray[np.int64]) -> None:
        """`node` reads these entries of its first argument along `dim`."""
        source: Any = node.args[0]
        shape = shape_of(source)
        if source in self._depends or shape is None:
            return
        users, read = self._taken.setdefault((source, dim), (set(), np.zeros(shape[dim], dtype=bool)))
        users.add(node)
        read[positions] = True

    def _freeze_unread(self) -> None:
        """Entries of the network's own tensors that nobody takes, where all that is done with them is to take some."""
        for (source, dim), (users, read) in self._taken.items():
            value = self.values[source]
            if not read.all() and users == set(source.users) and isinstance(value, Value):
                self.labels.freeze([plane[~read] for plane in value.planes[dim]], f"{UNREAD} ({self.where(source)})")

    def _follow(self, node: fx.Node, bound: dict[str, Any]) -> None:
        """Freeze what is known to follow the size of the input; note what may."""
        name = operation(node)
        if name not in MAKES and name not in TAKES:
            return
        source: Any = bound.get("self") if name in TAKES and node.args[0] not in self._depends else None
        dims = self.varying.get(node.name, frozenset())
        for value in tensors_in(self.values[node]):
            self.freeze(value, [d for d in dims if d < len(value.shape)], node, FOLLOWS)
            if name in MAKES:
                self.doubtful += [(node, planes) for planes in value.planes if planes]
        if isinstance(source, Value):
            along = int(bound.get("dim") or 0) % max(1, len(source.shape))
            if dims and name not in ("index", "select", "unbind"):
                self.freeze(source, [along], node, FOLLOWS)
            self.doubtful += [(node, planes) for planes in source.planes if planes]

    def _evaluate(self, node: fx.Node, limit: int = 1 << 20) -> None:
        """Integers computed from nothing but numbers in the code (the order of a channel shuffle) are computed here, so that
        they are known.
        """
        value = self.values[node]
        if not isinstance(value, Value) or value.known is not None or prod(value.shape) > limit:
            return
        meta = node.meta["val"]
        inputs = [self.values.get(n) for n in node.all_input_nodes]
        if meta.dtype not in (torch.int64, torch.int32, torch.bool) or any(
            not isinstance(v, Value) or v.known is None for v in inputs
        ):
            return
        if operation(node).endswith("_") or operation(node).startswith(("rand", "empty", "new_empty")):
            return
        known = {n: v.known for n, v in zip(node.all_input_nodes, inputs, strict=True) if isinstance(v, Value)}
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), known.__getitem__)
        target: Any = node.target
        value.known = target(*args, **{name: v for name, v in kwargs.items() if name != "device"})

    def _python(self, node: fx.Node) -> Any:
        if getattr(node.target, "__name__", "") == "getitem":
            container = self.values.get(node.args[0])  # type: ignore[arg-type]
            whole = isinstance(container, list) and isinstance(node.args[1], int)
            return container[node.args[1]] if whole else None  # type: ignore[index]
        if shape_of(node) is None and all(shape_of(a) is None for a in node.all_input_nodes):
            return None  # arithmetic on sizes
        return self.opaque(node, "the operation has no rule")

    def opaque(self, node: fx.Node, reason: str) -> Any:
        """An operation that is not understood: nothing that enters it ever goes; it is listed as not counted."""
        for argument in node.all_input_nodes:
            for value in tensors_in(self.values.get(argument)):
                self.freeze(value, range(len(value.shape)), node, reason)
        self.uncounted[operation(node)] = self.uncounted.get(operation(node), 0) + 1
        return self.fresh_outputs(node)

    def fresh_outputs(self, node: fx.Node) -> Any:
        """Plain values of the shapes the node has."""
        meta = node.meta.get("val")
        if isinstance(meta, (list, tuple)):
            return [Value.plain(ints(m.shape)) if isinstance(m, Tensor) else None for m in meta]
        return Value.plain(ints(meta.shape)) if isinstance(meta, Tensor) else None

    def bind(self, node: fx.Node) -> dict[str, Any]:
        """Arguments by the names of the operation's schema, nodes replaced by values, sizes by numbers."""
        target: Any = node.target
        bound: dict[str, Any] = {}
        for i, argument in enumerate(target._schema.arguments):
            if i < len(node.args):
                bound[argument.name] = self._value(node.args[i])
            elif argument.name in node.kwargs:
                bound[argument.name] = self._value(node.kwargs[argument.name])
            else:
                bound[argument.name] = argument.default_value if argument.has_default_value() else None
        return bound

    def _value(self, argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            meta = argument.meta.get("val")
            if isinstance(meta, (torch.SymInt, int)) and not isinstance(meta, bool):
                return as_int(meta)
            return self.values.get(argument)
        if isinstance(argument, (list, tuple)):
            return [self._value(a) for a in argument]
        return argument

    def _alias(self, node: fx.Node, bound: dict[str, Any]) -> None:
        """Follow views; where an operation writes into a tensor, the proofs of everything that shares its memory are void."""
        target: Any = node.target
        arguments = target._schema.arguments
        for i, argument in enumerate(arguments):
            info = argument.alias_info
            source = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
            if not isinstance(source, fx.Node) or shape_of(source) is None:
                continue
            root = self._root.get(source, source)
            group = self._aliases.setdefault(root, [root])
            if info is not None or target.overloadpacket.__name__ in ("dropout", "alpha_dropout", "feature_dropout"):
                self._root[node] = root
                group.append(node)
            if info is not None and info.is_write:
                whole = isinstance(self.values[node], Value) and len(group) == 2 and source is root
                for member in group:
                    value = self.values.get(member)
                    if isinstance(value, Value) and member is not node:
                        result = self.values[node]
                        value.zero = list(result.zero) if whole else [NEVER] * len(value.shape)
                        value.constant = list(result.constant) if whole else [NEVER] * len(value.shape)
                    elif isinstance(value, Value) and not whole:
                        value.zero, value.constant = [NEVER] * len(value.shape), [NEVER] * len(value.shape)
