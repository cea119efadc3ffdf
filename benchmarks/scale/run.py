"""The scale check: ResNet-50 at 224 analysed after export, a Llama of 7 billion parameters on the meta device traced, grouped and
planned, and 1e8 and 1e9 weights planned and projected.

    featherweight reproduce scale --row NAME    one row, in a process of its own: its peak memory is that of the process
    featherweight reproduce scale               every row that is not done yet, one after the other, then the table

The two networks need the packages pytorchcv and transformers; nothing is downloaded.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import torch
from torch import nn

from benchmarks.lib.rows import ROOT, Line, Rows, parser, wanted
from featherweight import ADMM, Constrain, Rule, TopK
from featherweight.recipe.plan import resolve
from featherweight.structure import Graph, prune
from featherweight.structure.capture import capture
from featherweight.structure.tracing import analyse

ROWS = Rows(__file__)
KEEP = 0.05  # of the weights


def peak() -> float:
    """GB of memory that the process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Laps:
    """Seconds of this process (which a busy machine does not stretch) since the last lap."""

    def __init__(self) -> None:
        self.last = time.process_time()

    def __call__(self) -> float:
        spent, self.last = time.process_time() - self.last, time.process_time()
        return round(spent, 2)


def weights(number: int, layers: int) -> Line:
    """`number` weights in some equal layers: the plan of one budget for all, ADMM's start, and one Z and U update of each.

    Over the weights' bytes: the peak of the process beyond what it had before the weights were made. A topk of each layer, by
    its magnitudes and for as many entries, is what the update is compared with, once all is done.
    """
    before = peak()
    width = number // layers // 10_000
    network = nn.ModuleList(nn.Linear(width, 10_000, bias=False) for _ in range(layers))
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    lap = Laps()
    plan = resolve(Constrain("pruned", (Rule("*", TopK()),), keep=KEEP, allocate="magnitude", driver=ADMM(0.1, 1)), network)
    planned = lap()
    driver, states = ADMM(0.1, 1), {}
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
    with torch.no_grad():
        for name, target in plan.targets.items():
            states[name] = driver.start(parameters[name], target, None)
        started = lap()
        for name, target in plan.targets.items():
            driver.project(states[name], parameters[name], target, None)
        projected = lap()
        most = peak()
        sizes = {name: target.set.size() for name, target in plan.targets.items()}
        states.clear()
        lap()
        for name, parameter in parameters.items():
            parameter.abs().reshape(-1).topk(sizes[name], sorted=False)
        ranked = lap()
    bytes_of = number * 4 / 2**30
    return {
        "weights": number, "layers": layers, "GB": round(bytes_of, 2), "peak": round((most - before) / bytes_of, 2),
        "plan": planned, "start": started, "update": projected, "over topk": round(projected / ranked, 2),
    }  # fmt: skip


def resnet() -> Line:
    from benchmarks.coverage import suites as coverage

    coverage.stand_in_for_torchvision()
    from pytorchcv.model_provider import get_model

    model = get_model("resnet50b", pretrained=False).eval()
    lap = Laps()
    captured = capture(model, (torch.randn(1, 3, 224, 224),))
    exported = lap()
    graph = analyse(captured, model)
    return {
        "network": "ResNet-50 at 224",
        "export": exported,
        "analysis": lap(),
        "sites": len(graph.sites),
        "GB": round(peak(), 1),
    }


def half_budget(graph: Graph, share: float = 0.5) -> dict[str, int]:
    """The same share of every site, found by bisection on macs(sizes): a plan that builds nothing."""
    low, high = 0.0, 1.0
    sizes: dict[str, int] = {}
    for _ in range(12):
        middle = (low + high) / 2
        sizes = {n: max(1, int(s.size * middle)) for n, s in graph.sites.items()}
        low, high = (low, middle) if graph.macs(sizes) > share * graph.macs() else (middle, high)
    return sizes


def llama() -> Line:
    import transformers

    from benchmarks.coverage import suites as coverage

    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig()).eval()  # 32 layers of width 4096
        tokens = torch.zeros(1, 16, dtype=torch.int64)
    network = coverage.Logits(model, ("input_ids",), (("use_cache", False),)).eval()
    lap = Laps()
    captured = capture(network, (tokens,))
    exported = lap()
    graph = analyse(captured, network)
    analysed = lap()
    sizes = half_budget(graph)
    planned = lap()
    prune(network, graph, {n: list(range(k)) for n, k in sizes.items()})
    cut = lap()
    left = sum(p.numel() for p in network.parameters())
    assert left == graph.parameters(sizes), "the plan and the cut disagree"
    return {
        "network": "Llama of 7 B on meta", "export": exported, "analysis": analysed, "sites": len(graph.sites),
        "plan": planned, "cut": cut, "GB": round(peak(), 1),
    }  # fmt: skip


MEASURED = {
    "1e8 weights in 10 layers": lambda: weights(10**8, 10),
    "1e8 weights in one layer": lambda: weights(10**8, 1),
    "1e9 weights in 10 layers": lambda: weights(10**9, 10),
    "1e9 weights in one layer": lambda: weights(10**9, 1),
    "Llama": llama,
    "ResNet-50": resnet,
}
INTRODUCTION = """# Scale

Regenerated by `featherweight reproduce scale`; 1 thread, seconds of processor time. Peak memory: of the process, beyond what it
had before the weights were made, over the bytes of the weights (float32), the weights included; asked: at most 4.5. The update is
one Z and U update of ADMM of all layers, 5 % kept; over one topk of as many entries of each layer, asked: at most 1.5.

| what | weights, GB | peak / weights | plan, s | ADMM's start, s | update, s | update / topk |
|---|---|---|---|---|---|---|
"""


def table(done: dict[str, Line]) -> str:
    text = INTRODUCTION
    for name, row in done.items():
        if "weights" in row:
            cells = [name, *(row[key] for key in ("GB", "peak", "plan", "start", "update", "over topk"))]
            text += f"| {' | '.join(map(str, cells))} |\n"
    networks = [row for row in done.values() if "network" in row]
    if networks:
        text += "\n| network | export, s | analysis, s | sites | plan, s | cut, s | peak, GB |\n|---|---|---|---|---|---|---|\n"
        for row in networks:
            cells = [row.get(key, "") for key in ("network", "export", "analysis", "sites", "plan", "cut", "GB")]
            text += f"| {' | '.join(map(str, cells))} |\n"
    return text


def main() -> None:
    chosen = parser(__doc__, MEASURED).parse_args()
    if chosen.row or chosen.table:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        ROWS.fill(wanted(chosen, MEASURED), lambda name: MEASURED[name](), table)
        return
    for name in MEASURED:
        subprocess.run([sys.executable, "-m", "benchmarks.scale.run", "--row", name], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
