"""Learned proportions: how many units each site keeps and which residual blocks stay, trained jointly with the weights.

Every unit of a site has a gate, and a site has one number t: of its C units sigmoid(t) C are kept. A mask that adds up to just
that, soft at first and ever sharper, lies over the largest gates. Every block has a switch s: its branch is multiplied by
p = sigmoid(s). The loss is the task's and

    weight max(0, params(k, p) / params_0 - budget),   k = C sigmoid(t)

so that t and s trade units and blocks against each other at what they cost in parameters and are worth to the task. A share p
would settle between 0 and 1, as the weights of the branch can make up for it: after the first part of the training each block is
decided, p is 0 or 1 from there on, and the units share out anew what the blocks have left or taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Adam, Optimizer

from featherweight.budget.choices import Infeasible
from featherweight.budget.tied import Tied
from featherweight.budget.units import Sizes, rounded_up, shifted
from featherweight.criteria.readers import find_readers, gated, producers, unit_sums
from featherweight.errors import InputError
from featherweight.network.calls import Example, Inputs
from featherweight.recipe.schema import LearnUnits
from featherweight.recipe.units import Adaptive
from featherweight.run.ground import Ground
from featherweight.run.stage import begin, without_codes
from featherweight.run.state import Result
from featherweight.run.watch import Monitor
from featherweight.structure import (
    Edit,
    Graph,
    ParameterCount,
    branches,
    drop,
    droppable,
    expressible,
    free_sizes,
    prune,
    trace,
)
from featherweight.weights.optimizers import Scales, Steps
from featherweight.weights.parametrized import layouts_kept

OPEN = 3.0  # where t and s start: 95 % of the units, 95 % of the branch
WIDTH = 0.5  # of the soft edge of a mask at the start, where a site's gates are 1 in the mean
SHARPEST = 30.0  # times narrower the edge is at the end: a unit that goes is multiplied by almost 0 by then
DECIDED = 2 / 3  # of the steps after which a block stays, if its share is at least 1/2, or is out of the computation
BETAS = (0.0, 0.99)  # of Adam: momentum would carry far below the budget; a short memory lets the task be heard once it is met
SWITCH_RATE = 3.0  # times the gates' rate: blocks are near 1/2 when the budget is met, and climb back where the task wants them
REACH = 20.0  # sigmoid(-20) is 0 for any mask


def soft_top_k(gates: Tensor, keep: Tensor, width: float) -> Tensor:
    """Masks in (0, 1) that add up to `keep` and are sigmoid((|gate| - threshold) / width), the threshold being solved for.

    gates  (sites, most): row by row; entries that are NaN are no units and get 0
    keep   (sites,), each above 0 and below the number of the row's units

    As width -> 0 the mask is that of the `keep` largest. Differentiable in gates and keep: a gate's gradient says which unit is
    worth a place, the gradient of keep whether a place is worth its cost.
    """
    real = ~gates.isnan()
    scaled = torch.where(real, gates, 0.0).abs().double() / width
    heights = torch.where(real, scaled, -torch.inf)
    with torch.no_grad():
        low = torch.where(real, scaled, torch.inf).amin(1, keepdim=True) - REACH
        high = heights.amax(1, keepdim=True) + REACH
        for _ in range(60):
            middle = (low + high) / 2
            above = torch.sigmoid(heights - middle).sum(1, keepdim=True) > keep[:, None]
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        mask = torch.sigmoid(heights - low)
        slope = (mask * (1 - mask)).sum(1, keepdim=True).clamp_min(1e-12)
    # one step of Newton from the solution: moves nothing, but carries the gradient of the threshold
    threshold = low + (torch.sigmoid(heights - low).sum(1, keepdim=True) - keep[:, None].double()) / slope
    return torch.sigmoid(heights - threshold)


class Proportions:
    """`with Proportions(asked, model, example, optimizer, steps) as learned: ...` around a training loop; then `learned.cut()`.

    model      gated inside at the readers of its sites (see `readers`) and at its blocks' branches, and not changed otherwise
    optimizer  of the weights; the gates have an Adam of their own, which steps before each of its steps
    steps      of the whole training, over which masks sharpen and blocks are decided

    Learns over the sites and blocks that can go in the network's own class. Raises InputError where there are neither, or codes
    in the way; Infeasible where the least network there is has too many parameters.
    """

    def __init__(self, asked: Adaptive, model: nn.Module, example: Example | Inputs, optimizer: Optimizer, steps: int):
        without_codes(model, "what is cut is learned", "the adaptive stage")
        self.asked, self.model, self.example, self.optimizer, self.steps = asked, model, example, optimizer, steps
        self.graph = graph = trace(model, example)
        readers = find_readers(model, graph)
        groups = free_sizes(model, graph, [name for name in graph.sites if name not in readers.unobservable])
        free = {name for group in groups for name in group}
        self.sites = tuple(name for name in graph.sites if name in free)
        self.tied = Tied(groups, {name: graph.sites[name].size for name in self.sites})
        self.readers = [reader for reader in readers.readers if not set(self.sites).isdisjoint(reader.units)]
        self.branches = branches(model, graph, droppable(model, graph))
        self.blocks = tuple(self.branches)
        if not self.sites and not self.blocks:
            why = "".join(f"; {name}: {reason}" for name, reason in readers.unobservable.items())
            by_weights = bool(expressible(model, graph, list(graph.sites)))
            raise InputError(
                f"there is nothing to learn: no site ({', '.join(graph.sites) or 'there is none'}) and no residual block "
                f"({', '.join(graph.blocks) or 'there is none'}) of the network can be gated and go in its own class{why}. "
                f"Take {'l1_filters, which cuts without gates, or ' if by_weights else ''}progressive_admm, which makes zeros"
            )
        self.count = ParameterCount(graph)
        self.limit = asked.parameters * graph.parameters()
        self._site_at = torch.tensor([self.count.sites.index(name) for name in self.sites], dtype=torch.int64)
        self._group_at = torch.tensor(
            [next(k for k, group in enumerate(groups) if name in group) for name in self.sites], dtype=torch.int64
        )
        self._block_at = torch.tensor([self.count.blocks.index(name) for name in self.blocks], dtype=torch.int64)
        self._require_feasible()
        like = next(model.parameters())
        self._units = like.new_tensor([graph.sites[name].size for name in self.sites])
        self.gates = Parameter(_padded([_norms(model, graph, name) for name in self.sites]).to(like))
        self.proportions = Parameter(like.new_full((len(groups),), OPEN))  # t
        self.switches = Parameter(like.new_full((len(self.blocks),), OPEN))  # s
        rates: list[dict[str, Any]] = [
            {"params": [self.gates, self.proportions]},
            {"params": [self.switches], "lr": SWITCH_RATE * asked.rate},
        ]
        self.adam = Adam(rates, lr=asked.rate, betas=BETAS)
        self.step = 0
        self._masks: dict[str, Tensor] = {}
        self._shares: dict[str, Tensor] = {}
        self._inside = ExitStack()

    # ---- what is learned

    @property
    def sharpness(self) -> float:
        """Of the masks: grows from 1 to SHARPEST."""
        return float(SHARPEST ** min(self.step / max(self.steps, 1), 1.0))

    def shares(self) -> Tensor:
        """(blocks,) p: what each branch is multiplied by."""
        if self.step >= DECIDED * self.steps:
            return (self.switches.detach() >= 0).to(self.switches.dtype)
        return torch.sigmoid(self.switches)

    def kept(self) -> Tensor:
        """(sites,) k: the units that each site keeps."""
        return self._units * torch.sigmoid(self.proportions)[self._group_at]

    def masks(self) -> Tensor:
        """(sites, most units of a site): what each unit is multiplied by, 0 where a site has none."""
        return soft_top_k(self.gates, self.kept(), WIDTH / self.sharpness).to(self.gates.dtype)

    def parameters(self) -> Tensor:
        """params(k, p), in float64."""
        units = torch.tensor(self.count.sizes, dtype=torch.float64).index_put((self._site_at,), self.kept().double().cpu())
        shares = torch.ones(len(self.count.blocks), dtype=torch.float64)
        return self.count.at(units, shares.index_put((self._block_at,), self.shares().double().cpu()))

    def penalty(self) -> Tensor:
        """What is added to the loss."""
        return self.asked.weight * torch.relu(self.parameters() - self.limit) / self.graph.parameters()

    # ---- around the training loop

    def __enter__(self) -> Self:
        enter = self._inside.enter_context
        enter(gated(self.model, self.readers, self._masks, cast=True))
        handles = [
            self.model.register_forward_pre_hook(self._refresh),
            *(self.model.get_submodule(path).register_forward_hook(self._scaled(name)) for name, path in self.branches.items()),
        ]
        for handle in handles:
            self._inside.callback(handle.remove)
        steps = Steps(self.optimizer, {}, self._before, lambda: None)
        steps.open()
        self._inside.callback(steps.close)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._inside.close()
        self._masks.clear()
        self._shares.clear()

    def _refresh(self, module: nn.Module, inputs: Any) -> None:
        if self.sites:
            rows = zip(self.sites, self.masks(), strict=True)
            self._masks.update({name: row[: self.graph.sites[name].size] for name, row in rows})
        self._shares.update(zip(self.blocks, self.shares(), strict=True))

    def _scaled(self, block: str) -> Any:
        def scale(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            return output * self._shares[block].to(output.dtype)

        return scale

    def _before(self, scales: Scales, first: bool) -> None:
        if first:  # a closure that is called again within a step says nothing new of the gates
            with torch.enable_grad():
                self.penalty().backward()
            self.adam.step()
            self.step += 1
        self.adam.zero_grad()

    def residuals(self) -> dict[str, float]:
        """Site or block -> the distance of its masks, or its share, from 0 and 1, over their norm."""
        with torch.no_grad():
            rows = [*self.masks(), *self.shares()]
            names = [*self.sites, *self.blocks]
            norms = [max(float(torch.linalg.vector_norm(row)), 1e-12) for row in rows]
            away = [float(torch.linalg.vector_norm(row - row.round())) for row in rows]
        return {name: far / norm if norm > 0.5 else far for name, far, norm in zip(names, away, norms, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs: the gates, their optimizer's moments, and the step count."""
        values = {"gates": self.gates, "proportions": self.proportions, "switches": self.switches}
        return {"step": self.step, "adam": self.adam.state_dict(), **{name: value.detach() for name, value in values.items()}}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; call it before entering."""
        with torch.no_grad():
            for name in ("gates", "proportions", "switches"):
                getattr(self, name).copy_(saved[name])
        self.adam.load_state_dict(saved["adam"])
        self.step = saved["step"]

    # ---- the cut

    def chosen(self) -> tuple[Sizes, list[str]]:
        """Units that each site keeps, and the blocks that go: those with p < 0.5, and where no sizes could meet the budget, the
        next in order of p. Sizes are the learned ones, all shifted alike until the budget is met and nearly used up."""
        order = sorted(range(len(self.blocks)), key=self.switches.tolist().__getitem__)
        number = sum(switch < 0 for switch in self.switches.tolist())
        while (
            self._cost(self.tied.sizes(dict.fromkeys(self.tied.levels, 1)), [self.blocks[i] for i in order[:number]]) > self.limit
        ):
            number += 1
        gone = [self.blocks[i] for i in sorted(order[:number])]
        learned = zip(self.tied.levels.items(), self.proportions.tolist(), strict=True)
        cost = self.tied.cost(lambda given: self._cost(given, gone))
        levels = shifted({name: (t, most) for (name, most), t in learned}, cost, self.limit)
        sizes = self.tied.sizes(levels)
        return {name: sizes[name] for name in self.sites}, gone

    def cut(self) -> list[Edit]:
        """Cut the network in place; the edits. What is kept of a site are its largest gates. Raises NotExact."""
        sizes, gone = self.chosen()
        removed = {parameter for name in gone for parameter in self.graph.blocks[name].parameters}
        keep = {}
        for row, (name, size) in zip(self.gates.detach(), sizes.items(), strict=True):
            site = self.graph.sites[name]
            owned = {parameter for parameter, _ in site.parameters if self.graph.kinds[parameter] == "parameter"}
            if size < site.size and not owned <= removed:  # the units of a block that goes need no cut of their own
                order = torch.argsort(row[: site.size].abs(), descending=True, stable=True)
                keep[name] = sorted(order[:size].tolist())
        results = [prune(self.model, self.graph, keep, where="class")] if keep else []
        if gone:
            results.append(drop(self.model, trace(self.model, self.example), gone, where="class"))
        return [result.edit for result in results if result.edit is not None]

    def _cost(self, sizes: Mapping[str, int], gone: list[str]) -> int:
        units = torch.tensor([sizes.get(name, size) for name, size in zip(self.count.sites, self.count.sizes, strict=True)])
        return int(self.count.at(units, torch.tensor([float(name not in gone) for name in self.count.blocks])))

    def _require_feasible(self) -> None:
        least, whole = self._cost(self.tied.sizes(dict.fromkeys(self.tied.levels, 1)), list(self.blocks)), self.graph.parameters()
        if least > self.limit:
            gone = f" and without the {len(self.blocks)} blocks that can go in its own class" if self.blocks else ""
            raise Infeasible(
                f"{100 * self.asked.parameters:g} % of the network's {whole:,} parameters cannot be met: with one unit a site"
                f"{gone} it has {least:,}. Ask for {rounded_up(100 * least / whole)} % or more"
            )


def _norms(model: nn.Module, graph: Graph, site: str) -> Tensor:
    """(units,) the norms of the weights that make each unit, 1 in the mean: where its gates start."""
    squares = [
        unit_sums(graph, site, name, dim, model.get_parameter(name).detach().double() ** 2)
        for name, dim in producers(graph, site)
    ]
    norms = torch.stack(squares).sum(0).sqrt() if squares else torch.ones(graph.site(site).size)
    return norms / norms.mean() if bool(norms.any()) else torch.ones_like(norms)


def _padded(rows: list[Tensor]) -> Tensor:
    """(rows, longest), NaN where a row is shorter."""
    if not rows:
        return torch.zeros(0, 0)
    return torch.nn.utils.rnn.pad_sequence([row.double() for row in rows], batch_first=True, padding_value=np.nan)


def learn_units(stage: LearnUnits, start: Result, ground: Ground, monitor: Monitor) -> Result:
    """Run a stage that learns which units and blocks go, cuts them, and trains what is left."""
    running = begin(stage, start, ground, monitor)
    running.resume()
    running.prepare()
    left, loss = running.unfinished, float("inf")
    if left is None or left.phase == "train":
        optimizer = running.optimizer()
        steps = stage.train.epochs * running.steps_an_epoch
        learned = Proportions(stage.adaptive, running.network, ground.task.example_inputs, optimizer, steps)
        if left is not None and left.guide is not None:
            learned.load_state_dict(left.guide)
        with learned:
            loss = running.train(optimizer, learned, [learned.gates, learned.proportions, learned.switches])
        running.watch.residuals = learned.residuals()
        with layouts_kept(running.network):
            running.cut(ground.engine.decided(learned.cut))
    if stage.retrain.epochs:
        loss = running.retrain(stage.retrain)
    return running.finish(loss, stage.adaptive.share)
