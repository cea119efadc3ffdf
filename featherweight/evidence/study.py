"""Two networks on the same examples: what is compared, beside a yardstick and a floor, and the verdict.

The yardstick is a pair of dense networks that differ in their seed alone: what they agree on is all that can be asked of a small
network. The floor is an untrained network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featherweight.errors import InputError, did_you_mean
from featherweight.evidence import attribute, compare
from featherweight.evidence.attribute import Logits, Method, all_logits, attributions
from featherweight.evidence.compare import MEASURES, TOP, Agreement, Area, Array, McNemar
from featherweight.evidence.examples import Examples
from featherweight.task import itself

# Where no second dense network is given: pruned to a tenth, an Mafk network kept .911, .701 and .794 (its pair of seeds had .812,
# .561 and .672) of Pearson, Spearman and the top ten; pruned to a fiftieth it kept .570, .391 and .431.
BARS = {"pearson": 0.85, "top": 0.70}
MOST_LOST = 0.01  # of the area under the curve, or of the accuracy
LEAST_ABOVE = 0.05  # by which Pearson of the yardstick has to be above that of the floor
DELETED = (1, 2, 5, 10, 20)


@dataclass(frozen=True)
class Network:
    """One network's answers.

    logits      (count, classes); probabilities: of the class that a two-class problem is about, else of the answer given
    answers     class numbers (count,), at its own threshold where there are two classes
    maps        (count, places), signed for sequences
    """

    logits: Array
    probabilities: Array
    answers: Array
    right: Array
    maps: Array
    threshold: float | None
    calibration: float
    accuracy: float


@dataclass(frozen=True)
class Study:
    """All that the page shows and `--require` asks for.

    agreement    of the maps of dense and small, and of dense and `other` (yardstick) and of dense and untrained (floor)
    of           numbers of the examples that `agreement` is of: the positives of a two-class problem, else all
    deletion     share of places deleted -> mean drop of the dense network's score where its own top places go, where the small
                 one's go, and where random ones go; and the same with the networks in each other's place
    floor_maps   of the untrained network
    """

    examples: Examples
    dense: Network
    small: Network
    agreement: Agreement
    yardstick: Agreement | None
    floor: Agreement | None
    of: Array
    areas: tuple[Area, Area] | None
    difference: tuple[float, float] | None
    mcnemar: McNemar
    same_answers: float
    deletion: dict[str, dict[int, float]]
    inside: dict[str, float]
    floor_maps: Array | None
    method: str
    verdict: Verdict = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "verdict", judged(self.numbers()))

    @property
    def two_classes(self) -> bool:
        return self.dense.logits.shape[1] == 2

    def numbers(self) -> dict[str, float]:
        """Name -> number: what `--require` may ask for."""
        found = self.agreement.medians()
        for prefix, other in (("yardstick", self.yardstick), ("floor", self.floor)):
            if other is not None:
                found |= {f"{prefix}_{name}": value for name, value in other.medians().items()}
        found |= {"same_answers": self.same_answers, "calibration": self.small.calibration, "accuracy": self.small.accuracy}
        found |= {"lost": float(self.mcnemar.lost), "won": float(self.mcnemar.won), "dense_accuracy": self.dense.accuracy}
        if self.areas and self.difference:
            found |= {"auc": self.areas[1].auc, "dense_auc": self.areas[0].auc, "p_of_loss": self.difference[1]}
        else:
            found["p_of_loss"] = self.mcnemar.p
        found |= {"swap_deletion": swap(self.deletion)}
        if self.inside:
            found |= {f"inside_{name}": value for name, value in self.inside.items()}
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "verdict": {"same": self.verdict.same, "says": self.verdict.says, "reasons": list(self.verdict.reasons)},
            "numbers": {name: round(value, 6) for name, value in self.numbers().items()},
            "examples": len(self.examples),
            "compared": len(self.of),
            "how": self.examples.how,
            "method": self.method,
            "mcnemar": {"lost": self.mcnemar.lost, "won": self.mcnemar.won, "p": self.mcnemar.p},
            "areas": [vars(area) for area in self.areas] if self.areas else None,
            "thresholds": [self.dense.threshold, self.small.threshold],
            "deletion": self.deletion,
            "worst": [self.examples.names[self.of[number]] for number in self.agreement.worst()],
        }


@dataclass(frozen=True)
class Verdict:
    """Does the small network read the same evidence? In one line, and the reasons."""

    same: bool
    says: str
    reasons: tuple[str, ...]


def examine(
    dense: nn.Module,
    small: nn.Module,
    examples: Examples,
    *,
    other: nn.Module | None = None,
    untrained: nn.Module | None = None,
    method: str | None = None,
    logits: Logits = itself,
    said: Callable[[str], None] = lambda message: None,
) -> Study:
    """Compare `small` with `dense`. `other`: a dense network of another seed, for the yardstick; `untrained`: for the floor.

    method   a name of `attribute.METHODS`, or captum:CLASS; None: centred saliency of sequences, saliency of all else
    said     is told what is being done
    Raises InputError where the networks' outputs are no logits of the same classes.
    """
    name = method or ("centred" if examples.kind == "sequences" else "saliency")
    how = attribute.method(name)
    if not len(examples):
        raise InputError("there is no example to compare networks on")
    said("answers of both networks")
    logits_of = {key: all_logits(net, examples.inputs, logits) for key, net in (("dense", dense), ("small", small))}
    if logits_of["dense"].shape != logits_of["small"].shape:
        raise InputError(
            f"the networks have {logits_of['dense'].shape[1]} and {logits_of['small'].shape[1]} classes: give two of the same "
            "problem"
        )
    two = logits_of["dense"].shape[1] == 2
    if int(examples.labels.max()) >= logits_of["dense"].shape[1] or int(examples.labels.min()) < 0:
        raise InputError(
            f"the data has a class {int(examples.labels.max())}, and the networks have {logits_of['dense'].shape[1]}"
        )
    of, against = _asked(logits_of["dense"])
    said("attributions")
    nets = {"dense": dense, "small": small, "other": other, "untrained": untrained}
    maps = {key: _maps(net, examples, of, against, how, logits) for key, net in nets.items() if net is not None}
    answered = {
        key: _network(net, logits_of[key], maps[key], examples, logits) for key, net in (("dense", dense), ("small", small))
    }
    chosen = np.flatnonzero(examples.labels.numpy() == 1) if two else np.arange(len(examples))
    if not len(chosen):
        raise InputError("the examples hold no positive one: give some of class 1")
    agreements = {key: Agreement.of(maps["dense"][chosen], maps[key][chosen]) for key in maps if key != "dense"}
    labels = examples.labels.numpy()
    areas = difference = None
    if two and min((labels == 1).sum(), (labels == 0).sum()) >= 2:
        margins = [answered[key].logits[:, 1] - answered[key].logits[:, 0] for key in ("dense", "small")]
        areas = tuple(compare.delong(labels, *margins)[0])
        difference = compare.difference_of_areas(labels, *margins)
    said("deletion")
    deletion = _deletion(dense, small, examples, of, against, maps, chosen, logits)
    planted = examples.planted
    where = {key: compare.inside(maps[key], planted.numpy()) for key in maps} if planted is not None else {}
    return Study(
        examples,
        answered["dense"],
        answered["small"],
        agreements["small"],
        agreements.get("other"),
        agreements.get("untrained"),
        chosen,
        areas,  # type: ignore[arg-type]
        difference,
        compare.mcnemar(answered["dense"].right, answered["small"].right),
        float((answered["dense"].answers == answered["small"].answers).mean()),
        deletion,
        where,
        maps.get("untrained"),
        name,
    )


def _asked(dense: Tensor) -> tuple[Tensor, Tensor]:
    """Which logit against which: class 1 against 0 of two, else the dense network's answer against its second best."""
    if dense.shape[1] == 2:
        return torch.ones(len(dense), dtype=torch.int64), torch.zeros(len(dense), dtype=torch.int64)
    best = dense.topk(2, dim=1).indices
    return best[:, 0], best[:, 1]


def _maps(network: nn.Module, examples: Examples, of: Tensor, against: Tensor, how: Method, logits: Logits) -> Array:
    found = attributions(network, examples.inputs, of, against, how, logits)
    placed = attribute.of_positions(found) if examples.kind == "sequences" else attribute.pooled(found)
    return placed.numpy().astype(np.float64)


def _network(network: nn.Module, found: Tensor, maps: Array, examples: Examples, logits: Logits) -> Network:
    labels, shares = examples.labels.numpy(), found.double().softmax(dim=1).numpy()
    cut = None
    if found.shape[1] == 2:
        margins = (found[:, 1] - found[:, 0]).double().numpy()
        cut = 0.0
        if examples.choosing is not None:
            chosen = all_logits(network, examples.choosing[0], logits)
            cut = compare.threshold((chosen[:, 1] - chosen[:, 0]).double().numpy(), examples.choosing[1].numpy())
        answers, probabilities = (margins > cut).astype(np.int64), shares[:, 1]
        confidence, sure = np.maximum(shares[:, 1], shares[:, 0]), shares.argmax(axis=1) == labels
    else:
        answers = shares.argmax(axis=1)
        probabilities = confidence = shares.max(axis=1)
        sure = answers == labels
    right = answers == labels
    calibration = compare.calibration_error(confidence, sure)
    return Network(found.numpy(), probabilities, answers, right, maps, cut, calibration, float(right.mean()))


# --- deletion ------------------------------------------------------------------------------------------------------------


def _deletion(
    dense: nn.Module,
    small: nn.Module,
    examples: Examples,
    of: Tensor,
    against: Tensor,
    maps: dict[str, Array],
    chosen: Array,
    logits: Logits,
    most: int = 256,
) -> dict[str, dict[int, float]]:
    """Mean drops of the score of up to `most` examples: "dense, own", "dense, small's", "dense, random" and the same of small."""
    rows = chosen[:most]
    index = torch.from_numpy(rows)
    inputs, of, against = examples.inputs[index], of[index], against[index]
    places = maps["dense"].shape[1]
    dice = np.random.default_rng(0)
    orders = {key: compare.top_places(np.abs(maps[key][rows]), places) for key in ("dense", "small")}
    orders["random"] = np.stack([dice.permutation(places) for _ in rows])
    names = {"dense": ("own", "small's", "random"), "small": ("dense's", "own", "random")}
    found: dict[str, dict[int, float]] = {}
    for key, network in (("dense", dense), ("small", small)):
        before = _scores(network, inputs, of, against, logits)
        for order, name in zip(("dense", "small", "random"), names[key], strict=True):
            drops = {}
            for count in DELETED:
                if count < places:
                    gone = _without(examples, inputs, orders[order][:, :count], places)
                    drops[count] = float((before - _scores(network, gone, of, against, logits)).mean())
            found[f"{key}, {name}"] = drops
    return found


def _scores(network: nn.Module, inputs: Tensor, of: Tensor, against: Tensor, logits: Logits) -> Tensor:
    found = all_logits(network, inputs, logits)
    return found.gather(1, of[:, None])[:, 0] - found.gather(1, against[:, None])[:, 0]


def _without(examples: Examples, inputs: Tensor, gone: Array, places: int) -> Tensor:
    """The inputs with zeros at these places: bases that are not known, cells of the grid over an image."""
    kept = torch.ones(len(inputs), places).scatter_(1, torch.from_numpy(np.ascontiguousarray(gone)), 0.0)
    if examples.kind == "sequences":
        return inputs * kept[:, None]
    if inputs.ndim == 4:
        grid = (min(8, inputs.shape[2]), min(8, inputs.shape[3]))
        cells = kept.reshape(-1, 1, *grid)
        return inputs * torch.nn.functional.interpolate(cells, size=inputs.shape[2:], mode="nearest")
    return inputs * kept.reshape(inputs.shape)


def swap(deletion: dict[str, dict[int, float]]) -> float:
    """What the dense network loses where the small one's top places go, over what it loses where its own go."""
    own, swapped = sum(deletion["dense, own"].values()), sum(deletion["dense, small's"].values())
    return swapped / own if own > 0 else math.nan


# --- the verdict ---------------------------------------------------------------------------------------------------------

WORDS = {"pearson": "Pearson", "top": f"top {TOP}"}
MARGIN = {"pearson": 0.05, "top": 0.1}  # by which a small network may stay behind the yardstick: of ten places, one


def judged(numbers: Mapping[str, float]) -> Verdict:
    """The verdict on `Study.numbers()`.

    Yes where the maps agree as well as those of the yardstick, within a margin, by Pearson and by the top places, and the answers
    are not significantly worse by more than 0.01; without a yardstick, against fixed bars. Spearman is shown and not judged: it
    ranks every place alike, and most places of a sequence hold no evidence.
    """
    yardstick = "yardstick_pearson" in numbers
    bars = {name: numbers[f"yardstick_{name}"] - MARGIN[name] if yardstick else BARS[name] for name in WORDS}
    reasons = []
    for name, word in WORDS.items():
        sign = "below" if numbers[name] < bars[name] else "at or above"
        against = f"that of two dense networks, {numbers[f'yardstick_{name}']:.3f}, less {MARGIN[name]:g}" if yardstick else (
            f"the fixed bar {bars[name]:g}")  # fmt: skip
        reasons.append(f"{word} {numbers[name]:.3f}, {sign} {against}")
    what = "area under the curve" if "auc" in numbers else "accuracy"
    before, after = (numbers[f"{key}{'auc' if 'auc' in numbers else 'accuracy'}"] for key in ("dense_", ""))
    p = numbers["p_of_loss"]
    worse = before - after > MOST_LOST and p < 0.01
    reasons.append(f"{what} {before:.4f} to {after:.4f} (p {p:.2g})")
    if not yardstick:
        reasons.append("no second dense network was given, so that a yardstick is missing")
    if yardstick and numbers["yardstick_pearson"] < numbers.get("floor_pearson", -math.inf) + LEAST_ABOVE:
        reasons.append("two dense networks agree hardly more than a dense and an untrained one: they may not be trained")
        return Verdict(False, "Nothing can be said: the yardstick is no better than the floor", tuple(reasons))
    alike = all(numbers[name] >= bars[name] for name in WORDS)
    if alike and not worse:
        sure = "Yes" if yardstick else "Yes, by fixed bars and without a yardstick"
        return Verdict(True, f"{sure}: the small network reads the same evidence", tuple(reasons))
    if alike:
        return Verdict(False, "No: the small network reads the same evidence, but answers worse", tuple(reasons))
    answers = "and answers worse" if worse else "though it answers as well"
    return Verdict(False, f"No: the small network does not read the same evidence, {answers}", tuple(reasons))


def required(found: Study, asked: list[str]) -> list[str]:
    """Which of `name=least` are not met, in words. Raises InputError for a name there is not."""
    numbers, unmet = found.numbers(), []
    for one in asked:
        name, equals, text = one.partition("=")
        try:
            least = float(text)
        except ValueError:
            least = math.nan
        if not equals or math.isnan(least):
            raise InputError(f"--require {one}: give name=least, such as spearman=.6")
        if name not in numbers:
            raise InputError(
                f"--require {one}: no number is named so.{did_you_mean(name, numbers)} There are: {', '.join(numbers)}"
            )
        if not numbers[name] >= least:
            unmet.append(f"{name} is {numbers[name]:.4g}, and {least:g} was required")
    return unmet


__all__ = ["BARS", "MEASURES", "Network", "Study", "Verdict", "examine", "judged", "required", "swap"]
