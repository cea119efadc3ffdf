"""A small decoder, 2.07 M parameters, and its task: the next token of text that this machine has (see `text`)."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer

from benchmarks.language import text
from benchmarks.lib.scoring import in_eval
from featherweight import Task

TOKENS, CONTEXT, WIDTH, DEPTH, HEADS = 1024, 128, 224, 3, 7
BATCH, STEPS, LOOKS = 16, 100, 256  # windows of a batch, batches of an epoch, windows that a perplexity is of
FOLDER = Path(__file__).parent
MERGES = FOLDER / "artifacts" / "merges.json"


class Block(nn.Module):
    """Attention and two layers, each added to what comes in, behind a norm."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, time, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, time, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Decoder(nn.Module):
    """Tokens (batch, time) int64 -> logits (batch, time, tokens) of the next ones. Embedding and head are one tensor."""

    def __init__(self, tokens: int = TOKENS, context: int = CONTEXT, width: int = WIDTH, depth: int = DEPTH, heads: int = HEADS):
        super().__init__()
        self.embed, self.place = nn.Embedding(tokens, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, tokens, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * depth) if "out" in name or "down" in name else 1))
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def decoder() -> Decoder:
    return Decoder()


# --- the task ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Windows:
    """Batches of windows (batch, context + 1) that begin anywhere in the text; which ones follows from seed and epoch."""

    tokens: Tensor
    seed: int
    epoch: int
    steps: int = STEPS

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < len(self):
            raise IndexError(index)
        dice = torch.Generator().manual_seed((self.seed * 100_003 + self.epoch) * 10_007 + index)
        starts = torch.randint(len(self.tokens) - CONTEXT, (BATCH,), generator=dice)
        return self.tokens[starts[:, None] + torch.arange(CONTEXT + 1)]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))


def loss(network: nn.Module, batch: Tensor) -> Tensor:
    """Nats a token; bfloat16 where the processor multiplies it."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
        logits = network(batch[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())


def perplexity(network: nn.Module, tokens: Tensor) -> float:
    """exp of the mean nats a token, in float32, in LOOKS windows at equal distances, or in all where there are not more."""
    windows = tokens[: (len(tokens) - 1) // CONTEXT * CONTEXT + 1].unfold(0, CONTEXT + 1, CONTEXT)
    windows = windows[torch.linspace(0, len(windows) - 1, min(LOOKS, len(windows))).long()]
    total = 0.0
    with in_eval(network), torch.inference_mode():
        for part in windows.split(64):
            logits = network(part[:, :-1])
            total += float(F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"))
    return math.exp(total / (len(windows) * CONTEXT))


@functools.cache
def parts(work: Path) -> dict[str, Tensor]:
    """train, held and test as tokens; kept in `work`, since they take half a minute."""
    found = text.corpus()
    kept = work / f"tokens-{found.digest[:16]}.pt"
    if not kept.exists():
        if not MERGES.exists():
            MERGES.parent.mkdir(parents=True, exist_ok=True)
            MERGES.write_text(json.dumps(text.learned(found.train, TOKENS), separators=(",", ":")) + "\n")
        merges = [(first, second) for first, second in json.loads(MERGES.read_text())]
        work.mkdir(parents=True, exist_ok=True)
        torch.save({name: text.encoded(getattr(found, name), merges) for name in ("train", "held", "test")}, kept)
    return torch.load(kept)


def task(tokens: dict[str, Tensor], rate: float, seed: int = 0, steps: int = STEPS) -> Task:
    """AdamW at `rate`; the score is minus the perplexity on the held-out part."""

    def evaluate(network: nn.Module) -> float:
        return -perplexity(network, tokens["held"])

    def optimizer(parameters: Iterable[Parameter]) -> Optimizer:
        return AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True)

    example = tokens["train"][None, :CONTEXT].clone()
    train = functools.partial(Windows, tokens["train"], seed, steps=steps)
    return Task((example,), train, loss, evaluate, optimizer, logits=lambda output: output, classes=-1)
