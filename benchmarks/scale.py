"""The scale check: ResNet-50 at 224 analysed after export, and a Llama of 7 billion parameters on the meta device traced,
grouped and planned.

    python benchmarks/scale.py

Needs the packages pytorchcv and transformers; downloads nothing. Prints one line per network; the peak memory is that of the
process so far.
"""

from __future__ import annotations

import resource
import time

import coverage
import torch

from featherweight.structure import Graph, prune
from featherweight.structure.capture import capture
from featherweight.structure.graph import analyse


def peak() -> str:
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GB"


class Laps:
    """Seconds since the last lap: of the wall clock, and of this process (which a busy machine does not stretch)."""

    def __init__(self) -> None:
        self.wall, self.own = time.perf_counter(), time.process_time()

    def __call__(self) -> str:
        wall, own = time.perf_counter() - self.wall, time.process_time() - self.own
        self.wall, self.own = time.perf_counter(), time.process_time()
        return f"{wall:.2f} s ({own:.2f} s of processor)"


def resnet() -> None:
    coverage.stand_in_for_torchvision()
    from pytorchcv.model_provider import get_model

    model = get_model("resnet50b", pretrained=False).eval()
    lap = Laps()
    captured = capture(model, (torch.randn(1, 3, 224, 224),))
    print("ResNet-50 at 224: export", lap())
    graph = analyse(captured, model)
    print("  analysis", lap(), f"{len(graph.sites)} sites, {graph.macs():,} MACs,", peak())


def half_budget(graph: Graph, share: float = 0.5) -> dict[str, int]:
    """The same share of every site, found by bisection on macs(sizes): a plan that builds nothing."""
    low, high = 0.0, 1.0
    sizes: dict[str, int] = {}
    for _ in range(12):
        middle = (low + high) / 2
        sizes = {n: max(1, int(s.size * middle)) for n, s in graph.sites.items()}
        low, high = (low, middle) if graph.macs(sizes) > share * graph.macs() else (middle, high)
    return sizes


def llama() -> None:
    import transformers

    lap = Laps()
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig()).eval()  # 32 layers of width 4096
        tokens = torch.zeros(1, 16, dtype=torch.int64)
    network = coverage.Logits(model, ("input_ids",), (("use_cache", False),)).eval()
    print("Llama 7B on meta: build", lap())
    captured = capture(network, (tokens,))
    print("  export", lap())
    graph = analyse(captured, network)
    print("  analysis", lap(), f"{len(graph.sites)} sites, {graph.parameters():,} parameters")
    sizes = half_budget(graph)
    print("  plan", lap(), f"{graph.macs():,} -> {graph.macs(sizes):,} MACs")
    prune(network, graph, {n: list(range(k)) for n, k in sizes.items()})
    print(
        "  cut",
        lap(),
        f"{sum(p.numel() for p in network.parameters()):,} parameters, predicted {graph.parameters(sizes):,},",
        peak(),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    llama()
    resnet()
