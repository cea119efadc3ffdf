"""What a compressed network takes in storage, counted from real bytes: by part, and by other means."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
import zstandard
from safetensors.torch import save
from torch import Tensor, nn

from featherweight.files.edits import Snapshot
from featherweight.files.packed.container import pack, sections
from featherweight.weights.parametrized import decoded

WEIGHT = (": values", ": symbols")


@dataclass(frozen=True)
class Storage:
    """Bytes. Two figures that are never mixed: weight data alone, and with the index that says where it belongs.

    weights      values, shared values and which of them each weight is: what papers call "weight data", here with all biases
    places       which weights there are (the index)
    rest         header, edits
    file         their sum, the size of the .fwz file
    dense        the original network's parameters and buffers in their own types (float32: 4 bytes each)
    gzip, zstd   the compressed network's weights, dense with their zeros, at the strongest level of each
    safetensors  the state of the compressed network, as in an artifact
    """

    weights: int
    places: int
    rest: int
    file: int
    dense: int
    gzip: int
    zstd: int
    safetensors: int

    def table(self) -> list[tuple[str, int, float]]:
        """(what, bytes, times smaller than dense) for a report."""
        rows = {
            "dense": self.dense,
            "dense with zeros, gzip -9": self.gzip,
            "dense with zeros, zstd -19": self.zstd,
            "state in safetensors": self.safetensors,
            "weight data only": self.weights,
            "weight data and places": self.weights + self.places,
            "whole .fwz file": self.file,
        }
        return [(name, size, self.dense / max(size, 1)) for name, size in rows.items()]


def storage(snapshot: Snapshot, network: nn.Module) -> Storage:
    """Pack and count. `network`: of the user's own class, as it was before any edit."""
    data = pack(snapshot, network)
    parts = sections(data, network)
    weights = sum(size for name, size in parts if name.endswith(WEIGHT))
    places = sum(size for name, size in parts if name.endswith(": places"))
    state = network.state_dict(keep_vars=True).values()
    dense = sum(tensor.numel() * tensor.element_size() for tensor in {id(tensor): tensor for tensor in state}.values())
    raw = _raw(snapshot.build(network))
    deflate = zlib.compressobj(9, zlib.DEFLATED, 31)
    return Storage(
        weights=weights,
        places=places,
        rest=len(data) - weights - places,
        file=len(data),
        dense=dense,
        gzip=len(deflate.compress(raw)) + len(deflate.flush()),
        zstd=len(zstandard.ZstdCompressor(level=19).compress(raw)),
        safetensors=len(save({name: tensor.clone().contiguous().cpu() for name, tensor in snapshot.state.items()})),
    )


def _raw(model: nn.Module) -> bytes:
    """Decoded weights and plain buffers, one after the other."""
    plain = dict(decoded(model))
    plain |= {name: buffer for name, buffer in model.named_buffers() if "parametrizations." not in f".{name}"}
    return b"".join(_bytes(tensor) for tensor in plain.values())


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
