"""2:4 sparsity where it is faster than zeros: the sparse kernels of NVIDIA's devices, through `torch.sparse`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featherweight.errors import InputError
from featherweight.network.devices import device_of
from featherweight.weights.parametrized import plain

LEAST = (8, 0)  # compute capability from which on there are such kernels (Ampere)


def semi_structured(network: nn.Module, dtype: torch.dtype = torch.float16) -> nn.Module:
    """A copy in `dtype` whose linear layers of 2:4 weights (`keep="2:4"`) are multiplied by sparse kernels; for inference.

    Layers that are not 2:4, or of a shape that the kernels do not take, stay dense. Raises InputError where the network's device
    has no such kernels, and where no layer can use them: there the zeros pay in the file only, or in C.
    """
    device = device_of(network)
    if device.type != "cuda":
        raise InputError(
            f"2:4 kernels are those of a CUDA device, and the network is on {device}: here the zeros make it smaller (pack), and "
            "faster only in C (export(..., format='c'))"
        )
    if torch.cuda.get_device_capability(device) < LEAST:
        name = torch.cuda.get_device_name(device)
        raise InputError(f"2:4 kernels need compute capability {LEAST[0]}.{LEAST[1]}, and {name} has less")
    twin = plain(network).to(dtype).eval()
    layers = [layer for layer in twin.modules() if isinstance(layer, nn.Linear) and is_two_of_four(layer.weight)]
    taken = [layer for layer in layers if _convert(layer)]
    if not taken:
        raise InputError(
            f"of {len(layers)} linear layers that are 2:4 none has a shape that the kernels take in {dtype}: keep='2:4' makes "
            "weights so, and their sizes have to be multiples of 64"
        )
    return twin


def is_two_of_four(weight: Tensor) -> bool:
    """At most two of each four neighbours of a row are not zero."""
    return weight.shape[1] % 4 == 0 and bool((weight.detach().reshape(-1, 4).count_nonzero(1) <= 2).all())


def _convert(layer: nn.Linear) -> bool:
    try:
        sparse = torch.sparse.to_sparse_semi_structured(layer.weight.detach().contiguous())
    except (RuntimeError, ValueError):  # a shape or a type that its kernels do not take
        return False
    layer.weight = nn.Parameter(sparse, requires_grad=False)
    return True
