"""A pretended GPU: real values on the CPU, and the errors of a CUDA device where devices are mixed.

`with Pretend() as gpu:` gives a device named cuda:0 to a process that has none. A tensor lies there if its storage is marked, so
views, `detach`, parameters and `.data` lie where their memory lies. Two modes of torch see every call. The function mode answers
`device`, moves with `to`, `cuda` and `cpu`, and gives factories their `device=`. The dispatch mode looks at the tensors of every
ATen operation, forward and backward, and marks what it makes.

What it models, each as CUDA has it:

- an operation on tensors of both devices raises. What passes: a 0-dim CPU tensor in a pointwise operation that does not write
  into it; indices on the CPU into a tensor of the GPU (`x[i]`, not `index_select`, `gather` or `index_add_`); `copy_`
- `numpy()` and `np.asarray` of a GPU tensor raise; `item`, `tolist`, `float`, `bool` and `nonzero` give real values, so code that
  depends on data runs
- a CPU generator cannot draw on the GPU; what draws there without one is listed in `drawn`
- a factory without `device=` makes a CPU tensor; `*_like` and `new_*` follow their tensor
- `torch.export` traces with fake tensors of a second device, and the graph names cuda:0 where it names that
- drivers of `linalg.lstsq`, matrix products of whole numbers and histograms that CUDA has not
- `torch.cuda.synchronize` is counted in `synchronised`

What it cannot: CUDA's kernels and their rounding, its autocast, memory, streams and the time that work takes, several GPUs, its
own generators, pinned memory (a copy here), tensors made by C++ code on the CPU while a call with a tensor of the GPU is in
progress, and files: `torch.save` writes a marked tensor as one of the CPU. `tests/on_device` runs the same on a real GPU.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorConverter
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
TRACED = torch.device(
    "cpu", 0
)  # the GPU while torch.export traces: another device to fake tensors, and one that autograd has here
FAKE = torch._C._TorchDispatchModeKey.FAKE
FILLS = {"aten::fill", "aten::fill_", "aten::masked_fill", "aten::masked_fill_"}  # a value of no dimension, read from anywhere
CROSSES = {"aten::copy_", "aten::_to_copy", "aten::set_", "aten::_copy_from"}  # between devices, as they are there for
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_unsafe_index", "aten::_index_put_impl_"}
PRODUCTS = {"aten::mm", "aten::bmm", "aten::addmm", "aten::mv", "aten::dot", "aten::baddbmm", "aten::addmv"}
NOT_ON_GPU = {"aten::histogram", "aten::histogramdd", "aten::_histogramdd_from_bin_cts"}


def is_there(tensor: Tensor) -> bool:
    """Does this tensor lie on the pretended GPU?"""
    if isinstance(tensor, FakeTensor) or tensor.layout != torch.strided:
        return False
    try:
        return "pretended" in vars(tensor.untyped_storage())
    except (NotImplementedError, RuntimeError):  # of a subclass without memory
        return False


def _mark(tensor: Tensor, there: bool) -> None:
    """Put the memory of a tensor on one of the two devices."""
    if isinstance(tensor, FakeTensor) or tensor.layout != torch.strided:
        return
    storage = vars(tensor.untyped_storage())
    if there:
        storage["pretended"] = True
    else:
        storage.pop("pretended", None)


_PLAIN = {int, float, bool, str, type(None), slice, torch.dtype, torch.device, torch.layout, torch.memory_format}


def _tensors(*values: Any) -> list[Tensor]:
    """All tensors in lists, tuples and dictionaries."""
    found: list[Tensor] = []
    for value in values:
        kind = type(value)
        if kind in _PLAIN:
            continue
        if kind is Tensor or isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(*value)
        elif kind is dict:
            found += _tensors(*value.values())
    return found


def _asks_for_gpu(device: Any) -> bool | None:
    """Is it the GPU that `device=` names? None where it names nothing, or neither device."""
    if device is None:
        return None
    kind = "cuda" if isinstance(device, int) else torch.device(device).type
    return {"cuda": True, "cpu": False}.get(kind)


class _Move(torch.autograd.Function):
    """A copy on the other device; the gradient moves back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, there: bool) -> Tensor:
        ctx.there = is_there(tensor)
        moved = tensor.clone(memory_format=torch.preserve_format)
        _mark(moved, there)
        return moved

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        moved = gradients[0].clone()
        _mark(moved, ctx.there)
        return moved, None


_DEVICE, _IS_CUDA, _IS_CPU = (getattr(Tensor, name).__get__ for name in ("device", "is_cuda", "is_cpu"))
_PLACES, _MOVES = {_DEVICE, _IS_CUDA, _IS_CPU}, {Tensor.to, Tensor.cuda, Tensor.cpu, Tensor.type_as}
_GRADIENT = Tensor.grad.__set__
_TO_NUMPY = (Tensor.numpy, Tensor.__array__)
_FOLLOWS = (Tensor.new_tensor, Tensor.new, Tensor.__deepcopy__)  # made in Python or behind the dispatcher, where self lies


class _Functions(TorchFunctionMode):
    """What Python asks of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bool] = []  # of the calls in progress: had it a tensor of the GPU?
        self.exporting = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _PLACES:
            there = is_there(args[0])
            if func == _DEVICE:
                return (TRACED if self.exporting else GPU) if there else func(*args)
            return there if func == _IS_CUDA else func(*args) and not there
        reads = getattr(func, "__name__", "") == "__get__"  # such as `shape`
        if self.exporting or reads or torch._C._get_dispatch_mode(FAKE) is not None:
            return func(*args, **kwargs)
        if func in _MOVES:
            return self._moved(func, *args, **kwargs)
        kwargs, given = dict(kwargs), _tensors(*args, *kwargs.values())
        if func == Tensor.pin_memory and not is_there(args[0]):
            return args[0].clone()
        if func in _TO_NUMPY and is_there(args[0]) and not kwargs.get("force"):
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
            )
        if func == _GRADIENT and isinstance(args[1], Tensor) and is_there(args[0]) != is_there(args[1]):
            raise RuntimeError("assigned grad has data located on a different device")
        asked = _asks_for_gpu(kwargs.get("device"))
        if asked:
            kwargs["device"] = "cpu"
            if isinstance(kwargs.get("generator"), torch.Generator):
                raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        self.calls.append(any(map(is_there, given)))
        try:
            result = func(*args, **kwargs)
        finally:
            self.calls.pop()
        if isinstance(result, Tensor) and asked is not None and is_there(result) != asked:
            if any(_same_memory(result, tensor) for tensor in given):
                return _Move.apply(result, asked)
            _mark(result, asked)
        elif func in _FOLLOWS and isinstance(result, Tensor):
            _mark(result, is_there(args[0]))
        return result

    def _moved(self, func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        copy, other = kwargs.pop("copy", False), kwargs.pop("other", args[0] if args else None)
        there = is_there(tensor)
        if func in (Tensor.cuda, Tensor.cpu):
            goes, kind, layout = func == Tensor.cuda, tensor.dtype, kwargs.get("memory_format")
        elif isinstance(other, Tensor):
            goes, kind, layout = is_there(other), other.dtype, kwargs.get("memory_format")
        else:
            device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
            if device is not None and device.type not in ("cpu", "cuda"):
                return func(tensor, *args, copy=copy, **kwargs)
            goes, kind = there if device is None else device.type == "cuda", dtype or tensor.dtype
        result = tensor.to(kind, copy=copy, memory_format=layout or torch.preserve_format)
        return _Move.apply(result, goes) if goes != there else result


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata


class _Operations(TorchDispatchMode):
    """What torch does with tensors."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # a wrapper that costs more than the operations here

    def __init__(self, functions: _Functions) -> None:
        super().__init__()
        self.functions = functions
        self.drawn: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.functions.exporting or torch._C._get_dispatch_mode(FAKE) is not None:
            return func(*args, **kwargs)
        kwargs, given = dict(kwargs), _tensors(*args, *kwargs.values())
        if any(type(tensor) not in (Tensor, torch.nn.Parameter) for tensor in given):
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            places = [is_there(tensor) for tensor in given]
            asked = _asks_for_gpu(kwargs.get("device"))
            there = self._there(func, given, places, asked, args)
            if not there and not any(places):
                return func(*args, **kwargs)
            if asked:
                kwargs["device"] = CPU
            if there:
                self._refuse(func, given, args, kwargs)
            held = {tensor.untyped_storage()._cdata for tensor in given if tensor.layout == torch.strided}
            result = func(*args, **kwargs)
            for made in _tensors(result):
                if made.layout == torch.strided and made.device.type == "cpu" and made.untyped_storage()._cdata not in held:
                    _mark(made, there)
            return result

    def _there(self, func: Any, given: list[Tensor], places: list[bool], asked: bool | None, args: Any) -> bool:
        """Where the operation runs."""
        if not given:  # a factory: in C++ it is for the tensors of the call from Python that it is a part of
            return asked or bool(self.functions.calls and self.functions.calls[-1])
        name, tags = func._schema.name, func.tags
        if name in CROSSES:  # `device=cpu` may be what C++ takes for this tensor's own; moves were made by the function mode
            return places[0] or bool(asked)
        if all(places) or not any(places):
            return places[0]
        strangers = [tensor for tensor, place in zip(given, places, strict=True) if not place]
        if name in INDEXED:
            values = [t for t in _tensors(args[2:3]) if t.dim()]
            if places[0] and all(map(is_there, values)):
                return True
        elif torch.Tag.pointwise in tags or name.startswith("aten::_foreach_") or name in FILLS:
            written = [v for v, a in zip(args, func._schema.arguments, strict=False) if a.alias_info and a.alias_info.is_write]
            if all(t.dim() == 0 for t in strangers) and all(map(is_there, _tensors(written))):
                return True
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (in {func})"
        )

    def _refuse(self, func: Any, given: list[Tensor], args: Any, kwargs: Any) -> None:
        """What CUDA cannot."""
        name = func._schema.name
        if name in NOT_ON_GPU:
            raise NotImplementedError(f"Could not run '{name}' with arguments from the 'CUDA' backend.")
        if name in PRODUCTS and not given[0].is_floating_point() and not given[0].is_complex():
            raise RuntimeError(f'"addmm_cuda" not implemented for {given[0].dtype}')
        if name == "aten::linalg_lstsq" and (kwargs.get("driver") or (args[3] if len(args) > 3 else None)) not in (None, "gels"):
            raise RuntimeError("torch.linalg.lstsq: parameter `driver` should be one of (gels) for CUDA tensors")
        if torch.Tag.nondeterministic_seeded in func.tags:
            if any(isinstance(value, torch.Generator) for value in (*args, *kwargs.values())):
                raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
            self.drawn.append(name)


def _relabelled(program: torch.export.ExportedProgram) -> None:
    """What was traced on TRACED is on the GPU."""

    def name(value: Any) -> Any:
        return GPU if value == TRACED and isinstance(value, torch.device) and value.index == 0 else value

    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.args = torch.utils._pytree.tree_map(name, node.args)
            node.kwargs = torch.utils._pytree.tree_map(name, node.kwargs)
            for value in _tensors(node.meta.get("val")):
                if isinstance(value, FakeTensor):
                    value.fake_device = name(value.fake_device)
        if isinstance(module, torch.fx.GraphModule):
            module.recompile()


class Pretend:
    """`with Pretend() as gpu:` see above.

    drawn         the operations that drew random numbers on the GPU
    synchronised  how often `torch.cuda.synchronize` was called
    """

    def __init__(self) -> None:
        self._functions = _Functions()
        self._operations = _Operations(self._functions)
        self.synchronised = 0

    @property
    def drawn(self) -> list[str]:
        return self._operations.drawn

    def __enter__(self) -> Self:
        self._engine, self._wait = torch.autograd._engine_run_backward, torch.cuda.synchronize
        self._cudnn = torch.backends.cudnn.is_acceptable
        self._export, self._fake = torch.export.export, FakeTensorConverter.from_real_tensor

        def run(*args: Any, **kwargs: Any) -> Any:
            with self._functions:  # hooks are the user's own Python, although a call of torch's is in progress
                return self._engine(*args, **kwargs)

        def wait(device: Any = None) -> None:
            self.synchronised += 1

        def export(*args: Any, **kwargs: Any) -> Any:
            self._functions.exporting = True
            try:
                program = self._export(*args, **kwargs)
            finally:
                self._functions.exporting = False
            _relabelled(program)
            return program

        def fake(converter: Any, mode: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            made = self._fake(converter, mode, tensor, *args, **kwargs)
            if is_there(tensor):
                made.fake_device = TRACED
            return made

        torch.autograd._engine_run_backward, torch.cuda.synchronize, torch.export.export = run, wait, export
        FakeTensorConverter.from_real_tensor = fake  # type: ignore[method-assign]
        torch.backends.cudnn.is_acceptable = lambda tensor: False
        self._operations.__enter__()
        self._functions.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._functions.__exit__(*error)
        self._operations.__exit__(*error)
        torch.autograd._engine_run_backward, torch.cuda.synchronize = self._engine, self._wait
        torch.backends.cudnn.is_acceptable = self._cudnn
        torch.export.export, FakeTensorConverter.from_real_tensor = self._export, self._fake  # type: ignore[method-assign]
