"""Neuron importance score propagation (NISP, Yu et al., CVPR 2018).

What the last layer reads is scored by feature selection; the scores go back through |W| of every layer, batch norm folded in,
ReLU and pooling being 1-Lipschitz (the paper's equations 19 and 20). That is the gradient of a twin network whose weights are
|W|, without biases, on a positive input: nothing in it is ever cut off. Residual sums and concatenations are its own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from featherweight.criteria.ranking import Rankings, Unsuited, by_score, ranked
from featherweight.criteria.readers import Layer, Reader, gated
from featherweight.criteria.statistics import Moments, Stats, last_layer
from featherweight.errors import shortened
from featherweight.network.evaluating import evaluating
from featherweight.structure import Graph
from featherweight.structure.gate import double_copy
from featherweight.structure.nodes import operation

LINEAR = (  # operations that are linear on positive numbers, once biases and means are 0
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution linear addmm batch_norm relu relu_ "
    "leaky_relu leaky_relu_ hardtanh hardtanh_ relu6 relu6_ prelu max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d "
    "avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d mean sum "
    "add add_ cat stack flatten view reshape permute transpose t contiguous slice select narrow pad constant_pad_nd dropout "
    "dropout_ feature_dropout clone alias detach to squeeze unsqueeze unflatten chunk split split_with_sizes unbind expand "
    "pixel_shuffle pixel_unshuffle channel_shuffle upsample_nearest1d upsample_nearest2d upsample_bilinear2d getitem "
    "size sym_size index_select index _assert_tensor_metadata"
)


def nisp(model: nn.Module, graph: Graph, stats: Stats) -> Rankings:
    """Scores propagated back from the input of the network's last layer, summed over the positions of a channel.

    A unit whose own weights are 0 but which later layers read with large ones is thought important: the paper's definition.
    Raises Unsuited for networks with operations that are not linear on positive numbers, such as sigmoid, GELU and attention.
    """
    stats.require("responses")
    strange = {operation(node) for node in graph.captured.module.graph.nodes if node.op == "call_function"}
    strange -= set(LINEAR.split())
    if strange:
        raise Unsuited(
            f"nisp propagates through layers, batch norms, ReLU and pooling, and this network has {', '.join(sorted(strange))}: "
            "use taylor or collaborative"
        )
    last = last_layer(model, graph)
    scores = infinite_selection(stats.responses[last.module])
    received = _propagated(double_copy(model), graph, stats, last, scores)
    return ranked(stats.sites, lambda site: by_score(received[site]))


def infinite_selection(moments: Moments, balance: float = 0.5) -> Tensor:
    """(c,) scores of features by Inf-FS (Roffo et al., ICCV 2015): paths of all lengths in a graph of the features.

    An edge is balance * max(s_i, s_j) + (1 - balance) * (1 - |r_ij|), s the deviations over the largest, r Pearson's correlation
    (the paper's is Spearman's, which no running sum gives). A feature that is constant has no edges.
    """
    means = moments.matrix[-1, :-1]
    covariance = moments.matrix[:-1, :-1] - means[:, None] * means
    deviations = covariance.diagonal().clamp_min(0).sqrt()
    varies = deviations > 1e-6 * deviations.max()
    scale = torch.where(varies, deviations, torch.ones_like(deviations))
    correlation = (covariance / scale[:, None] / scale).abs().clamp(0, 1)
    spread = deviations / deviations.max().clamp_min(torch.finfo(deviations.dtype).tiny)
    edges = balance * torch.maximum(spread[:, None], spread) + (1 - balance) * (1 - correlation)
    edges = edges * varies[:, None] * varies
    radius = float(torch.linalg.eigvalsh(edges).abs().max())
    if radius == 0:
        return torch.zeros_like(deviations)
    identity = torch.eye(len(edges), dtype=edges.dtype, device=edges.device)
    return torch.linalg.solve(identity - 0.9 / radius * edges, identity).sum(1) - 1


def _propagated(twin: nn.Module, graph: Graph, stats: Stats, last: Reader, scores: Tensor) -> dict[str, Tensor]:
    """Site -> (units,) what reaches each unit of `scores`, which lie along the input of `last`. Changes `twin`."""
    readers, sites = list(stats.readers.readers), stats.sites
    if all(reader.module != last.module for reader in readers):
        readers.append(last)
    _make_positive(twin)
    received = {site: torch.zeros(graph.site(site).size, dtype=torch.float64) for site in sites}
    ends: list[Tensor] = []

    def receive(reader: Reader) -> Callable[[Tensor], None]:
        def add(gradient: Tensor) -> None:
            along = gradient.movedim(reader.axis, 0).flatten(1).sum(1).cpu()
            for site, vectors in reader.units.items():
                for numbers in vectors:
                    owned = numbers >= 0
                    received[site].index_add_(0, numbers[owned], along[owned])

        return add

    def watch(reader: Reader, layer: nn.Module, x: Tensor) -> None:
        x.register_hook(receive(reader))
        if reader.module == last.module:
            ends.append(x)

    # so small that no ReLU6 is reached, however often |W| enlarges it
    small = graph.captured.inputs.map(lambda v: torch.full_like(v, 1e-100, dtype=torch.float64).requires_grad_())
    inputs = small.tensors()
    ones = {site: inputs[0].new_ones(graph.site(site).size) for site in sites}
    with evaluating(twin), gated(twin, readers, ones, watch):
        small.call(twin)
    shape = [1] * ends[-1].ndim
    shape[last.axis] = -1
    begun = (scores / len(ends[-1])).reshape(shape).to(ends[-1]).expand_as(ends[-1])
    try:
        torch.autograd.grad(ends[-1], inputs, begun, allow_unused=True)
    except RuntimeError as error:
        said = shortened(str(error).strip())
        raise Unsuited(f"nisp cannot go back through this network ({said}): use taylor or collaborative") from error
    return received


def _make_positive(twin: nn.Module) -> None:
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.abs_()
        for module in twin.modules():
            if isinstance(module, (Layer, _BatchNorm)) and module.bias is not None:
                module.bias.zero_()
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                module.running_mean.zero_()
