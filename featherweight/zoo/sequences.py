"""DNA as data: peaks of transcription factors against shuffles of them, labelled files, and motifs planted where they are known.

    tfbs:planted                     4,000 random sequences with a MAFK site each: made here, nothing is downloaded
    tfbs:mafk oct4 p73 ctcf          human ChIP-seq peaks as FASTA, in $FEATHERWEIGHT_DATA/tfbs/NAME.fa
    tfbs:PATH                        your own: FASTA of peaks, or DeepBind's `>1` or `>0` and the sequence in the next line; a
                                     folder with train.fa and test.fa of that format is the authors' layout

Bases are numbers, 0 to 3 for A C G T and 4 for one that is not known; to a network they are one-hot, (batch, 4, length), an
unknown one a column of zeros.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam, Optimizer

from featherweight.errors import InputError, short
from featherweight.files import storage
from featherweight.network.devices import chosen, device_of
from featherweight.network.evaluating import evaluating
from featherweight.task import Task, itself
from featherweight.zoo.datasets import DataDamaged, DataMissing, data_root
from featherweight.zoo.dna import centre, decoded, encoded, one_hot, reverse_complement, shuffled
from featherweight.zoo.tasks import EpochBatches

PREFIX = "tfbs:"
PEAKS = ("mafk", "oct4", "p73", "ctcf")
NAMES = (*(f"{PREFIX}{name}" for name in ("planted", *PEAKS)),)

WINDOW, SHIFT = 101, 10  # bases that a network sees, the authors' number; how far a training window may be off the centre
TEST_CHROMOSOMES, VALIDATION_CHROMOSOMES = ("chr8", "chr9"), ("chr7",)
FEWEST = 150  # peaks on the chromosomes of the test part, or a seeded part is taken: p73 and CTCF have 96 and 28 there
SHARES = (0.65, 0.15, 0.20)  # of training, choosing and testing in a seeded split
LARGEST_FILE = 2**30  # bytes
CLIP = 1.0  # norm of the gradient: a recurrent network's may explode

# JASPAR 2022, MA0496.3, MAFK (CC BY 4.0, jaspar.elixir.no): how often each base was seen, a row a position, columns A C G T.
MAFK = (
    *((11946, 10789, 9969, 19030), (9602, 10655, 21904, 9573), (14089, 27000, 6706, 3939), (1616, 1568, 1058, 47492)),
    *((1108, 1366, 46695, 2565), (47484, 1670, 1306, 1274), (2492, 39125, 7573, 2544), (2722, 1133, 1081, 46798)),
    *((1818, 47872, 957, 1087), (47675, 882, 1267, 1910), (1439, 1921, 44013, 4361), (2664, 43458, 3327, 2285)),
    *((24802, 14138, 4590, 8204), (15933, 10737, 10512, 14552), (14818, 9756, 8541, 18619)),
)


# --- files ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """One sequence of a file: its header without `>`, its letters, and its label where the header is one."""

    name: str
    letters: str
    label: int | None = None


def read(path: Path) -> list[Record]:
    """FASTA, or DeepBind's format where every header is 0 or 1. Raises DataMissing and DataDamaged."""
    try:
        with storage.opened(path, follow=True) as file:
            content = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise DataMissing(f"there is no file {path}") from None
    except OSError as error:
        raise DataDamaged(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > LARGEST_FILE:
        raise DataDamaged(f"{path} has more than {LARGEST_FILE:,} bytes")
    text = content.decode("latin-1").lstrip("\ufeff\r\n \t")
    if not text.startswith(">"):
        raise DataDamaged(f"{path} starts with {short(text[:20])}, and FASTA starts with > and a name. Is it another format?")
    records = []
    for part in text[1:].split("\n>"):
        name, _, body = part.partition("\n")
        records.append(Record(name.strip(), "".join(body.split())))
    if all(record.name in ("0", "1") for record in records):
        return [Record(record.name, record.letters, int(record.name)) for record in records]
    return records


@dataclass(frozen=True)
class Part:
    """Sequences with labels: names, uint8 (count, length), int64 (count,); and where a motif was planted, from and to, int64
    (count, 2), where that is known; -1 where there is none."""

    names: tuple[str, ...]
    codes: Tensor
    labels: Tensor
    planted: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def window(self, size: int) -> Part:
        """The same with only the centre of each sequence."""
        start = (self.codes.shape[1] - size) // 2
        places = None if self.planted is None else torch.where(self.planted >= 0, self.planted - start, self.planted)
        return Part(self.names, centre(self.codes, size), self.labels, places)


@dataclass(frozen=True)
class Sequences:
    """A binary problem of DNA. `how`: in words, where it came from and how it was split; `window`: bases a network sees."""

    name: str
    train: Part
    validation: Part  # for choosing settings
    test: Part
    window: int
    how: str


def sequences(source: str) -> Sequences:
    """The data of a name after `tfbs:`, or of a file or folder. Raises DataMissing, DataDamaged and InputError."""
    if source == "planted":
        return planted()
    if source in PEAKS:
        path = data_root() / "tfbs" / f"{source}.fa"
        if not path.is_file():
            raise DataMissing(
                f"the peaks of {source} are not there: put human ChIP-seq peaks of 200 bases, as FASTA with headers such as "
                f">chr8:1000-1200, into {path}, or set FEATHERWEIGHT_DATA to the folder that holds tfbs/. (In a checkout "
                "`python -m benchmarks.evidence.fetch` lays out those of the benchmark.) tfbs:planted needs no file"
            )
        return from_records(read(path), source)
    path = Path(source)
    if path.is_dir():
        train, test = read(path / "train.fa"), read(path / "test.fa")
        return _of_two_files(train, test, path.name)
    if not path.exists():
        raise InputError(f"{PREFIX}{source} is neither a file nor one of {', '.join(NAMES)}")
    return from_records(read(path), path.name)


def from_records(records: Sequence[Record], name: str, seed: int = 0) -> Sequences:
    """Peaks get a shuffle each as negatives and are split by chromosome where chr8 and chr9 hold enough of them; labelled records
    are split by the seed. Raises InputError where there are no positives, or no negatives among labels."""
    codes = encoded([record.letters for record in records], name)
    labels = [record.label for record in records]
    dice = random.Random(f"featherweight {name} {seed}")
    if labels[0] is not None:
        numbers = torch.tensor([int(label or 0) for label in labels])
        _check_both(numbers, name)
        names = tuple(f"{number + 1}" for number in range(len(records)))
        whole, how = Part(names, codes, numbers), "labels of the file"
        split, said = _seeded(len(records), dice), "split 65 / 15 / 20 by a seed"
    else:
        letters = decoded(codes)
        others = encoded([shuffled(one, dice) for one in letters])
        names = tuple(record.name for record in records)
        whole = Part(
            (*names, *(f"shuffle of {one}" for one in names)),
            torch.cat([codes, others]),
            torch.cat([torch.ones(len(names), dtype=torch.int64), torch.zeros(len(names), dtype=torch.int64)]),
        )
        how = "peaks against one dinucleotide-preserving shuffle each"
        found = _by_chromosome(names)
        split, said = found if found else (_seeded(len(names), dice), "split 65 / 15 / 20 by a seed, with its shuffle each")
        first, second, third = ([*part, *(number + len(names) for number in part)] for part in split)
        split = (first, second, third)
    parts = _parted(whole, split)
    for part, use in zip(parts, ("training", "choosing settings", "testing"), strict=True):
        _check_both(part.labels, f"{name}, the part for {use},")
    return Sequences(name, *parts, min(WINDOW, codes.shape[1]), f"{name}: {how}; {said}; {_counts(parts)}")


def _of_two_files(train: Sequence[Record], test: Sequence[Record], name: str) -> Sequences:
    for records, file in ((train, "train.fa"), (test, "test.fa")):
        if records[0].label is None:
            raise InputError(
                f"{name}/{file}: headers must be >1 or >0, as DeepBind's are; give peaks without labels as one file, PATH.fa"
            )
        _check_both(torch.tensor([int(record.label or 0) for record in records]), f"{name}/{file}")
    dice = random.Random(f"featherweight {name}")
    held = encoded([record.letters for record in (*train, *test)], name)
    labels = torch.tensor([int(record.label or 0) for record in (*train, *test)])
    names = tuple(f"{number + 1}" for number in range(len(labels)))
    order = list(range(len(train)))
    dice.shuffle(order)
    cut = round(0.85 * len(order))
    split = (sorted(order[:cut]), sorted(order[cut:]), list(range(len(train), len(labels))))
    parts = _parted(Part(names, held, labels), split)
    how = f"{name}: train.fa (85 % for training, 15 % for choosing) and test.fa; {_counts(parts)}"
    return Sequences(name, *parts, min(WINDOW, held.shape[1]), how)


def _check_both(labels: Tensor, where: str) -> None:
    positives = int(labels.sum())
    if positives == 0:
        raise InputError(f"{where} holds no positive sequence: an area under the curve needs both, so give some with label 1")
    if positives == len(labels):
        raise InputError(
            f"{where} holds no negative sequence: give some with label 0, or leave the labels out (headers that are names), and "
            "shuffles are made"
        )


def _counts(parts: Sequence[Part]) -> str:
    return " / ".join(f"{int(part.labels.sum()):,}" for part in parts) + " positives to train / choose / test"


Parts = tuple[Part, Part, Part]


def _parted(whole: Part, split: tuple[Sequence[int], Sequence[int], Sequence[int]]) -> Parts:
    return _taken(whole, split[0]), _taken(whole, split[1]), _taken(whole, split[2])


def _taken(whole: Part, numbers: Sequence[int]) -> Part:
    index = torch.tensor(numbers, dtype=torch.int64)
    places = None if whole.planted is None else whole.planted[index]
    return Part(tuple(whole.names[number] for number in numbers), whole.codes[index], whole.labels[index], places)


def _by_chromosome(names: Sequence[str]) -> tuple[tuple[list[int], list[int], list[int]], str] | None:
    """Numbers of the records on the chromosomes of each part; None where the headers say none, or too few are there."""
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for number, name in enumerate(names):
        chromosome = name.partition(":")[0]
        part = 2 if chromosome in TEST_CHROMOSOMES else 1 if chromosome in VALIDATION_CHROMOSOMES else 0
        parts[part].append(number)
    if len(parts[2]) < FEWEST or not parts[1] or not parts[0]:
        return None
    return parts, "chr8 and chr9 for testing, chr7 for choosing, the others for training"


def _seeded(count: int, dice: random.Random) -> tuple[list[int], list[int], list[int]]:
    order = list(range(count))
    dice.shuffle(order)
    first, second = round(SHARES[0] * count), round((SHARES[0] + SHARES[1]) * count)
    return sorted(order[:first]), sorted(order[first:second]), sorted(order[second:])


def planted(
    counts: tuple[int, int, int] = (3200, 400, 400),
    length: int = WINDOW,
    matrix: Sequence[Sequence[float]] = MAFK,
    seed: int = 0,
) -> Sequences:
    """Random background with one site of the motif, drawn from its matrix, anywhere and on either strand; the negatives are their
    shuffles, so that only the site tells. The share of G and C of each is uniform in .3 to .7.

    counts   positives for training, choosing and testing
    matrix   counts of A C G T, a row a position
    """
    rng = np.random.default_rng(seed)
    dice = random.Random(f"featherweight planted {seed}")
    table = np.asarray(matrix, dtype=np.float64)
    table = table / table.sum(axis=1, keepdims=True)
    size, total = len(table), sum(counts)
    gc = rng.uniform(0.3, 0.7, total)
    background = np.stack([(1 - gc) / 2, gc / 2, gc / 2, (1 - gc) / 2], axis=1)
    codes = _drawn(rng, np.repeat(background[:, None], length, axis=1))
    sites = _drawn(rng, np.repeat(table[None], total, axis=0))
    turned = rng.random(total) < 0.5
    sites[turned] = 3 - sites[turned][:, ::-1]
    starts = rng.integers(0, length - size + 1, total)
    codes[np.arange(total)[:, None], starts[:, None] + np.arange(size)] = sites
    positives = torch.from_numpy(codes)
    negatives = encoded([shuffled(one, dice) for one in decoded(positives)])
    places = torch.from_numpy(np.stack([starts, starts + size], axis=1).astype(np.int64))
    parts: list[Part] = []
    begin = 0
    for count in counts:
        here = slice(begin, begin + count)
        names = tuple(f"planted {number + 1}" for number in range(begin, begin + count))
        parts.append(
            Part(
                (*names, *(f"shuffle of {one}" for one in names)),
                torch.cat([positives[here], negatives[here]]),
                torch.cat([torch.ones(count, dtype=torch.int64), torch.zeros(count, dtype=torch.int64)]),
                torch.cat([places[here], torch.full((count, 2), -1)]),
            )
        )
        begin += count
    how = f"a MAFK site (JASPAR 2022, MA0496.3) in random background, against one shuffle each; {_counts(parts)}"
    train, validation, test = parts
    return Sequences("planted", train, validation, test, min(WINDOW, length), how)


def _drawn(rng: np.random.Generator, shares: np.ndarray) -> np.ndarray:
    """Numbers 0 to 3 by the shares in the last dimension, uint8."""
    return (rng.random(shares.shape[:-1])[..., None] > np.cumsum(shares, axis=-1)[..., :3]).sum(axis=-1).astype(np.uint8)


# --- the task ------------------------------------------------------------------------------------------------------------


def auc(scores: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve: the share of pairs in which the positive scores higher, ties half. In [0, 1]."""
    order = np.asarray(scores.detach().cpu(), dtype=np.float64)
    positive = np.asarray(labels.cpu()) == 1
    _, places, counts = np.unique(order, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    n, m = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


def margin(output: object, count: int) -> Tensor:
    """How much more a network is for class 1 than for class 0: logits (count, 2) -> (count,). Raises InputError for another
    output."""
    if isinstance(output, Tensor) and output.shape == (count, 2):
        return output[:, 1] - output[:, 0]
    given = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
    raise InputError(
        f"tfbs: data needs logits of two classes, (sequences, 2), and {count} sequences give {given}: give one of the deepmotif_ "
        "networks, or the --data that this network was made for"
    )


def margins(network: nn.Module, bases: Tensor, batch_size: int = 256) -> Tensor:
    """`margin` of one-hot sequences (count, 4, length) in eval mode, on the CPU, (count,)."""
    device = device_of(network)
    with evaluating(network), torch.inference_mode():
        parts = [margin(network(part.to(device)), len(part)).float().cpu() for part in bases.split(batch_size)]
    return torch.cat(parts)


def clipped_adam(parameters: Iterable[Parameter]) -> Optimizer:
    """Adam at 1e-3 that shortens a batch's gradient to the norm 1 before each step."""
    optimizer = Adam(parameters, lr=1e-3)
    optimizer.register_step_pre_hook(_clip)
    return optimizer


def _clip(optimizer: Optimizer, args: object, kwargs: object) -> None:
    clip_grad_norm_([parameter for group in optimizer.param_groups for parameter in group["params"]], CLIP)


def task(source: str, seed: int = 0, choosing: bool = False, batch_size: int = 64, *, device: torch.device | str = "cpu") -> Task:
    """`source`: what stands after `tfbs:`. Adam at 1e-3, the gradient's norm at most 1; training windows of 101 bases are off the
    centre by up to 10, each on either strand. The score is 100 x the area under the ROC curve on the test part, or with
    `choosing` on the part that is for choosing settings. The first batch or score reads the file.
    """
    place = chosen(device)
    held = functools.cache(functools.partial(sequences, source))
    return _task(held, seed, choosing, batch_size, place)


def task_of(held: Sequences, seed: int = 0, choosing: bool = False, batch_size: int = 64) -> Task:
    """The same of data in hand."""
    return _task(lambda: held, seed, choosing, batch_size, torch.device("cpu"))


def _task(held: Callable[[], Sequences], seed: int, choosing: bool, batch_size: int, place: torch.device) -> Task:
    def batches(epoch: int) -> EpochBatches:
        data = held()
        order = torch.randperm(len(data.train), generator=_dice(seed, epoch))
        view = functools.partial(_seen, window=data.window)
        return EpochBatches(data.train.codes, data.train.labels, order, batch_size, seed, epoch, view, place)

    def evaluate(network: nn.Module) -> float:
        data = held()
        part = (data.validation if choosing else data.test).window(data.window)
        return 100.0 * auc(margins(network, one_hot(part.codes)), part.labels)

    example = one_hot(torch.randint(0, 4, (1, WINDOW), generator=Generator().manual_seed(0)))
    return Task((example.to(place),), batches, _loss, evaluate, clipped_adam, logits=itself)


def _loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    bases, labels = batch
    output = network(bases)
    margin(output, len(labels))  # refuses another output
    return F.cross_entropy(output, labels)


def _seen(codes: Tensor, dice: Generator, window: int) -> Tensor:
    """What training sees of sequences (count, length): a window off the centre, on either strand."""
    room = codes.shape[1] - window
    most = min(SHIFT, room // 2)
    starts = room // 2 + torch.randint(-most, most + 1, (len(codes),), generator=dice)
    bases = one_hot(codes.gather(1, starts[:, None] + torch.arange(window)))
    turned = torch.rand(len(codes), generator=dice) < 0.5
    return torch.where(turned[:, None, None], reverse_complement(bases), bases)


def _dice(seed: int, epoch: int) -> Generator:
    return Generator().manual_seed(random.Random(f"{seed} {epoch} order of sequences").getrandbits(32))
