"""Export: the file computes what the network computes, for any batch size, and failures name their cause and the way out."""

from __future__ import annotations

import builtins
import copy
import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featherweight.errors import FeatherweightError, InputError, StorageError
from featherweight.ship import export
from featherweight.ship.export import shippable
from featherweight.ship.runtimes import ExportError, RuntimeMissing, compare, resized
from featherweight.weights import codes, parametrized, sets
from featherweight.weights.views import WHOLE, View

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="onnx, onnxscript and onnxruntime are not installed")

EXAMPLE = (torch.zeros(1, 3, 6, 6),)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(72, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.drop(F.relu(self.norm(self.conv(images)))).flatten(1))


@pytest.fixture
def coded() -> nn.Module:
    """Three codes, in training mode, batch norm statistics not those of a new layer."""
    torch.manual_seed(0)
    model = Small()
    model(torch.randn(16, 3, 6, 6))
    view = View("o i h w -> (i h) (o w)")
    parametrized.attach(model, "conv.weight", view, codes.Factors(9, 24, 3))
    parametrized.attach(model, "fc.weight", WHOLE, sets.TopK(90).encode(model.fc.weight.detach().reshape(1, -1)))
    parametrized.attach(model, "norm.weight", WHOLE, sets.Codebook(3).encode(model.norm.weight.detach().reshape(1, -1)))
    return model


def run_with_onnxruntime(path: Path, images: Tensor) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]


@needs_onnx
def test_onnx_computes_what_the_coded_network_computes_at_any_batch_size(coded: nn.Module, tmp_path: Path) -> None:
    import onnx

    before = {name: value.clone() for name, value in coded.state_dict().items()}
    done = export.export(coded, EXAMPLE, tmp_path / "sub" / "model.onnx")
    assert coded.training and set(parametrized.coded(coded)) == {"conv.weight", "fc.weight", "norm.weight"}  # itself not changed
    assert all(torch.equal(value, before[name]) for name, value in coded.state_dict().items())
    reference = copy.deepcopy(coded).eval()
    for batch in (1, 4, 7):
        images = torch.randn(batch, 3, 6, 6)
        with torch.no_grad():
            wanted = reference(images).numpy()
        assert np.abs(run_with_onnxruntime(tmp_path / "sub" / "model.onnx", images) - wanted).max() < 1e-5
    model = onnx.load(tmp_path / "sub" / "model.onnx")
    assert model.opset_import[0].version == done.opset == 18
    shapes = {tuple(tensor.dims) for tensor in model.graph.initializer}
    assert (3, 3, 3, 1) in shapes and (8, 3, 1, 3) in shapes  # the low-rank convolution left as two thin ones
    assert done.files == ("model.onnx",) and done.bytes == (tmp_path / "sub" / "model.onnx").stat().st_size
    assert 0 <= done.difference < 1e-5 and done.batches == (1, 2, 5)
    assert json.loads(json.dumps(done.to_dict()))["format"] == "onnx"
    assert list((tmp_path / "sub").iterdir()) == [tmp_path / "sub" / "model.onnx"]


@needs_onnx
def test_large_weights_go_beside_the_file(coded: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "LARGEST_SINGLE_FILE", 1)
    done = export.export(coded, EXAMPLE, tmp_path / "model.onnx")
    graph, weights = done.files
    assert graph == "model.onnx" and re.fullmatch(r"model\.onnx\.[0-9a-f]{8}\.data", weights)
    assert done.bytes == sum(f.stat().st_size for f in tmp_path.iterdir())
    images = torch.randn(3, 3, 6, 6)
    with torch.no_grad():
        wanted = coded.eval()(images).numpy()
    assert np.abs(run_with_onnxruntime(tmp_path / "model.onnx", images) - wanted).max() < 1e-5


def test_pt2_computes_what_the_coded_network_computes(coded: nn.Module, tmp_path: Path) -> None:
    done = export.export(coded, EXAMPLE, tmp_path / "model.pt2", "pt2")
    module = torch.export.load(tmp_path / "model.pt2").module()
    images = torch.randn(7, 3, 6, 6)
    assert float((module(images) - coded.eval()(images)).detach().abs().max()) < 1e-5
    assert done.opset is None and done.files == ("model.pt2",) and done.difference < 1e-5


class Nested(nn.Module):
    """Two inputs, one of whole numbers, and outputs in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 4)
        self.cell = nn.GRU(4, 6, batch_first=True)

    def forward(self, text: Tensor, scale: Tensor) -> dict[str, object]:
        states, last = self.cell(self.words(text))
        return {"states": states * scale, "more": (last[0], text + 1)}


def nested_example() -> tuple[Tensor, Tensor]:
    return torch.arange(5)[None], torch.ones(1, 1, 6)


def test_several_inputs_and_nested_outputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Nested()
    parametrized.attach(model, "cell.weight_hh_l0", View("o i -> o i"), codes.Factors(18, 6, 2))
    model(*nested_example())["states"].sum().backward()  # type: ignore[attr-defined]  # a used recurrent layer is harder to copy
    done = export.export(model, nested_example(), tmp_path / "nested.pt2", "pt2")
    assert done.relative < 1e-5


@needs_onnx
def test_several_inputs_and_nested_outputs_in_onnx(tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert export.export(Nested(), nested_example(), tmp_path / "nested.onnx").relative < 1e-5


# --- what fails ----------------------------------------------------------------------------------------------------------


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, values: Tensor) -> Tensor:
        return self.function(values)


@needs_onnx
def test_an_operation_that_onnx_lacks_is_named_with_the_way_out(tmp_path: Path) -> None:
    model = Applied(lambda values: torch.linalg.eigvals(values).real)
    with pytest.raises(ExportError, match=r"ONNX has no form of aten\.linalg_eig.*export it as pt2"):
        export.export(model, (torch.randn(1, 3, 3),), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@needs_onnx
def test_bfloat16_is_refused_for_onnx_with_the_way_out(tmp_path: Path) -> None:
    model, rows = nn.Linear(3, 2).bfloat16(), torch.randn(1, 3).bfloat16()
    with pytest.raises(ExportError, match=r"weight is in bfloat16.*network\.float\(\).*or export it as pt2"):
        export.export(model, (rows,), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir()) and export.export(model, (rows,), tmp_path / "model.pt2", "pt2").relative == 0


@pytest.mark.parametrize(("scale", "says"), [(0.0, "every output of the network is 0"), (float("nan"), "NaN throughout")])
def test_an_export_that_compared_nothing_is_not_written(scale: float, says: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=says):
        export.export(Applied(lambda values: values * scale), (torch.randn(1, 3),), tmp_path / "model.pt2", "pt2")
    assert not list(tmp_path.iterdir())


def test_code_that_depends_on_the_data_is_explained(tmp_path: Path) -> None:
    model = Applied(lambda values: values if values.sum() > 0 else -values)
    with pytest.raises(ExportError, match=r"cannot capture the network.*values of the data"):
        export.export(model, (torch.randn(1, 3),), tmp_path / "model.pt2", "pt2")
    assert not list(tmp_path.iterdir())


def test_code_that_fixes_the_batch_size_is_explained_and_can_be_exported_so(tmp_path: Path) -> None:
    model = Applied(lambda values: values * torch.tensor([[1.0], [2.0]]))
    with pytest.raises(ExportError, match="dynamic_batch=False"):
        export.export(model, (torch.randn(2, 3),), tmp_path / "model.pt2", "pt2")
    done = export.export(model, (torch.randn(2, 3),), tmp_path / "model.pt2", "pt2", dynamic_batch=False)
    assert done.batches == (2,) and not done.dynamic_batch


def test_a_file_that_computes_something_else_is_not_written(tmp_path: Path) -> None:
    model = Applied(lambda values: values + torch.rand_like(values))
    with pytest.raises(ExportError, match="differs from the network"):
        export.export(model, (torch.randn(1, 3),), tmp_path / "model.pt2", "pt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_what_to_install(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without(name: str, package: str | None = None) -> object:
        if name == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, package) if HAS_ONNX else builtins

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(RuntimeMissing, match=rf'{missing} is needed .*pip install "featherweight\[onnx\]"') as caught:
        export.export(Small(), EXAMPLE, tmp_path / "model.onnx")
    assert isinstance(caught.value, FeatherweightError)


@pytest.mark.parametrize(
    ("options", "says"), [({"format": "tflite"}, "one of onnx, pt2, given 'tflite'"), ({"opset": 17}, "at least 18, given 17")]
)
def test_options_out_of_range(options: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        export.export(Small(), EXAMPLE, tmp_path / "model.onnx", **options)  # type: ignore[arg-type]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        export.export(Small(), EXAMPLE, tmp_path / "file" / "model.pt2", "pt2")


# --- the parts -----------------------------------------------------------------------------------------------------------


def test_shippable_networks_are_decoded_copies(coded: nn.Module) -> None:
    network = shippable(coded, EXAMPLE)
    assert not parametrized.coded(network) and len(parametrized.coded(coded)) == 3 and not network.training and coded.training
    assert isinstance(network.conv, nn.Sequential)
    images = torch.randn(4, 3, 6, 6)
    assert float((network(images) - coded.eval()(images)).detach().abs().max()) < 1e-5


def test_the_inputs_that_a_file_is_run_with_differ_from_row_to_row() -> None:
    numbers, floats = torch.tensor([[3, 1]]), torch.zeros(1, 2)
    several = resized((numbers, floats), 3).args
    assert torch.equal(several[0], numbers.expand(3, 2))  # whole numbers may be indices: only those that were given are safe
    assert several[1].shape == (3, 2) and len(several[1].unique()) == 6
    assert torch.equal(resized((floats,), 3).args[0], several[1])


@pytest.mark.parametrize(
    ("got", "difference"),
    [([1.0, 2.0], 0.0), ([1.0, 2.5], 0.5), ([float("nan"), 2.0], float("inf")), ([float("inf"), 2.0], float("inf"))],
)
def test_compare_is_the_largest_difference(got: list[float], difference: float) -> None:
    network = nn.Identity()
    found, relative = compare(network, lambda given: [torch.tensor(got)], [(torch.tensor([1.0, 2.0]),)])
    assert (found, relative) == (difference, difference / 2)


def test_compare_refuses_other_shapes() -> None:
    with pytest.raises(ExportError, match=r"shapes \[\(2,\)\], the network's \[\(3,\)\]"):
        compare(nn.Identity(), lambda given: [torch.zeros(2)], [(torch.zeros(3),)])
