"""Integers in ONNX files: weights come out bit for bit, the file is as small as its codes, activations are calibrated on the
task's training batches, and layers that integers harm are left out and named."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featherweight import Task
from featherweight.errors import InputError
from featherweight.network.calls import Inputs
from featherweight.ship.activations import FromFile, Integers, calibration, quantise
from featherweight.ship.export import export, scored
from featherweight.ship.integers import IntegerError, Stored, put, stored
from featherweight.ship.runtimes import onnx_runner
from featherweight.weights import codes, parametrized, sets
from featherweight.weights.views import WHOLE, View

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
pytestmark = pytest.mark.skipif(not HAS_ONNX, reason="onnx, onnxscript and onnxruntime are not installed")
ROW = View("o ... -> o (...)")


class Net(nn.Module):
    """Three convolutions, of which a batch norm follows the first, and a linear layer; (batch, 3, 8, 8) -> (batch, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 24, 3, padding=1)
        self.conv3 = nn.Conv2d(24, 24, 3, padding=1)
        self.fc = nn.Linear(24, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.relu(self.norm(self.conv1(images)))
        hidden = F.relu(self.conv2(F.max_pool2d(hidden, 2)))
        return self.fc(F.relu(self.conv3(hidden)).mean((2, 3)))


def net() -> Net:
    torch.manual_seed(0)
    made = Net()
    made(torch.randn(32, 3, 8, 8))
    with torch.no_grad():
        made.norm.weight.copy_(torch.randn(16))  # some below 0, which turns a folded weight's sign
    return made.eval()


def coded(chosen: sets.Set, view: View = WHOLE, sparse: bool = False) -> Net:
    made = net()
    for name, weight in list(made.named_parameters()):
        if weight.dim() > 1:
            if sparse:
                weight.data *= torch.rand_like(weight) < 0.3
            parametrized.attach(made, name, view, chosen.encode(view.to_matrix(weight.detach())))
    return made


def task() -> Task:
    torch.manual_seed(1)
    images = torch.randn(96, 3, 8, 8)
    teacher = net()

    def batches(epoch: int) -> list[tuple[Tensor, Tensor]]:
        return [(part, teacher(part).argmax(1).detach()) for part in images.split(40)]

    def score(network: nn.Module) -> float:
        with torch.no_grad():
            return 100 * float((network(images).argmax(1) == teacher(images).argmax(1)).double().mean())

    def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, 0.1)

    return Task((images[:1],), batches, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), score, sgd)


def nodes(path: Path) -> list[Any]:
    import onnx

    return list(onnx.load(path).graph.node)


EACH = {
    "pruned": (sets.TopK(700), WHOLE, False),
    "uniform": (sets.Levels("uniform", 3), ROW, False),
    "uniform, 7 bits": (sets.Levels("uniform", 7), ROW, False),
    "power of two": (sets.Levels("power_of_two", 3), WHOLE, False),
    "binary": (sets.Levels("binary"), ROW, False),
    "ternary": (sets.Levels("ternary"), ROW, False),
    "by input": (sets.Levels("binary"), View("o i ... -> i (o ...)"), False),
    "shared": (sets.Codebook(5), WHOLE, False),
    "uniform, 8 bits": (sets.Levels("uniform", 8), WHOLE, False),
    "pruned and uniform": (sets.Levels("uniform", 2, sparse=True), ROW, True),
    "pruned and shared": (sets.Codebook(30, sparse=True), WHOLE, True),
}


def alone(weights: dict[str, Tensor], opset: int) -> Any:
    """An ONNX model that gives its weights."""
    import onnx

    outs = [onnx.helper.make_tensor_value_info(f"{name}.out", 1, list(weight.shape)) for name, weight in weights.items()]
    copies = [onnx.helper.make_node("Identity", [name], [f"{name}.out"]) for name in weights]
    held = [onnx.numpy_helper.from_array(weight.numpy(), name) for name, weight in weights.items()]
    graph = onnx.helper.make_graph(copies, "g", [], outs, held)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)


def given(model: Any, folder: Path) -> tuple[list[np.ndarray[Any, Any]], set[str]]:
    """What it gives, and the operations that are left of it when ONNX Runtime has loaded it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "loaded.onnx"), 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {}), {node.op_type for node in nodes(folder / "loaded.onnx")}


@pytest.mark.parametrize("what", list(EACH))
def test_weights_come_out_bit_for_bit_and_the_file_is_as_small_as_its_codes(what: str, tmp_path: Path) -> None:
    chosen, view, sparse = EACH[what]
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(16, 32, 3, bias=False), nn.Linear(67, 61, bias=False))
    for name, weight in list(network.named_parameters()):
        weight.data *= torch.rand_like(weight) < (0.2 if sparse else 1.0)
        parametrized.attach(network, name, view, chosen.encode(view.to_matrix(weight.detach())))
    weights, held = parametrized.decoded(network), stored(network)
    assert set(held) == set(weights)
    model = alone(weights, 18)
    assert put(model, held, "packed", 18) == sorted(weights)
    found, left = given(model, tmp_path)
    assert left <= {"Identity"}  # nothing is decoded at every run
    for weight, got in zip(weights.values(), found, strict=True):
        assert got.tobytes() == (weight.numpy() + 0.0).tobytes()
    bits = sum(viewed.code.bits() for viewed in parametrized.coded(network).values())
    places = sum(one.support.numel() for one in held.values() if one.support is not None)  # a bit each, an enumerative code less
    assert len(model.SerializeToString()) < 1.1 * bits / 8 + places / 8 + 3000
    assert sum(one.bits() for one in held.values()) < 1.25 * bits + places + 32 * 256


@pytest.mark.parametrize("opset", [18, 21])
def test_levels_are_integers_behind_dequantize_linear(opset: int, tmp_path: Path) -> None:
    import onnx

    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(24, 63, 3, bias=False), nn.Linear(97, 61, bias=False))
    for name, weight in list(network.named_parameters()):
        chosen, view = (sets.Levels("uniform", 3), ROW) if name == "0.weight" else (sets.Levels("uniform", 6), WHOLE)
        parametrized.attach(network, name, view, chosen.encode(view.to_matrix(weight.detach())))
    weights = parametrized.decoded(network)
    model = alone(weights, opset)
    put(model, stored(network), "integers", opset)
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    behind = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    assert set(behind) == set(weights)
    sides = {name: [held[part] for part in node.input] for name, node in behind.items()}
    small = opset >= 21
    assert sides["0.weight"][0].data_type == (onnx.TensorProto.INT4 if small else onnx.TensorProto.INT8)
    assert len(sides["0.weight"][0].raw_data) == 24 * 63 * 9 / (2 if small else 1) and list(sides["0.weight"][1].dims) == [63]
    assert sides["1.weight"][0].data_type == onnx.TensorProto.INT8 and list(sides["1.weight"][1].dims) == []
    for weight, got in zip(weights.values(), given(model, tmp_path)[0], strict=True):
        assert np.array_equal(got, weight.numpy())


def test_an_exported_network_holds_its_codes_and_its_batch_norms(tmp_path: Path) -> None:
    model = coded(sets.Levels("uniform", 3), ROW)
    done = export(model, (torch.randn(1, 3, 8, 8),), tmp_path / "m.onnx")
    assert done.relative < 1e-5 and done.bytes < 12_000 < 4 * sum(p.numel() for p in net().parameters())
    kinds = [node.op_type for node in nodes(tmp_path / "m.onnx")]
    assert kinds.count("BatchNormalization") == 1 and kinds.count("Gather") >= 2
    raw = (tmp_path / "m.onnx").read_bytes()
    assert b".py" not in raw and b"torch" not in raw.replace(b"pytorch", b"")  # nothing of the machine it was written on


def test_a_weight_that_decodes_to_something_else_is_refused() -> None:
    import onnx

    weight = torch.arange(2000.0).reshape(40, 50) % 7
    held = Stored(weight, index=(weight.flatten() + 1).to(torch.uint8) % 7, table=torch.arange(7.0))
    value = onnx.helper.make_tensor_value_info("x", 1, [1, 50])
    out = onnx.helper.make_tensor_value_info("y", 1, [1, 40])
    node = onnx.helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    graph = onnx.helper.make_graph([node], "g", [value], [out], [onnx.numpy_helper.from_array(weight.numpy(), "w")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    with pytest.raises(IntegerError, match="w comes out of the ONNX file with other values"):
        put(model, {"w": held}, "packed", 18)


def test_a_small_or_factored_weight_is_not_packed() -> None:
    model = net()
    parametrized.attach(model, "conv2.weight", View("o i h w -> (i h) (o w)"), codes.Factors(48, 72, 3))
    parametrized.attach(model, "norm.weight", WHOLE, sets.Codebook(3).encode(model.norm.weight.detach().reshape(1, -1)))
    assert stored(model) == {}


# --- activations ---------------------------------------------------------------------------------------------------------


def test_calibration_is_what_the_task_calls_the_network_with() -> None:
    work, seen = task(), calibration(net(), task(), 50)
    assert [one.batch for one in seen] == [40, 10]
    assert torch.equal(seen[0].args[0], work.batches(0)[0][0]) and sum(one.batch for one in calibration(net(), work, 500)) == 96
    with pytest.raises(InputError, match="at least 1"):
        calibration(net(), work, 0)


def test_activations_in_integers_are_near_and_scored_from_the_file(tmp_path: Path) -> None:
    model, work = net(), task()
    done = export(model, work.example_inputs, tmp_path / "q.onnx", integers=Integers(calibration(model, work), "percentile"))
    assert done.integers is not None and done.integers["samples"] == 80 and done.integers["left"] == {}  # two runs of 40
    assert 0 < done.integers["error"] < 0.1 and done.integers["layers"] == ("conv1", "conv2", "conv3", "fc")
    kinds = [node.op_type for node in nodes(tmp_path / "q.onnx")]
    assert kinds.count("QuantizeLinear") >= 4 and kinds.count("DequantizeLinear") >= 8
    got = scored(done, model, work).score
    assert got == work.evaluate(FromFile(onnx_runner(tmp_path / "q.onnx"), model, Inputs.of(work.example_inputs))) and got > 90


def test_whole_levels_stay_the_numbers_of_the_code(tmp_path: Path) -> None:
    import onnx

    model, work = coded(sets.Levels("uniform", 3), ROW), task()
    export(model, work.example_inputs, tmp_path / "q.onnx", integers=Integers(calibration(model, work)))
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "q.onnx").graph.initializer}
    for name in ("conv2", "conv3"):
        code = parametrized.coded(model)[f"{name}.weight"].code
        wanted = code.levels[code.index.long()].to(torch.int8).numpy()
        assert np.array_equal(held[f"{name}.weight_quantized"].reshape(24, -1), wanted)


class Widths(nn.Module):
    """A layer of each width of bits: over inputs of three dimensions, whose matrices the exporter turns, and of two."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(24, 24, bias=bits % 2 > 0) for bits in range(2, 9))
        self.head = nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x).relu()
        return self.head(x.mean(1))


def test_weights_of_2_to_8_bits_are_in_the_file_as_they_were_scored(tmp_path: Path) -> None:
    """+-128 is no int8: at 8 bits there is none. What a code holds otherwise is rounded once more, and it is said."""
    import onnx

    torch.manual_seed(0)
    network, x = Widths().eval(), torch.randn(4, 3, 24)
    chosen: dict[str, sets.Set] = {f"layers.{bits - 2}.weight": sets.Levels("uniform", bits) for bits in range(2, 9)}
    for name, one in chosen.items():
        parametrized.attach(network, name, ROW, one.encode(network.get_parameter(name).detach()))
    before_0_1 = torch.arange(-128.0, 129)[torch.arange(257) != 128]  # the levels that files written before may hold
    index = torch.randint(256, (24, 24))
    index[:, 0] = 255
    network.head.weight.data.copy_(before_0_1[index] * 1e-3)
    parametrized.attach(network, "head.weight", ROW, codes.Scaled(index.to(torch.uint8), before_0_1))
    done = export(network, (x[:1],), tmp_path / "q.onnx", integers=Integers([Inputs((x,))]))
    assert done.integers is not None and done.integers["rounded"] == ("head",) and done.integers["left"] == {}
    assert done.integers["layers"] == (*(f"layers.{i}" for i in range(7)), "head")
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "q.onnx").graph.initializer}
    for name in chosen:
        whole = held[f"{name}_quantized"]
        assert whole.dtype == np.int8
        made = whole.T.astype(np.float32) * held[f"{name}_scale"][:, None]
        assert made.tobytes() == parametrized.decoded(network)[name].numpy().tobytes()


class Masked(nn.Module):
    """Attention whose padding gets the least number before the softmax; (batch, 6, 16) -> (batch, 6, 16)."""

    def __init__(self, fill: float) -> None:
        super().__init__()
        self.fill = fill
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        mask = torch.zeros(seen.shape).masked_fill(seen == 0, self.fill)[:, None]
        shares = (self.q(x) @ self.k(x).transpose(1, 2) / 4 + mask).softmax(-1)
        return self.o(shares @ self.v(x))


@pytest.mark.third
@pytest.mark.parametrize("fill", [torch.finfo(torch.float32).min, -torch.inf], ids=["least", "infinite"])
def test_what_a_mask_fills_in_is_in_no_range(fill: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    seen = (torch.arange(6) < torch.randint(2, 6, (64, 1))).long()
    given = (torch.randn(64, 6, 16), seen)
    done = export(Masked(fill).eval(), (given[0][:2], seen[:2]), tmp_path / "net.onnx", integers=Integers([given]))
    assert done.integers is not None and done.integers["error"] < 0.05 and done.integers["left"] == {}


def test_a_network_whose_values_are_beyond_measure_is_not_said_to_be_in_integers(tmp_path: Path) -> None:
    """A training that went astray: every tensor is of the size of what a mask fills in."""
    model, work = net(), task()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1e13
    with pytest.raises(IntegerError, match=r"all \d+ layers would be left in float32"):
        export(model, work.example_inputs, tmp_path / "q.onnx", integers=Integers(calibration(model, work)))


def test_layers_are_left_in_float_by_the_measured_rule(tmp_path: Path) -> None:
    model, work = net(), task()
    seen = calibration(model, work)
    with torch.no_grad():  # one channel a thousand times larger: the others have no step of 8 bits left
        model.conv3.weight[0] *= 1000
        model.conv3.bias[0] *= 1000
        model.fc.weight[:, 0] /= 1000
    done = export(model, work.example_inputs, tmp_path / "q.onnx", integers=Integers(seen))
    assert done.integers is not None and len(done.integers["left"]) == 1 and done.integers["error"] <= 0.1
    assert "alone it moves the outputs by" in next(iter(done.integers["left"].values()))


def test_bad_calibration_is_refused(tmp_path: Path) -> None:
    import onnx

    model, path, source = net(), tmp_path / "q.onnx", tmp_path / "f.onnx"
    image = onnx.helper.make_tensor_value_info("x", 1, ["b", 3])
    out = onnx.helper.make_tensor_value_info("y", 1, ["b", 2])
    held = [onnx.numpy_helper.from_array(np.ones((2, 3), np.float32), "fc.weight")]
    node = onnx.helper.make_node("Gemm", ["x", "fc.weight"], ["y"], transB=1)
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [image], [out], held)), source)
    seen = [Inputs((torch.randn(8, 3, 8, 8),))]
    for asked, says in (
        (Integers([]), "integers need calibration data"),
        (Integers(seen, float32=("fd",)), "no layer with weights is named 'fd'.*Did you mean 'fc'"),
        (Integers(seen, "mean"), "one of minmax, percentile, entropy, given 'mean'"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError, match=says):
            quantise(source, path, {}, asked, True)
    with pytest.raises(InputError, match="ONNX files only"):
        export(model, (seen[0].args[0][:1],), path, "pt2", integers=Integers(seen))
    with pytest.raises(InputError, match="packed, integers, float, given 'int9'"):
        export(model, (seen[0].args[0][:1],), path, weights="int9")  # type: ignore[arg-type]
    assert [file.name for file in tmp_path.iterdir()] == ["f.onnx"]
