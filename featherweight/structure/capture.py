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
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from featherweight.errors import InputError
from featherweight.network.calls import Example, Inputs, plain_outputs
from featherweight.network.collecting import uncollected
from featherweight.network.evaluating import evaluating, without_caches
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
    unread    does eval mode leave a parameter or a norm's statistics unread?
    training  the same in training mode, where that reads a parameter or a norm's statistics that eval mode does not read
    """

    module: fx.GraphModule
    sources: tuple[tuple[Kind, str], ...]
    tied: dict[str, str]
    tensors: dict[str, Tensor]
    inputs: Inputs
    copies: int
    program: Any = None
    unread: bool = False
    training: Captured | None = None

    def placeholders(self) -> list[fx.Node]:
        return [node for node in self.module.graph.nodes if node.op == "placeholder"]

    def sample(self) -> Inputs:
        """The example, one sample of it where a batch of one was doubled."""
        return self.inputs.map(lambda t: t[:1] if self.inputs.has_batch(t) else t) if self.copies > 1 else self.inputs

    def read(self) -> set[str]:
        """The tensors of the network that this graph reads; tied ones have a placeholder each, of which one may be read."""
        return {name for node, (_, name) in zip(self.placeholders(), self.sources, strict=True) if node.users and name}

    def read_in_training_only(self) -> list[str]:
        """The parameters that training mode reads and eval mode does not."""
        if self.training is None:
            return []
        known = {name for kind, name in self.sources if kind == "parameter"}
        return sorted((self.training.read() - self.read()) & known)

    def looked_up(self) -> dict[int, int]:
        """Number of an input -> the rows of the embedding that looks it up: the whole numbers that are allowed there."""
        rows: dict[int, int] = {}
        inputs = [node for node, (kind, _) in zip(self.placeholders(), self.sources, strict=True) if kind in ("input", "other")]
        for place, node in enumerate(inputs):
            for user in node.users:
                if getattr(user.target, "overloadpacket", None) is torch.ops.aten.embedding and user.args[1] is node:
                    table: Any = user.args[0]
                    rows[place] = min(rows.get(place, 1 << 40), int(table.meta["val"].shape[0]))
        return rows

    def decides(self) -> bool:
        """Does the network give whole numbers or truth values, which hide what they were decided from?"""
        values = [node.meta.get("val") for node in self.module.graph.find_nodes(op="output")[0].all_input_nodes]
        return any(isinstance(v, Tensor) and not (v.is_floating_point() or v.is_complex()) for v in values)


@contextlib.contextmanager
def whole_attention() -> Iterator[None]:
    """Inside, `nn.MultiheadAttention` does not take its fast path, which no rule could look into."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextlib.contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, whole attention and no caches."""
    with evaluating(model), without_caches(model), torch.no_grad(), whole_attention():
        yield


@contextlib.contextmanager
def as_trained(model: nn.Module) -> Iterator[None]:
    """The mode that the network's own `train()` sets, without gradients and caches and with whole attention."""
    with evaluating(model), without_caches(model), torch.no_grad(), whole_attention():
        model.train()
        yield


def double_batch(example: Inputs) -> tuple[Inputs, int]:
    """The example with a batch of 2 where every tensor that has sizes has a batch of 1, and how many copies that makes."""
    sized = [tensor for tensor in example.tensors() if tensor.dim()]
    if not sized or any(tensor.shape[0] != 1 for tensor in sized):
        return example, 1
    return example.map(lambda v: torch.cat([v, v.flip(-1)]) if v.dim() else v), 2


def check_example(model: nn.Module, example: Example | Inputs) -> Inputs:
    """The example as inputs, or an error that says what it should be."""
    try:
        inputs = Inputs.of(example)
    except InputError as error:
        raise BadExample(str(error)) from error
    if not inputs.tensors():
        raise BadExample("the example holds no tensor; give the network's inputs as a tuple by position or as a dict by name")
    scripted = [path or "the network" for path, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if scripted:
        raise NotExportable(
            f"{scripted[0]} is compiled TorchScript ({type(model).__name__}), whose code nothing can follow: give the network in "
            "Python that it was made from, with its state dict"
        )
    try:
        inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs)
    except TypeError as error:
        named = f" and {', '.join(inputs.kwargs)} by name" if inputs.kwargs else ""
        raise BadExample(
            f"the network's forward{inspect.signature(model.forward)} cannot be called with {len(inputs.args)} positional inputs"
            f"{named}: {error}"
        ) from error
    return inputs


def capture(
    model: nn.Module, example: Example | Inputs, *, dynamic_batch: bool = False, others: Sequence[Inputs] = ()
) -> Captured:
    """Export `model` on `example`; raises BadExample, DataDependentControlFlow or NotExportable.

    dynamic_batch  the graph takes any batch size
    others         and the sizes in which these inputs differ from the example, as far as torch can follow them
    """
    given = check_example(model, example)
    inputs, copies = double_batch(given)
    try:
        program = _export(model, inputs, dynamic_batch, others=others)
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
    found = _captured(model, program, inputs, copies)
    unread = [n for n in set(found.tensors) - found.read() if found.tensors[n].is_floating_point()]
    if not unread:
        return found
    found = replace(found, unread=True)
    try:
        program = _export(model, inputs, dynamic_batch, training=True)
    except _EXPORT_FAILURES:
        return found  # cuts are still run in training mode before they are kept
    training = _captured(model, program, inputs, copies, found.tensors)
    if training.read().isdisjoint(unread):
        return found
    tensors = {**training.tensors, **found.tensors}
    return replace(found, training=training, tensors=tensors)


def _captured(model: nn.Module, program: Any, inputs: Inputs, copies: int, held: dict[str, Tensor] | None = None) -> Captured:
    """`held`: the tensors of another export of the network, whose constants keep their names only where they are the same."""
    module = program.graph_module
    _inline_regions(module)
    _forget_types(module)
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
            if kind == "constant" and held is not None and held.get(first) is not tensor:
                first = f"{first} in training"
            sources.append((kind, first))
            tensors.setdefault(first, tensor)
        else:
            sources.append(("input" if spec.kind == InputKind.USER_INPUT else "other", target))
    tied = {name: first for name, first in names.items() if name != first}
    return Captured(module, tuple(sources), tied, tensors, inputs, copies, program)


_EXPORT_FAILURES = (Exception,)  # torch.export lets through whatever the network's own code raises


def _export(model: nn.Module, inputs: Inputs, dynamic_batch: bool, training: bool = False, others: Sequence[Inputs] = ()) -> Any:
    shapes = None
    if dynamic_batch:
        batch = torch.export.Dim("batch", min=1)
        shapes = batch_shapes(model, inputs, batch, others)
    mode = as_trained if training else evaluation
    with mode(model), plain_outputs(model), quiet(), without_stack_traces(), uncollected():
        return torch.export.export(model, inputs.args, inputs.kwargs or None, dynamic_shapes=shapes, strict=False)


@contextlib.contextmanager
def without_stack_traces() -> Iterator[None]:
    """Inside, torch notes no line of the user's code beside each operation: nothing here reads them, and they are an eighth of an
    export. A torch that cannot be asked for that notes them."""
    config: Any = getattr(torch.fx, "config", None)
    before = getattr(config, "do_not_emit_stack_traces", None)
    if before is not None:
        config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        if before is not None:
            config.do_not_emit_stack_traces = before


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, torch's exporters keep their warnings and their pages of code to themselves; errors pass."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def batch_shapes(model: nn.Module, inputs: Inputs, batch: Any, others: Sequence[Inputs] = ()) -> dict[str, Any]:
    """For torch.export: `batch` as the first size of each input that has a batch; what differs in `others` as torch finds it;
    all else fixed."""
    free: dict[int, set[int]] = {}
    for other in others:
        for mine, its in zip(inputs.tensors(), other.tensors(), strict=True):
            free.setdefault(id(mine), set()).update(d for d in range(mine.dim()) if mine.shape[d] != its.shape[d])

    def shape(value: Any) -> dict[int, Any] | None:
        first = {0: batch} if inputs.has_batch(value) else {}
        return {**dict.fromkeys(free.get(id(value), ()), torch.export.Dim.AUTO), **first} or None

    bound = inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs)
    return {name: torch.utils._pytree.tree_map(shape, value) for name, value in bound.arguments.items()}


def first_line(error: BaseException) -> str:
    """What an error says, in one line: torch adds a page of hints to its own."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= 300 else f"{line[:300].rstrip()} ..."


_PACKED = ("pack_padded_sequence", "pack_sequence", "pad_packed_sequence", "_pack_padded_sequence", "_pad_packed_sequence")


def packs_sequences(error: BaseException) -> bool:
    """Did the network's code pack or unpack a sequence where this error came up?"""
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_name in _PACKED or (code.co_name == "forward" and any(name in _PACKED for name in code.co_names)):
            return True
        trace = trace.tb_next
    return False


def _explain(model: nn.Module, example: Inputs, error: Exception) -> NotExportable | BadExample:
    """Tell an example of the wrong shape from code that depends on data from anything else: run the network plainly."""
    first = first_line(error)
    try:
        with evaluation(model):
            example.call(model)
    except _EXPORT_FAILURES as plainly:
        return BadExample(
            f"the network does not run on the example ({example}): {first_line(plainly).rstrip('.')}; give an example like the "
            "inputs the network was made for"
        )
    if packs_sequences(error):
        return NotExportable(
            "the network packs sequences by their lengths (torch.nn.utils.rnn.pack_padded_sequence), which torch.export cannot "
            "follow: run the recurrent layer on the padded sequences, and mask what lies beyond the lengths"
        )
    names = {type(error).__name__, *(kind.__name__ for kind in type(error).__mro__)}
    if any(word in name for name in names for word in ("DataDependent", "GuardOnDataDependent", "UncapturedHigherOrder")) or any(
        word in str(error)
        for word in ("data-dependent", "Could not guard", "Cannot extract unbacked", "aten._local_scalar_dense")
    ):
        return DataDependentControlFlow(
            f"the network's code depends on the values of a tensor ({first}); torch.export cannot follow that. Replace `if "
            "tensor:` by torch.where or torch.cond, sizes made with .item() by fixed sizes, or trace the submodule that has no "
            "such code"
        )
    return NotExportable(
        f"torch.export cannot capture the network: {type(error).__name__}: {first}. Trace a submodule that can be exported, or "
        "see the torch.export documentation for the construct named"
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


def _forget_types(module: fx.GraphModule) -> None:
    """Take out torch's assertions about the types of the example: the exported module may be cast to other ones."""
    for node in list(module.graph.nodes):
        if getattr(node.target, "overloadpacket", None) is torch.ops.aten._assert_tensor_metadata:
            module.graph.erase_node(node)
    module.recompile()


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
