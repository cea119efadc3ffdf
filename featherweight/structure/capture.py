"""The network as a graph of ATen operations: `torch.export` with the settings that keep it analysable.

Eval mode, no gradients, `strict=False` and no decompositions (linear, lstm, batch_norm, scaled_dot_product_attention stay
whole); the fast path
of `nn.MultiheadAttention`, which hides the attention in one fused operation, is off while exporting. A batch of 1 becomes a
batch of 2, since a size of 1 cannot be told from a broadcast.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind
from torch.utils._python_dispatch import TorchDispatchMode

from featherweight.modes import evaluating
from featherweight.structure.errors import BadExample, DataDependentControlFlow, NotExportable

Kind = Literal["parameter", "buffer", "constant", "input", "other"]


@dataclass(frozen=True)
class Captured:
    """An exported network.

    module    the graph; its placeholders are the tensors of the network and the inputs, in the order of `sources`
    sources   per placeholder: its kind and the name of the tensor in the network ("" for inputs)
    tied      name -> the first name of the same tensor (only names that are not the first)
    tensors   first name -> the tensor (parameters, buffers, constants of the graph)
    inputs    the example the graph was exported with
    copies    how many times the given example fits in `inputs` (2 where a batch of 1 was doubled)
    """

    module: fx.GraphModule
    sources: tuple[tuple[Kind, str], ...]
    tied: dict[str, str]
    tensors: dict[str, Tensor]
    inputs: tuple[Any, ...]
    copies: int
    program: Any = None

    def placeholders(self) -> list[fx.Node]:
        return [node for node in self.module.graph.nodes if node.op == "placeholder"]


@contextlib.contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients and whole attention."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with evaluating(model), torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def double_batch(example: Sequence[Any]) -> tuple[tuple[Any, ...], int]:
    """The example with a batch of 2 where every tensor has a batch of 1, and how many copies that makes."""
    tensors = [value for value in example if isinstance(value, Tensor)]
    if not tensors or any(t.dim() == 0 or t.shape[0] != 1 for t in tensors):
        return tuple(example), 1
    return tuple(torch.cat([v, v.flip(-1)]) if isinstance(v, Tensor) else v for v in example), 2


def check_example(model: nn.Module, example: object) -> tuple[Any, ...]:
    """The example as a tuple, or an error that says what it should be."""
    if isinstance(example, Tensor):
        example = (example,)
    if not isinstance(example, (tuple, list)):
        raise BadExample(
            f"the example is a {type(example).__name__}; give the network's positional inputs as a tuple of tensors, for "
            f"instance "
            "(torch.randn(1, 3, 224, 224),)"
        )
    if not any(isinstance(value, Tensor) for value in example):
        raise BadExample("the example holds no tensor; give the network's positional inputs as a tuple of tensors")
    try:
        inspect.signature(model.forward).bind(*example)
    except TypeError as error:
        raise BadExample(
            f"the network's forward{inspect.signature(model.forward)} cannot be called with {len(example)} positional inputs: "
            f"{error}"
        ) from error
    return tuple(example)


def describe(example: Sequence[Any]) -> str:
    """The shapes and types of an example, for messages."""
    return ", ".join(f"{tuple(v.shape)} {v.dtype}" if isinstance(v, Tensor) else repr(v) for v in example)


def capture(model: nn.Module, example: Sequence[Any] | Tensor, *, dynamic_batch: bool = False) -> Captured:
    """Export `model` on `example`; raises BadExample, DataDependentControlFlow or NotExportable."""
    given = check_example(model, example)
    inputs, copies = double_batch(given)
    try:
        program = _export(model, inputs, dynamic_batch)
    except _EXPORT_FAILURES as error:
        if copies > 1:
            # some networks only work with the batch they were built for
            try:
                program = _export(model, given, dynamic_batch)
            except _EXPORT_FAILURES:
                raise _explain(model, given, error) from error
            inputs, copies = given, 1
        else:
            raise _explain(model, given, error) from error
    module = program.graph_module
    _inline_regions(module)
    names = _names(model)
    sources: list[tuple[Kind, str]] = []
    tensors: dict[str, Tensor] = {}
    for spec in program.graph_signature.input_specs:
        target = spec.target or ""
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            tensor = program.state_dict[target] if target in program.state_dict else program.constants[target]
            # a tensor attribute that is no registered parameter or buffer is a constant to the graph
            kind: Kind = (
                "parameter" if spec.kind == InputKind.PARAMETER else "buffer" if spec.kind == InputKind.BUFFER else "constant"
            )
            first = names.get(target, target)
            sources.append((kind, first))
            tensors.setdefault(first, tensor)
        else:
            sources.append(("input" if spec.kind == InputKind.USER_INPUT else "other", target))
    tied = {name: first for name, first in names.items() if name != first}
    return Captured(module, tuple(sources), tied, tensors, inputs, copies, program)


_EXPORT_FAILURES = (
    RuntimeError, ValueError, TypeError, AssertionError, AttributeError, IndexError, KeyError, NotImplementedError, OverflowError,
)  # fmt: skip


def _export(model: nn.Module, inputs: tuple[Any, ...], dynamic_batch: bool) -> Any:
    shapes = None
    if dynamic_batch:
        batch = torch.export.Dim("batch", min=1)
        shapes = tuple({0: batch} if isinstance(v, Tensor) and v.dim() else None for v in inputs)
    # torch prints the graph that it could not follow, hundreds of lines; the error says it in one
    with evaluation(model), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        return torch.export.export(model, inputs, dynamic_shapes=shapes, strict=False)


def _explain(model: nn.Module, example: tuple[Any, ...], error: Exception) -> NotExportable | BadExample:
    """Tell an example of the wrong shape from code that depends on data from anything else: run the network plainly."""
    text = str(error).strip().splitlines()
    first = next((line for line in text if line.strip()), type(error).__name__)
    try:
        with evaluation(model):
            model(*example)
    except _EXPORT_FAILURES as plain:
        return BadExample(
            f"the network does not run on the example ({describe(example)}): {plain}; give an example like the inputs the "
            f"network was made for"
        )
    names = {type(error).__name__, *(kind.__name__ for kind in type(error).__mro__)}
    if any(word in name for name in names for word in ("DataDependent", "GuardOnDataDependent", "UncapturedHigherOrder")) or any(
        word in str(error)
        for word in ("data-dependent", "Could not guard", "Cannot extract unbacked", "aten._local_scalar_dense")
    ):
        return DataDependentControlFlow(
            f"the network's code depends on the values of a tensor ({first}); torch.export cannot follow that. Replace `if "
            f"tensor:` by "
            "torch.where or torch.cond, sizes made with .item() by fixed sizes, or trace the submodule that has no such code"
        )
    return NotExportable(
        f"torch.export cannot capture the network: {type(error).__name__}: {first}. Trace a submodule that can be exported, or "
        f"see "
        "the torch.export documentation for the construct named"
    )


def _names(model: nn.Module) -> dict[str, str]:
    """name -> first name of the same tensor, for all parameters and buffers; identity decides, not the name."""
    first: dict[int, str] = {}
    result: dict[str, str] = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        result[name] = first.setdefault(id(tensor), name)
    return result


def overlapping(tensors: dict[str, Tensor]) -> set[str]:
    """Names of different tensors that share memory (a view kept as a parameter): they cannot be cut one by one."""
    owners: dict[int, str] = {}
    shared: set[str] = set()
    for name, tensor in tensors.items():
        if tensor.device.type == "meta" or tensor.layout != torch.strided or not tensor.numel():
            continue
        pointer = tensor.untyped_storage().data_ptr()
        if pointer in owners:
            shared |= {name, owners[pointer]}
        owners.setdefault(pointer, name)
    return shared


_REGIONS = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}  # name -> position of the wrapped graph among the arguments


def _inline_regions(module: fx.GraphModule) -> None:
    """Put the bodies of `torch.no_grad()` and disabled `torch.autocast` regions into the graph; both do nothing at inference."""
    graph = module.graph
    changed = False
    for node in list(graph.nodes):
        position = _REGIONS.get(getattr(node.target, "__name__", "")) if node.op == "call_function" else None
        if position is None or (position == 4 and node.args[2]):
            continue
        body = node.args[position]
        inner = module.get_submodule(body.target)
        if not isinstance(inner, fx.GraphModule):
            continue
        _inline_regions(inner)
        values: dict[fx.Node, Any] = dict(
            zip((n for n in inner.graph.nodes if n.op == "placeholder"), node.args[position + 1 :], strict=True)
        )
        with graph.inserting_before(node):
            for part in inner.graph.nodes:
                if part.op == "placeholder":
                    continue
                if part.op == "output":
                    outputs = fx.node.map_arg(part.args[0], values.__getitem__)
                elif part.op == "get_attr":
                    name = f"_region_{node.name}_{part.name}"
                    setattr(module, name, getattr(inner, part.target))
                    values[part] = graph.get_attr(name)
                else:
                    values[part] = graph.node_copy(part, values.__getitem__)
        for user in list(node.users):
            index = user.args[1]
            user.replace_all_uses_with(outputs[index])
            graph.erase_node(user)
        graph.erase_node(node)
        if not body.users:
            graph.erase_node(body)
        changed = True
    if changed:
        graph.lint()
        module.recompile()


class _Float64(TorchDispatchMode):
    """Every operation that asks for a shorter float gets float64: hides no difference behind the casts inside norms."""

    short = (torch.float32, torch.float16, torch.bfloat16)

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0  # how many were run: how far a network that fails got

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {k: torch.float64 if v in self.short else v for k, v in (kwargs or {}).items()} if kwargs else {}
        args = tuple(torch.float64 if isinstance(a, torch.dtype) and a in self.short else a for a in args)
        result = func(*args, **kwargs)
        self.operations += 1
        return result


def to_float64(value: Any) -> Any:
    """Floating tensors in float64; everything else as it is."""
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


@contextlib.contextmanager
def float64() -> Iterator[_Float64]:
    """Inside, computations are done in float64, also where the network's code names a shorter type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad(), _Float64() as mode:
            yield mode
    finally:
        torch.set_default_dtype(before)


def run_graph(module: fx.GraphModule, tensors: Sequence[Any]) -> Any:
    """Run an exported graph on the values of its placeholders, in float64."""
    with float64():
        return fx.Interpreter(module).run(*(to_float64(t) for t in tensors), enable_io_processing=False)


def outputs_of(value: Any) -> list[Tensor]:
    """All floating tensors in an output, whatever nests them."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
