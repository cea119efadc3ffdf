"""MODEL as a network of a library: how the text is read; and, where the libraries are installed, what comes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from featherweight.errors import ArtifactError, DataError, InputError
from featherweight.files import libraries
from featherweight.network.calls import Inputs
from featherweight.zoo import sources


def test_what_names_a_library_s_network() -> None:
    assert (
        sources.is_source("timm:resnet50")
        and sources.is_source("hf:folder")
        and sources.is_source("torchvision:vgg16,num_classes=3")
    )
    assert not any(map(sources.is_source, ("lenet5", "net.py:model", "timm.py:model", "timm", "tfbs:x")))
    named = sources.split("timm:resnet50.a1_in1k,num_classes=4,pretrained")
    assert named == sources.Named("timm", "resnet50.a1_in1k", {"num_classes": 4}, True)
    assert sources.split("hf:a,b").name == "a,b", "a folder may have any name"


@pytest.mark.parametrize(
    "text", ["timm:", "timm:x,num_classes=0", "timm:x,drop=1", "torchvision:x,in_chans=1", "timm:x,num_classes"]
)
def test_what_may_stand_after_a_name_is_said(text: str) -> None:
    with pytest.raises(InputError, match=r"num_classes=NUMBER|names no network"):
        sources.split(text)


def folder(place: Path, **config: Any) -> Path:
    place.mkdir()
    (place / "config.json").write_text(json.dumps(config))
    return place


def test_a_folder_that_is_none_of_the_hub_s_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Base(nn.Module):
        config_class = object

    library = type("transformers", (), {"PreTrainedModel": Base, "Net": type("Net", (Base,), {})})
    monkeypatch.setattr(libraries, "library", lambda name, wanted_for: library)
    monkeypatch.setattr(libraries.importlib.metadata, "version", lambda name: "5")
    with pytest.raises(InputError, match="there is no folder"):
        sources.network(f"hf:{tmp_path}/nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no config\.json"):
        sources.network(f"hf:{tmp_path}/empty")
    with pytest.raises(InputError, match="names no one class"):
        sources.network(f"hf:{folder(tmp_path / 'a', hidden=1)}")
    with pytest.raises(InputError, match="code that comes with a folder is not run"):
        sources.network(f"hf:{folder(tmp_path / 'b', architectures=['Evil'], auto_map={'AutoModel': 'evil.Evil'})}")
    with pytest.raises(InputError, match="quantised already"):
        sources.network(f"hf:{folder(tmp_path / 'c', architectures=['Net'], quantization_config={})}")
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        sources.network(f"hf:{folder(tmp_path / 'd', architectures=['Net'])}")
    (tmp_path / "d/config.json").write_text("[1")
    with pytest.raises(ArtifactError, match="cannot be read"):
        sources.network(f"hf:{tmp_path / 'd'}")


def test_networks_of_timm_say_what_they_take() -> None:
    pytest.importorskip("timm", reason="an optional package: timm:NAME")
    made = sources.network("timm:test_resnet,in_chans=1,num_classes=7")
    (picture,) = sources.example("timm:test_resnet,in_chans=1", made)
    assert picture.shape == (1, 1, 160, 160) and made(picture).shape == (1, 7)
    with pytest.raises(InputError, match="Did you mean 'resnet50'"):
        sources.network("timm:resnet5")
    with pytest.raises(InputError, match="There are: resnet18"):
        sources.network("timm:resnet18.a9_in1k")


def test_networks_of_torchvision_say_what_they_take() -> None:
    pytest.importorskip("torchvision", reason="an optional package: torchvision:NAME")
    made = sources.network("torchvision:squeezenet1_1,num_classes=7")
    assert sources.pictures("torchvision:inception_v3", made).size == 299
    (picture,) = sources.example("torchvision:squeezenet1_1", made)
    assert picture.shape == (1, 3, 224, 224) and made(picture).shape == (1, 7)
    with pytest.raises(InputError, match="nothing is known of the inputs"):
        sources.example("torchvision:fasterrcnn_resnet50_fpn", nn.Identity())


def test_folders_of_the_hub_are_loaded_with_all_their_weights(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="an optional package: hf:FOLDER")
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=12,
    )
    saved = transformers.BertForSequenceClassification(config).eval()
    saved.save_pretrained(tmp_path / "bert")
    made = sources.network(f"hf:{tmp_path / 'bert'}")
    example = sources.example("hf:x", made)
    assert isinstance(example, Inputs) and example.kwargs["input_ids"].shape == (1, 12)
    with torch.no_grad():
        assert torch.equal(example.call(made).logits, example.call(saved).logits)
    source = sources.source_of(f"hf:{tmp_path / 'bert'}", made)
    assert source is not None and str(tmp_path) not in source.model_dump_json(), "no path of this machine goes into an artifact"
    assert libraries.build(source, libraries.HUGE).state_dict().keys() == saved.state_dict().keys()
    with pytest.raises(ArtifactError, match="of a far smaller one"):
        libraries.build(source, 100)
    state = {name: tensor for name, tensor in saved.state_dict().items() if "classifier" not in name}
    from safetensors.torch import save_file

    save_file(state, tmp_path / "bert/model.safetensors", {"format": "pt"})
    with pytest.raises(ArtifactError, match="does not hold the weights of a BertForSequenceClassification: missing classifier"):
        sources.network(f"hf:{tmp_path / 'bert'}")


def test_weights_that_no_server_gives_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(name: str, pretrained: bool) -> nn.Module:
        if pretrained:
            raise OSError("no route to host")
        return nn.Linear(1, 1)

    timm = type("timm", (), {"list_models": staticmethod(lambda: ["net"]), "create_model": staticmethod(create_model)})
    monkeypatch.setattr(libraries, "library", lambda name, wanted_for: timm)
    with pytest.raises(DataError, match=r"no route to host\. Where no server is reached, give --weights FILE"):
        sources.network("timm:net,pretrained")
