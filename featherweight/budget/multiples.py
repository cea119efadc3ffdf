"""Which sizes run: what a site's size has to be a multiple of, where that was measured to pay.

On processors ONNX Runtime lays channels out in blocks of 8 or 16; a convolution of another number of channels goes a slower way.
Measured: EfficientNet-Lite0 at 70 % of its MACs took 17.0 ms with free sizes and 7.3 ms in multiples of 8, dense 9.5;
benchmarks/multiples.md has ResNet-20 and VGG-16. Nothing was measured to pay for matrices, and none is asked for there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from torch import nn
from torch.nn.modules.conv import _ConvNd

from featherweight.structure import Graph, Site

Multiple = int | Literal["auto"]
ADVICE = (
    "no multiple of 8 channels, which took up to 1.8 times as long in ONNX Runtime as the whole network (benchmarks/multiples): "
    "multiple=auto cuts to sizes that run faster"
)
CHANNELS = 8  # of a convolution in float32 on a processor


def multiples(multiple: Multiple, network: nn.Module, graph: Graph) -> dict[str, int]:
    """Site -> what its size is a multiple of. "auto": of convolutions so many units as make 8 channels, of others 1."""
    if multiple != "auto":
        return dict.fromkeys(graph.sites, multiple)
    channels = channels_of(network, graph)
    return {site: CHANNELS // math.gcd(CHANNELS, count) if count else 1 for site, count in channels.items()}


def slow_sizes(network: nn.Module, graph: Graph, kept: Mapping[str, int]) -> str:
    """What to say of sizes that are cut to no multiple of what runs; "" where there are none."""
    of = multiples("auto", network, graph)
    slow = [site for site, size in kept.items() if size < graph.sites[site].size and size % of[site]]
    return "" if not slow else f"{len(slow)} of {len(kept)} sites are cut to {ADVICE}"


def channels_of(network: nn.Module, graph: Graph) -> Mapping[str, int]:
    """Site -> channels of a convolution that go with one unit of it; 0 where no convolution loses any. 1 where the units of
    another site are of the same channels, such as whole groups: how many go with one then depends on how many are left."""
    weights = {f"{name}.weight" if name else "weight" for name, module in network.named_modules() if isinstance(module, _ConvNd)}
    cut: dict[tuple[str, int], list[Site]] = {}
    for site in graph.sites.values():
        for place in site.parameters:
            if place[0] in weights:
                cut.setdefault(place, []).append(site)
    crossed = {
        one.name
        for place, sites in cut.items()
        for one in sites
        for other in sites
        if one is not other and one.size >= other.size and _entries(one, place, 1) & _entries(other, place, other.size)
    }
    found = {}
    for name, site in graph.sites.items():
        owned = (
            [len(one.index) for one in site.unit(0) if one.parameter in weights] if weights & dict(site.parameters).keys() else []
        )
        found[name] = 1 if name in crossed else max(owned, default=0)
    return found


def _entries(site: Site, place: tuple[str, int], units: int) -> set[int]:
    """Of the first units, what they own of a tensor along a dimension."""
    owned = (one for number in range(units) for one in site.unit(number) if (one.parameter, one.dim) == place)
    return {entry for one in owned for entry in one.index}
