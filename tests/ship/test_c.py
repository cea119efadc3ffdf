"""Networks as C: the same outputs to 1e-5, zeros neither stored nor multiplied, clean under every warning and the sanitizers, and
nothing of a network's names in the source but letters, digits, dots and underscores."""

from __future__ import annotations

import copy
import json
import math
import random
import re
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import featherweight as fw
from featherweight.errors import ArtifactError, InputError, StorageError
from featherweight.network.calls import Inputs, tensors_of
from featherweight.ship import c
from featherweight.ship.bench import bench
from featherweight.ship.c import build
from featherweight.weights import codes, parametrized, sets
from featherweight.weights.views import WHOLE, View

try:
    HAS_COMPILER = bool(c.compiler())
except c.CompilerMissing:
    HAS_COMPILER = False
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="there is no C compiler (cc, gcc or clang)")
QUICK = ("-O0", "-march=native")
STRICT = ("-Wall", "-Wextra", "-Wconversion", "-Werror")


def pruned(network: nn.Module, density: float) -> nn.Module:
    for weight in network.parameters():
        if weight.dim() > 1:
            weight.data *= (torch.rand_like(weight) < density) / max(density, 0.1) ** 0.5
    return network


def settled(network: nn.Module, *inputs: Tensor) -> nn.Module:
    """With batch norms that have seen data, and weights that turn signs."""
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    network.train()(*inputs)
    return network.eval()


def check_same(
    network: nn.Module, *examples: Tensor, options: tuple[str, ...] = QUICK, near: float = 1e-5, **how: bool
) -> c.Source:
    """Compile `network`, run it on several rows, and compare each row."""
    with torch.no_grad():
        made = c.written(network, examples, **how)[1]
        rows = [torch.randn(3, *one.shape[1:]) for one in examples]
        got = build.Loaded(made, (*options, *STRICT))(Inputs(tuple(rows)))
        for row in range(3):
            wanted = tensors_of(network(*(one[row : row + 1] for one in rows)))
            assert len(wanted) == len(got)
            for one, other in zip(wanted, got, strict=True):
                assert one.shape[1:] == other.shape[1:]
                assert float((one[0] - other[row]).abs().max()) <= near * float(one.abs().max())
    return made


class Branches(nn.Module):
    """Many layers of one input, each of which is an output."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(x) for layer in self.layers)


def fuzzed(seed: int, kind: Callable[..., nn.Module], sizes: tuple[int, ...], count: int) -> list[nn.Module]:
    """Convolutions of random kernels, strides, paddings, dilations and groups, at random densities; some have no weight left."""
    dice, layers = random.Random(seed), []
    flat = len(sizes) == 1
    while len(layers) < count:
        each = [[dice.choice(choice) for _ in sizes] for choice in ((1, 1, 2, 3, 5), (1, 1, 2, 3), (0, 1, 2), (1, 1, 2))]
        kernel, stride, pad, dilation = each
        if any(d * (k - 1) + 1 > s + 2 * p for k, p, d, s in zip(kernel, pad, dilation, sizes, strict=True)):
            continue
        groups, bias = dice.choice((1, 1, 2, 4)), dice.random() < 0.5
        outputs = groups * dice.choice((1, 2, 3))
        given: dict[str, Any] = {"stride": stride, "padding": pad, "dilation": dilation, "groups": groups, "bias": bias}
        if kind in (nn.ConvTranspose1d, nn.ConvTranspose2d):
            if any(p > d * (k - 1) for k, p, d in zip(kernel, pad, dilation, strict=True)):
                continue
            given["output_padding"] = [
                dice.randrange(max(s, d)) if max(s, d) > 1 else 0 for s, d in zip(stride, dilation, strict=True)
            ]
        layer: nn.Module = pruned(kind(4, outputs, kernel if not flat else kernel[0], **given), dice.choice((0.0, 0.1, 0.5, 1.0)))
        if dice.random() < 0.4:
            layer.weight.data = (layer.weight.data * 8).round() / 8  # few values: a table of them
        if bias or float(layer.weight.abs().sum()) > 0:  # type: ignore[operator, arg-type, union-attr]
            layers.append(layer)
    return layers


@pytest.mark.third
@needs_compiler
@pytest.mark.parametrize(
    ("height", "width", "options"), [(9, 11, QUICK), (17, 16, ("-O0",)), (8, 32, ("-O0", "-mavx2", "-mfma"))]
)
def test_convolutions_of_all_shapes(height: int, width: int, options: tuple[str, ...]) -> None:
    if "-mavx2" in options and not re.search(
        r"\bavx2\b", Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    ):
        pytest.skip("this processor has no AVX2")
    torch.manual_seed(height)
    layers = fuzzed(height, nn.Conv2d, (height, width), 14) + fuzzed(height, nn.ConvTranspose2d, (height, width), 4)
    check_same(Branches(*layers), torch.zeros(1, 4, height, width), options=options)


@pytest.mark.parametrize("values", [0, 6], ids=["weights", "shared values"])
def test_a_kernel_of_1_over_whole_pages_runs_an_output_after_the_other(values: int) -> None:
    """With outputs of which nothing is left, one without a bias, and a batch norm folded; the other order is at 15 x 20."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 11, 1), nn.BatchNorm2d(11), nn.ReLU(), nn.Conv2d(11, 5, 1, bias=False))
    for layer in (model[0], model[3]):
        layer.weight.data *= torch.rand_like(layer.weight) < 0.3
        layer.weight.data = (layer.weight.data * values).round() / values if values else layer.weight.data
    model[3].weight.data[2] = 0
    settled(model, torch.randn(4, 8, 6, 6))
    assert "net_planes_" in check_same(model, torch.randn(3, 8, 32, 32)).text
    assert "net_planes_" not in c.written(model, (torch.randn(1, 8, 15, 20),))[1].text


@pytest.mark.long
@needs_compiler
def test_small_files_compute_the_same_to_24_bits() -> None:
    torch.manual_seed(0)
    layers = fuzzed(7, nn.Conv2d, (9, 11), 8) + fuzzed(8, nn.ConvTranspose2d, (9, 11), 2)
    few = nn.Conv2d(4, 8, 3)
    few.weight.data = (few.weight.data * 20).round() / 20  # a table of values
    check_same(Branches(*layers, few), torch.zeros(1, 4, 9, 11), options=("-O0",), small=True, near=2e-4)
    check_same(settled(pruned(Words(), 0.2), torch.randn(16, 4, 12)), torch.zeros(1, 4, 12), small=True, near=2e-4)


@needs_compiler
def test_small_files_are_small_and_get_the_bits_that_they_need(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 300)]
    model, example = pruned(nn.Sequential(*layers), 0.05), (torch.zeros(1, 1, 8, 8),)
    done = c.export_c(model, example, tmp_path / "small.c", small=True, tolerance=1e-4)
    network, fast = c.written(model, example)
    weights = sum(int(weight.count_nonzero()) for weight in network.parameters() if weight.dim() > 1)
    assert done.relative is not None and 1e-7 < done.relative < 1e-4 and done.ram <= 4 * fast.arena
    # 3 bytes a number, one a place, one for each 255 places without; 308 biases, two layers of 17 numbers; 1,500 of code
    assert done.tables <= 4 * weights + 21_672 / 255 + 4 * 308 + 4 * 17 and done.tables < fast.weights
    assert done.flash is not None and done.flash < done.tables + 1500
    exact = c.export_c(model, example, tmp_path / "exact.c", small=True, tolerance=5e-7)
    assert exact.relative is not None and exact.relative <= 5e-7 and exact.tables > done.tables


@needs_compiler
def test_shared_values_are_stored_once_each() -> None:
    """Entries of 16 bits where a place and a number of a value fit, else of 32; without a table where that would be larger."""
    torch.manual_seed(0)
    wide, tall, own = nn.Linear(9000, 3), nn.Linear(40, 200), nn.Linear(40, 200)
    for layer in (wide, tall):
        layer.weight.data = torch.randn_like(layer.weight).mul(2).round() / 8
    made = check_same(Branches(pruned(wide, 0.02), nn.Conv1d(1, 2, 5)), torch.zeros(1, 1, 9000), near=2e-5)
    assert "net_dot_32t(" in made.text
    weights = {name: int(pruned(layer, 0.1).weight.count_nonzero()) for name, layer in (("tall", tall), ("own", own))}  # type: ignore[operator, union-attr]
    made = check_same(Branches(tall, own), torch.zeros(1, 40))
    assert "net_dot_16t(" in made.text and "net_dot_16(" in made.text
    rows, table = 2 * 200 * (2 + 2 + 4), 4 * 32  # counts and biases; values from -4 to 4 in eighths
    assert made.weights <= 2 * weights["tall"] + 6 * weights["own"] + rows + table


@needs_compiler
def test_convolutions_of_sequences() -> None:
    torch.manual_seed(0)
    layers = fuzzed(1, nn.Conv1d, (21,), 8) + fuzzed(2, nn.ConvTranspose1d, (21,), 4)
    check_same(Branches(*layers, nn.Conv1d(4, 3, 4, padding="same")), torch.zeros(1, 4, 21))


@needs_compiler
def test_pools_activations_and_what_moves_entries() -> None:
    torch.manual_seed(0)
    pools = [
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d((2, 3), dilation=2),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    ]
    pools += [nn.AvgPool2d(2, ceil_mode=True), nn.AvgPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((3, 4))]
    pools += [nn.MaxPool2d(3, 2, ceil_mode=True)]
    gates = [nn.ReLU(), nn.ReLU6(), nn.Sigmoid(), nn.Tanh(), nn.SiLU(), nn.Hardswish(), nn.GELU(), nn.GELU("tanh"), nn.ELU()]
    gates += [
        nn.LeakyReLU(0.2),
        nn.PReLU(4),
        nn.Hardtanh(-0.5, 2.0),
        nn.Hardsigmoid(),
        nn.Softplus(),
        nn.Softmax(1),
        nn.LogSoftmax(-1),
    ]
    gates += [nn.BatchNorm2d(4), nn.LayerNorm(11), nn.Dropout(), nn.Identity()]

    class Moved(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            one, two = x.chunk(2, 1)
            return [
                torch.cat([two, one * 2 + 1, x[:, :, ::2, 1:].mean((2, 3), keepdim=True).expand(1, 4, 9, 11)], 1),
                F.pad(x[:, :, ::2, ::2], (1, 2, 0, 1, 1, 0), value=0.5),
                x.permute(0, 2, 3, 1).reshape(1, 9, -1) - 3,
                torch.stack([one, two]).flip(-1).sum(0),
                x.amax(1) / (x.abs().mean() + x[:, :1, :1, :1].exp()),
                torch.maximum(1 - x, x**2).sqrt()[..., 3],
            ]

    check_same(Branches(*pools, *gates, Moved()).eval(), torch.zeros(1, 4, 9, 11))


class Words(nn.Module):
    """A convolution over a sequence, two recurrent layers of two kinds, and heads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3, padding="same")
        self.norm = nn.BatchNorm1d(8)
        self.lstm = nn.LSTM(8, 6, num_layers=2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(12, 5, bias=False)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.max_pool1d(F.relu(self.norm(self.conv(x))), 2)
        hidden, _ = self.lstm(hidden.transpose(1, 2))
        hidden, last = self.gru(hidden.transpose(0, 1))
        return self.head(F.dropout(hidden[-1], 0.5, self.training)).softmax(-1), last[0] + self.head(hidden).mean(0)[:, :1]


@needs_compiler
def test_recurrent_networks() -> None:
    torch.manual_seed(0)
    model = pruned(Words(), 0.15)
    for weight in model.lstm.parameters():  # type: ignore[union-attr]
        weight.data *= torch.arange(weight.numel()).reshape(weight.shape) % 41 == 0
    made = check_same(settled(model, torch.randn(16, 4, 12)), torch.zeros(1, 4, 12))
    assert set(made.sparse) == {"conv", "lstm", "head"} and {"gru"} <= set(made.dense) <= {"gru", "lstm"}  # dead units are cut


class Voice(nn.Module):
    """An embedding of length 1, of the last states of all layers and directions."""

    def __init__(self, kind: type[nn.RNNBase], both: bool) -> None:
        super().__init__()
        self.stack = kind(5, 7, 3, batch_first=True, bidirectional=both)  # type: ignore[call-arg]
        self.head = nn.Linear(42 if both else 21, 37)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        state = self.stack(x)[1]
        state = state[0] if isinstance(state, tuple) else state
        wide = self.head(state.transpose(0, 1).flatten(1))
        return wide / torch.norm(wide, dim=1, keepdim=True), state[-1] / torch.linalg.vector_norm(state[0], ord=1)


@needs_compiler
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("both", [False, True])
def test_last_states_of_several_layers(kind: type[nn.RNNBase], both: bool) -> None:
    torch.manual_seed(0)
    check_same(Voice(kind, both).eval(), torch.randn(1, 9, 5))


class Residual(nn.Module):
    """A block of a residual network with a strided shortcut, an excitation, a grouped convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 16, 3, 2, 1, bias=False)
        self.norm1, self.norm2, self.norm3 = nn.BatchNorm2d(8), nn.BatchNorm2d(16), nn.BatchNorm2d(16)
        self.short, self.deep = nn.Conv2d(8, 16, 1, 2, bias=False), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.squeeze, self.fc = nn.Conv2d(16, 16, 1), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.one(x)))
        x = F.relu_(self.norm2(self.two(x)) + self.norm3(self.short(x)))
        x = x * torch.sigmoid(self.squeeze(F.adaptive_avg_pool2d(x, 1)))
        return self.fc(F.relu6(self.deep(x)).mean((-1, -2)))


@pytest.mark.third
@needs_compiler
@pytest.mark.parametrize(("density", "dense"), [(0.1, False), (0.1, True)])
def test_residual_networks_whose_norms_are_folded(density: float, dense: bool) -> None:
    torch.manual_seed(0)
    made = check_same(settled(pruned(Residual(), density), torch.randn(8, 3, 16, 16)), torch.zeros(1, 3, 16, 16), dense=dense)
    assert len(made.sparse) + len(made.dense) == 6
    if not dense:
        assert set(made.sparse) == {"one", "two", "short", "deep", "squeeze", "fc"}


# --- the file ------------------------------------------------------------------------------------------------------------


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))


@needs_compiler
def test_zeros_are_not_stored_and_codes_are_decoded(tmp_path: Path) -> None:
    model = small()
    weight = model[3].weight.detach()
    parametrized.attach(model, "3.weight", WHOLE, sets.TopK(20).encode(weight.reshape(1, -1)))
    done = c.export_c(model, (torch.zeros(1, 1, 6, 6),), tmp_path / "sub" / "net.c", name="my_net")
    assert done.relative is not None and done.relative < 1e-5 and done.batches == (1, 2, 5) and done.sparse == ("3",)
    # a float and a place of two bytes for each of 20, two numbers for each of 5 rows; 36 + 4 and 5 floats besides
    assert 20 * 6 + 5 * 8 + 5 * 4 < done.tables < 600 < 4 * weight.numel()
    text = (tmp_path / "sub" / "net.c").read_text()
    assert done.bytes == len(text) and "void my_net_run(const float *restrict in0, float *restrict out0" in text
    assert int(re.findall(r"#define MY_NET_ARENA (\d+)", text)[0]) * 4 == done.ram and 500 < (done.flash or 0) < 40_000
    assert json.loads(json.dumps(done.to_dict()))["format"] == "c"
    loaded = c.load_c(tmp_path / "sub" / "net.c")
    rows = torch.randn(4, 1, 6, 6)
    with torch.no_grad():
        assert float((loaded(Inputs((rows,)))[0] - model(rows)).abs().max()) < 1e-5
    with pytest.raises(c.CError, match="takes inputs of"):
        loaded(Inputs((torch.zeros(1, 1, 6, 7),)))


def test_a_low_rank_layer_runs_as_two(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(4, 16, 3, bias=False))
    parametrized.attach(model, "0.weight", View("o i h w -> (i h) (o w)"), codes.Factors(12, 48, 2))
    done = c.export_c(model, (torch.zeros(1, 4, 8, 8),), tmp_path / "net.c", check=False)
    assert len(done.dense) == 2 and done.tables < 4 * 16 * 4 * 9


@needs_compiler
def test_nothing_is_read_or_written_beside_the_arrays(tmp_path: Path) -> None:
    """Under the sanitizers of addresses and of undefined behaviour, in a program of its own, with an arena of just its size."""
    torch.manual_seed(3)
    layers = fuzzed(5, nn.Conv2d, (7, 16), 8) + fuzzed(6, nn.ConvTranspose2d, (7, 16), 2)
    more = [nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(4, 5, 3, padding=1), nn.Flatten(), nn.Linear(120, 7)), nn.AvgPool2d(3, 2, 1)]
    alone = nn.Conv2d(4, 6, 3, padding=1)  # whose windows reach over both ends of its input, and that over those of the arena
    networks = {"one": Branches(*layers, *more), "two": alone, "three": pruned(nn.Conv2d(4, 9, 5, padding=2), 0.05)}
    networks["four"] = pruned(nn.Conv2d(4, 5, 1), 0.5)  # whose planes are whole pages
    program, calls = "#include <stdlib.h>\n", ""
    for name, network in networks.items():
        made = c.written(network, (torch.zeros(1, 4, *((32, 32) if name == "four" else (7, 16))),), name=name)[1]
        sizes = [math.prod(shape) for shape in (*made.inputs, *made.outputs)] + [made.arena]
        arrays = [f"{name}{i}" for i in range(len(sizes))]
        calls += "".join(
            f"  float *{array} = malloc(sizeof(float) * {size}u);\n" for array, size in zip(arrays, sizes, strict=True)
        )
        calls += f"  for (int i = 0; i < {sizes[0]}; i++) {name}0[i] = (float)i * 0.01f;\n"
        calls += f"  {name}_run({', '.join(arrays)});\n" + "".join(f"  free({array});\n" for array in arrays)
        program += made.text
    program += f"int main(void) {{\n{calls}  return 0;\n}}\n"
    (tmp_path / "net.c").write_text(program)
    checks = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O0")
    command = [*c.compiler(), *build.STANDARD, *checks, str(tmp_path / "net.c"), "-o", str(tmp_path / "net"), "-lm"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode:
        pytest.skip(f"the compiler has no sanitizers: {built.stderr[-200:]}")
    ran = subprocess.run([str(tmp_path / "net")], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[:2000]


@needs_compiler
def test_threads_with_arenas_of_their_own_compute_the_same() -> None:
    made = c.written(small(), (torch.zeros(1, 1, 6, 6),))[1]
    first = build.Loaded(made, QUICK)
    rows = torch.randn(64, 1, 6, 6)
    wanted = first(Inputs((rows,)))[0]
    got: list[Tensor] = []
    others = [copy.copy(first) for _ in range(2)]  # the same code, of which each has an arena of its own
    for one in others:
        one.arena = first.arena.copy()
    threads = [threading.Thread(target=lambda one=one: got.append(one(Inputs((rows,)))[0])) for one in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 2 and all(torch.equal(one, wanted) for one in got)


def test_names_of_a_network_cannot_become_code() -> None:
    program = c.lower(small(), Inputs((torch.zeros(1, 1, 6, 6),)))
    names = ["*/ int evil(void) { return 1; } /*", "\n#include <evil>\\", "??/ @_v [[a0]] {a0} \u2028\u00e9"]
    for step, name in zip(program.steps, names, strict=False):
        step.name = name
    made = c.source(program)
    assert "evil" not in re.sub(r"/\*.*?\*/", "", made.text, flags=re.DOTALL)
    comments = re.findall(r"^  /\* (.*) \*/$", made.text, re.MULTILINE)
    assert comments == ["intevilvoidreturn1", "includeevil"][: len(program.steps)] and made.text.isascii()
    if HAS_COMPILER:
        build.Loaded(made, (*QUICK, *STRICT))


def test_the_name_of_the_function_is_an_identifier() -> None:
    program = c.lower(small(), Inputs((torch.zeros(1, 1, 6, 6),)))
    for name in ("", "9net", "a b", "x;y", "\u00e9", "a" * 60, "x\n"):
        with pytest.raises(InputError, match="identifier of C"):
            c.source(program, name)


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        return self.function(self.fc(x))


@pytest.mark.third
@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x: torch.linalg.matrix_exp(x[..., None] * x[:, None]), r"C has no form of aten\.linalg_matrix_exp"),
        (lambda x: x[:, None] @ x[:, :, None], "product of two computed matrices"),
        (lambda x: x.argmax(1), r"argmax gives torch.int64"),
        (lambda x: torch.ones(3), "does not depend on its inputs"),
        (lambda x: F.pad(x[:, None], (1, 1), mode="reflect"), "has no form"),
        (lambda x: x if x.sum() > 0 else -x, "cannot capture the network"),
        (lambda x: x * float("inf"), "C has no constant for"),
    ],
)
def test_what_has_no_form_in_c_is_named(function: Callable[[Tensor], Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(c.CError, match=says):
        c.export_c(Applied(function), (torch.zeros(1, 4),), tmp_path / "net.c")
    assert not list(tmp_path.iterdir())


def test_weights_that_are_no_numbers_are_refused() -> None:
    model = small()
    model[3].weight.data[2, 3] = float("nan")
    with pytest.raises(c.CError, match="3 has weights that are not finite"):
        c.written(model, (torch.zeros(1, 1, 6, 6),))


def test_without_a_compiler_the_way_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(c.CompilerMissing, match=r"no C compiler .*install one.*--no-check"):
        c.export_c(small(), (torch.zeros(1, 1, 6, 6),), tmp_path / "net.c")
    assert not list(tmp_path.iterdir())
    done = c.export_c(small(), (torch.zeros(1, 1, 6, 6),), tmp_path / "net.c", check=False)
    assert done.relative is None and done.flash is None and (tmp_path / "net.c").stat().st_size == done.bytes


def test_a_file_that_is_not_ours_is_not_loaded_and_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "other.c").write_text("int main(void) { return 0; }")
    for name in ("other.c", "none.c"):
        with pytest.raises(ArtifactError, match=r"not written by featherweight|cannot be read"):
            c.load_c(tmp_path / name)
    with pytest.raises(StorageError, match="cannot write"):
        c.export_c(small(), (torch.zeros(1, 1, 6, 6),), tmp_path / "other.c" / "net.c", check=False)


@needs_compiler
def test_c_is_timed_beside_the_others() -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 8))

    networks = {"dense": net(), "pruned": pruned(net(), 0.02)}
    found = bench(networks, (torch.zeros(1, 128),), runtimes=("eager", "c"), batches=(2,), devices=["cpu"], rounds=9)
    assert [(one.runtime, one.variant) for one in found.timings] == [(r, v) for r in ("eager", "c") for v in networks]
    assert next(one for one in found.comparisons if one.runtime == "c").ratio > 1.2


@needs_compiler
def test_every_door_to_a_file_leads_to_c_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, example = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)), torch.randn(1, 3, 8)
    done = fw.prune(network, (example,), macs=0.5)
    wrote = done.export(tmp_path / "net.c", "c", name="mine", small=True)
    assert wrote.format == "c" and "void mine_run(" in (tmp_path / "net.c").read_text() and wrote.relative is not None
    assert fw.export(done.model, (example,), tmp_path / "again.c", "c").relative < 1e-5  # type: ignore[operator]
    loaded, rows = fw.load_c(tmp_path / "again.c"), torch.randn(3, 3, 8)
    for given in (rows, (rows,), Inputs((rows,))):
        torch.testing.assert_close(loaded(given)[0], done.model(rows).detach(), rtol=1e-5, atol=1e-6)


class Steps(nn.Module):
    """A recurrent layer alone, every step of it."""

    def __init__(self, kind: type[nn.RNNBase], inputs: int, hidden: int, scale: float, **options: Any) -> None:
        super().__init__()
        self.layer = kind(inputs, hidden, batch_first=True, **options)
        for weight in self.layer.parameters():
            weight.data *= scale

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]  # type: ignore[no-any-return]


@pytest.mark.third
@needs_compiler
@pytest.mark.parametrize("options", [("-O2",), ("-O2", "-march=native")], ids=["4 lanes", "this machine"])
@pytest.mark.parametrize(("kind", "hidden", "scale"), [(nn.LSTM, 21, 1), (nn.LSTM, 16, 150), (nn.GRU, 5, 1), (nn.GRU, 37, 150)])
def test_recurrent_layers_of_all_widths_and_far_into_saturation(
    kind: type[nn.RNNBase], hidden: int, scale: float, options: tuple[str, ...]
) -> None:
    """Large weights drive the gates to where an exponential would overflow."""
    torch.manual_seed(hidden)
    model = Steps(kind, 7, hidden, scale, bidirectional=hidden == 5).eval()
    given = torch.randn(2, 9, 7)
    plain, wanted = model(given).detach(), copy.deepcopy(model).double()(given.double()).detach()
    made = c.written(model, (given[:1],))[1]
    assert made.dense and not made.sparse
    got = build.Loaded(made, options)((given,))[0]
    assert bool(got.isfinite().all()) and (got - wanted).abs().max() < 5e-7 + 5 * (plain - wanted).abs().max()
    assert (scale > 1) == bool((given @ model.layer.weight_ih_l0.T).abs().max() > 88)  # type: ignore[operator, union-attr]
