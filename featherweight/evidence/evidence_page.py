"""The page of a comparison: the verdict first, then what it rests on, then every example."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featherweight.evidence import motifs, svg
from featherweight.evidence.attribute import Logits
from featherweight.evidence.compare import TOP, Array
from featherweight.evidence.motifs import Hit, Match, Motif
from featherweight.evidence.optimise import Optimised, optimise
from featherweight.evidence.page import Markup, Page
from featherweight.evidence.prefixes import is_recurrent, prefixes, suffixes
from featherweight.evidence.study import Network, Study, swap
from featherweight.task import itself
from featherweight.zoo.dna import decoded

SHOWN = 120  # examples in the browser
LARGEST = 2_000_000  # bytes of a page
MOST_DATA, MOST_POINTS, MOST_PIXELS = 1_400_000, 2000, 64  # bytes of examples; points of the scatter; sides of a picture
NAMES = {
    "pearson": "Pearson of sizes",
    "spearman": "Spearman of sizes",
    "signed": "Spearman with signs",
    "top": "top places shared",
}
NAMES |= {"p10": "Pearson, worst tenth"}


@dataclass(frozen=True)
class Looks:
    """What two networks on sequences look for: their ideal sequences, the matrices of their seqlets, and names of all four."""

    ideals: dict[str, Optimised]
    pieces: dict[str, motifs.Seqlets]
    named: dict[str, list[Match]]  # "dense, optimised" and so on
    hits: dict[int, Hit] = field(default_factory=dict)  # example -> the best hit of the motif that the dense network found


def looks(
    dense: nn.Module,
    small: nn.Module,
    found: Study,
    known: Sequence[Motif] = (),
    *,
    seed: int = 0,
    logits: Logits = itself,
    said: Callable[[str], None] = lambda message: None,
) -> Looks:
    """Class optimisation and seqlets of both networks; named where motifs are known and memelite is there."""
    examples = found.examples
    assert examples.codes is not None
    codes, length = examples.codes.numpy(), examples.codes.shape[1]
    said("class optimisation, 1,000 steps each")
    nets = {"dense": dense, "small": small}
    ideals = {name: optimise(net, 4, length, seed=seed, logits=logits) for name, net in nets.items()}
    width = min(motifs.WIDTH, length)
    maps = {"dense": found.dense.maps, "small": found.small.maps}
    sure = {"dense": found.dense.probabilities, "small": found.small.probabilities}
    if found.floor_maps is not None:  # of the sequences that the dense network is surest of: what alignment finds by itself
        maps["untrained"], sure["untrained"] = found.floor_maps, found.dense.probabilities
    pieces = {name: motifs.seqlets(maps[name][found.of], codes[found.of], sure[name][found.of], width) for name in maps}
    matrices = {f"{name}, optimised": motifs.trimmed(ideal.weights.numpy()) for name, ideal in ideals.items()}
    matrices |= {f"{name}, seqlets": piece.matrix for name, piece in pieces.items()}
    named: dict[str, list[Match]] = {}
    if known and motifs.can_match():
        said("Tomtom: the first call of a machine compiles for a minute or two")
        named = dict(zip(matrices, motifs.matches(list(matrices.values()), known, 3), strict=True))
    hits = dict(enumerate(motifs.scan(pieces["dense"].matrix, codes)))
    return Looks(ideals, pieces, named, hits)


def build(
    found: Study,
    networks: tuple[nn.Module, nn.Module],
    names: tuple[str, str],
    *,
    look: Looks | None = None,
    unmet: Sequence[str] = (),
    about: Mapping[str, str],
    logits: Logits = itself,
    shown: int = SHOWN,
    said: Callable[[str], None] = lambda message: None,
) -> Page:
    """networks and names: dense and small. unmet: requirements that failed, in words. about: what was measured how."""
    page = Page(f"Evidence: {names[0]} and {names[1]}")
    says = f"Less than was required. {found.verdict.says}" if unmet else found.verdict.says
    page.verdict(found.verdict.same and not unmet, says, [*(f"required: {text}" for text in unmet), *found.verdict.reasons])
    _numbers(page, found)
    apart = "Each point is an example. Off the diagonal the networks differ; crosses are answers that flipped."
    alike = "How alike the two maps of an example are: the further right, the more both look at the same places."
    page.figures([(_scatter(found), apart), (_histogram(found), alike)])
    _answers(page, found)
    _deletion(page, found)
    page.heading("Example by example")
    page.paragraph(_how_to_read(found), soft=True)
    said("examples of the page")
    page.browser(_kinds(found), _examples(found, networks, look, logits, shown))
    if look is not None:
        _looks(page, look)
    page.heading("How this was measured")
    page.table(("what", "how"), list(about.items()), left=True)
    return page


# --- numbers and charts --------------------------------------------------------------------------------------------------


def _numbers(page: Page, found: Study) -> None:
    page.heading("Do they look at the same places?")
    columns = {"small and dense": found.agreement, "two dense networks (yardstick)": found.yardstick,
               "untrained and dense (floor)": found.floor}  # fmt: skip
    given = {name: value.medians() for name, value in columns.items() if value is not None}
    rows = [[word, *(f"{numbers[name]:.3f}" for numbers in given.values())] for name, word in NAMES.items()]
    page.table((f"median of {len(found.of):,} examples", *given), rows)
    if found.inside:
        words = {"dense": "dense", "small": "small", "other": "the other dense one", "untrained": "untrained"}
        inside = ", ".join(f"{words[name]} {value:.3f}" for name, value in found.inside.items())
        page.paragraph(f"The site is known here: a place inside it is louder than one outside in this share of pairs: {inside}.")


def _scatter(found: Study) -> str:
    dense, small = found.dense.probabilities, found.small.probabilities
    plane = svg.Plane((0, 1), (0, 1), "dense", "small")
    plane.line([(0, 0), (1, 1)], "axis")
    labels = found.examples.labels.numpy()
    flipped = found.dense.answers != found.small.answers
    for number in _drawn(flipped):
        kind = "dense" if labels[number] == 1 or not found.two_classes else "other"
        shape = "cross" if flipped[number] else "circle"
        title = f"{found.examples.names[number]}: {dense[number]:.2f}, {small[number]:.2f}" if flipped[number] else ""
        plane.point(
            dense[number], small[number], "small-net" if flipped[number] else kind, shape, title, 4 if flipped[number] else 2.4
        )
    what = f"probability of {found.examples.classes[1]}" if found.two_classes else "probability of the answer given"
    return plane.drawn(f"{what}, dense across and small upwards")


def _drawn(flipped: Array) -> Array:
    """Numbers of the examples in the scatter: those that flipped last, so that they are on top, and of many others a part."""
    others = np.flatnonzero(~flipped)
    return np.concatenate([others[:: 1 + len(others) // MOST_POINTS], np.flatnonzero(flipped)[:MOST_POINTS]])


def _histogram(found: Study) -> str:
    series = [("small and dense", "small-net", found.agreement.pearson)]
    if found.yardstick is not None:
        series.append(("two dense networks", "dense", found.yardstick.pearson))
    if found.floor is not None:
        series.append(("untrained and dense", "other", found.floor.pearson))
    low = -0.2 if min(float(values.min()) for *_, values in series) < 0 else 0.0
    return svg.histogram(series, low, 1.0, 24, "Pearson of an example's two maps", "histogram of agreement")


def _answers(page: Page, found: Study) -> None:
    page.heading("Do they answer alike?")
    rows: list[list[Any]] = []
    dense, small = found.dense, found.small
    if found.areas and found.difference:
        words = [f"{area.auc:.4f} ({area.low:.4f} to {area.high:.4f})" for area in found.areas]
        lost, p = found.difference
        rows.append(["area under the ROC curve, 95 % interval (DeLong)", *words, f"{lost:+.4f} lost, p {p:.2g}"])
    chosen = "at its own threshold" if found.two_classes else ""
    lost_and_won = f"only dense is right: {found.mcnemar.lost}, only small: {found.mcnemar.won}; McNemar p {found.mcnemar.p:.2g}"
    rows.append(
        [f"right answers {chosen}".strip(), f"{100 * dense.accuracy:.2f} %", f"{100 * small.accuracy:.2f} %", lost_and_won]
    )
    if dense.threshold is not None and small.threshold is not None:
        where = "chosen on other examples" if found.examples.choosing else "the larger logit: no others to choose on"
        rows.append(["threshold, difference of logits", f"{dense.threshold:.3f}", f"{small.threshold:.3f}", where])
    rows.append(["calibration error (15 bins)", f"{dense.calibration:.4f}", f"{small.calibration:.4f}", ""])
    rows.append(["the same answer", "", f"{100 * found.same_answers:.2f} %", ""])
    page.table(("", "dense", "small", ""), rows)
    if not found.two_classes:
        _by_class(page, found)


def _by_class(page: Page, found: Study) -> None:
    rows = []
    for number, name in enumerate(found.examples.classes):
        here = found.examples.labels.numpy() == number
        if here.any():
            lost = int((found.dense.right & ~found.small.right)[here].sum())
            won = int((~found.dense.right & found.small.right)[here].sum())
            differs = float((found.dense.answers != found.small.answers)[here].mean())
            shares = [f"{100 * net.right[here].mean():.1f} %" for net in (found.dense, found.small)]
            rows.append([name, int(here.sum()), *shares, f"{100 * differs:.1f} %", lost, won,
                         f"{float(np.median(found.agreement.pearson[here[found.of]])):.3f}"])  # fmt: skip
    page.heading("Where they disagree", 3)
    page.table(("class", "examples", "dense right", "small right", "answers differ", "only small wrong", "only dense wrong",
                "Pearson"), sorted(rows, key=lambda row: float(row[4].split()[0]), reverse=True))  # fmt: skip


def _deletion(page: Page, found: Study) -> None:
    page.heading("Is it what they decide by?")
    kept = swap(found.deletion)
    share = (
        ""
        if math.isnan(kept)
        else f" The dense network loses {100 * kept:.0f} % as much by the small one's places as by its own."
    )
    page.paragraph(
        "Places that a map calls important are deleted; a network that decides by them has to lose its score: mean drop of the "
        f"difference of logits.{share}"
    )
    counts = list(next(iter(found.deletion.values())))
    page.table(("score of, places of", *(f"top {count}" for count in counts)),
               [[name, *(f"{drops[count]:.3f}" for count in counts)] for name, drops in found.deletion.items()])  # fmt: skip


# --- the examples --------------------------------------------------------------------------------------------------------


def _how_to_read(found: Study) -> str:
    if found.examples.kind == "sequences":
        return (
            "A letter upwards speaks for a site, one downwards against it, each network in its own unit. A strip shows what a "
            "recurrent network says after each base, reading on (prefix), and from each base to the end (suffix): blue is "
            "background, white undecided, orange a site. Answers that flipped come first, then those whose maps agree least."
        )
    return (
        "Orange: what the answer rests on, a grid for each network, each in its own unit; blue in the difference: more of it in "
        "the small one. Examples that only the small network loses come first, then those whose maps agree least."
    )


def _kinds(found: Study) -> list[tuple[str, str]]:
    named = [("flip", "answers that flipped"), ("lost", "only the small one is wrong"), ("won", "only the dense one is wrong")]
    return [*named, ("worst", "maps that agree least")]


def _examples(
    found: Study, networks: tuple[nn.Module, nn.Module], look: Looks | None, logits: Logits, shown: int
) -> list[dict[str, Any]]:
    flipped = found.dense.answers != found.small.answers
    place = {int(number): position for position, number in enumerate(found.of)}
    worst = [int(found.of[number]) for number in found.agreement.worst(len(found.of))]
    order = [number for number in worst if flipped[number]]
    order += [int(number) for number in np.flatnonzero(flipped) if number not in place]
    order = list(dict.fromkeys([*order, *worst, *range(len(found.examples))]))[:shown]
    strips = _strips(found, networks, order, logits)
    letters = decoded(found.examples.codes) if found.examples.codes is not None else []
    made: list[dict[str, Any]] = []
    taken = 0
    for number in order:
        kinds = ["flip"] if flipped[number] else []
        kinds += ["lost"] if found.dense.right[number] and not found.small.right[number] else []
        kinds += ["won"] if not found.dense.right[number] and found.small.right[number] else []
        kinds += ["worst"] if number in worst[:TOP] else []
        one: dict[str, Any] = {"name": found.examples.names[number], "kinds": kinds, "says": _says(found, number, place)}
        for name, network in (("dense", found.dense), ("small", found.small)):
            one[name] = _small_numbers(network, number)
        if letters:
            one["letters"] = letters[number]
            one["marks"] = _marks(found, number, look)
        if number in strips:
            one["strips"] = strips[number]
        if found.examples.pictures is not None:
            one["picture"] = _picture(found.examples.pictures[number])
        taken += len(json.dumps(one))
        if taken > MOST_DATA:
            break
        made.append(one)
    return made


def _picture(pixels: Tensor) -> str:
    """uint8 (channels, height, width) as a data URI, made smaller where it is large."""
    height, width = (min(side, MOST_PIXELS) for side in pixels.shape[1:])
    small = F.adaptive_avg_pool2d(pixels.float(), (height, width)).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return svg.png(small[..., 0] if small.shape[2] == 1 else small)


def _says(found: Study, number: int, place: dict[int, int]) -> str:
    names = found.examples.classes
    said = [f"It is {names[int(found.examples.labels[number])]}"]
    for name, network in (("dense", found.dense), ("small", found.small)):
        answer = names[int(network.answers[number])]
        right = "" if network.right[number] else ", wrong"
        said.append(f"{name} says {answer}{right} ({network.probabilities[number]:.3f})")
    agreed = f"; Pearson {found.agreement.pearson[place[number]]:.2f}" if number in place else ""
    return f"{said[0]}; {said[1]}; {said[2]}{agreed}."


def _small_numbers(network: Network, number: int) -> str:
    """A map as signed bytes, 127 its largest size."""
    row = network.maps[number]
    largest = float(np.abs(row).max()) or 1.0
    return base64.b64encode(np.round(127 * row / largest).astype(np.int8).tobytes()).decode()


def _marks(found: Study, number: int, look: Looks | None) -> list[dict[str, Any]]:
    marks: list[dict[str, Any]] = []
    if found.examples.planted is not None and int(found.examples.planted[number, 0]) >= 0:
        start, end = (int(place) for place in found.examples.planted[number])
        marks.append({"name": "planted", "start": start, "end": end, "text": ""})
    if look is not None:
        hit, width = look.hits[number], len(look.pieces["dense"].matrix)
        marks.append({"name": "best motif hit", "start": hit.start, "end": hit.start + width,
                      "text": f"{hit.score:.1f} bits, strand {hit.strand}"})  # fmt: skip
    return marks


def _strips(found: Study, networks: tuple[nn.Module, nn.Module], order: list[int], logits: Logits) -> dict[int, dict[str, str]]:
    """Example -> name -> bytes of probabilities; of recurrent networks on two classes."""
    if found.examples.kind != "sequences" or not any(map(is_recurrent, networks)):
        return {}
    made: dict[int, dict[str, str]] = {number: {} for number in order}
    inputs = found.examples.inputs[order]
    for name, network in zip(("dense", "small"), networks, strict=True):
        if not is_recurrent(network):
            continue
        for way, scores in (("prefix", prefixes), ("suffix", suffixes)):
            rows = np.round(255 * scores(network, inputs, logits).numpy()).astype(np.uint8)
            for number, row in zip(order, rows, strict=True):
                made[number][f"{name}, {way}"] = base64.b64encode(row.tobytes()).decode()
    return made


# --- what they look for --------------------------------------------------------------------------------------------------


def _looks(page: Page, look: Looks) -> None:
    page.heading("What is the clearest site?")
    page.paragraph(
        "Class optimisation: the input that each network takes for the clearest site (RMSprop, 1,000 steps, the authors' "
        "settings, the best of two starts); its most informative stretch is shown. X is no DNA, so the sequence of its largest "
        "entries is scored beside it.",
        soft=True,
    )
    drawn = []
    for name, ideal in look.ideals.items():
        matrix = motifs.trimmed(ideal.weights.numpy(), 30)
        caption = f"{name}: P(site) of X {ideal.probability:.4f}, of its sequence {ideal.probability_of_codes:.4f}"
        drawn.append((svg.logo(matrix, f"what the {name} network takes for the clearest site", 15), caption))
    page.figures(drawn)
    page.heading("Motifs")
    rows = []
    found = [(name, "optimised", motifs.trimmed(ideal.weights.numpy())) for name, ideal in look.ideals.items()]
    found += [(name, "seqlets", piece.matrix) for name, piece in look.pieces.items()]
    for name, how, matrix in found:
        drawing = Markup(svg.logo(matrix, f"{name}, {how}: {motifs.consensus(matrix)}", 11, 44))
        count = f"{look.pieces[name].count} seqlets" if how == "seqlets" else "class optimisation"
        bits = f"{motifs.information(matrix).sum():.1f}"
        known = look.named.get(f"{name}, {how}", [])
        first = [known[0].name, f"{known[0].p:.1e}", f"{known[0].q:.1e}"] if known else ["not asked", "", ""]
        rows.append([f"{name}, {count}", drawing, motifs.consensus(matrix), bits, *first,
                     "; ".join(match.name for match in known[1:])])  # fmt: skip
    page.table(("of", "logo", "consensus", "bits", "nearest known motif", "Tomtom p", "q", "then"), rows, left=True)
    if not look.named:
        page.paragraph(
            "Names need a file of motifs (--motifs FILE.pfm, of JASPAR) and memelite (pip install 'featherweight[evidence]').",
            soft=True,
        )


__all__ = ["LARGEST", "SHOWN", "Array", "Looks", "build", "looks"]
