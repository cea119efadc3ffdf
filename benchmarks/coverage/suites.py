"""The networks: names in three packages, how each is built with random weights, and inputs that it takes."""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import random
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# one or two of each architecture family of pytorchcv, by its model names
_PYTORCHCV = """
ctxnet_cityscapes simplepose_mobile_mobilenet_w1_coco alexnet alexnetb zfnet bn_vgg11 bninception resnet18 resnet50 preresnet18
preresnet50 resnext50_32x4d seresnet18 seresnet50 sepreresnet18 sepreresnet50 senet16 resnestabc14 resnesta18 ibn_resnet50
ibn_densenet121 airnet50_1x64d_r2 bam_resnet18 cbam_resnet18 scnet50 regnetx002 regnety002 diracnet18v2 densenet121
condensenet74_c4_g4 sparsenet121 peleenet wrn50_2 drnc26 drnd22 dpn68 darknet_ref darknet_tiny darknet19 darknet53 channelnet
sharesnet18 squeezenet_v1_0 squeezenet_v1_1 squeezeresnet_v1_0 sqnxt23_w1 sqnxt23v5_w1 shufflenet_g1_wd4 shufflenet_g2_w1
shufflenet_g3_w1 shufflenetv2_w1 shufflenetv2b_w1 menet108_8x1_g3 menet160_8x1_g8 mobilenet_w1 mobilenetb_w1 fdmobilenet_w1
mobilenetv2_w1 mobilenetv2b_w1 mobilenetv3_large_w1 mobilenetv3_small_w1 igcv3_w1 mnasnet_b1 mnasnet_a1 mnasnet_small darts
proxylessnas_cpu proxylessnas_mobile fbnet_cb xception inceptionv3 inceptionv4 inceptionresnetv2 polynet nasnet_4a1056
pnasnet5large spnasnet efficientnet_b0 efficientnet_b0b efficientnet_edge_small_b mixnet_s mixnet_m hrnet_w18_small_v1
vovnet27s vovnet39 selecsls42 selecsls42b hardnet39ds hardnet68 ghostnet dla34 dla46c dla60 dla60x dicenet_w1 dicenet_wd5
fishnet99 espnetv2_wd2 espnetv2_w1 isqrtcovresnet18 resneta10 resnetd50b bagnet9 rir_cifar10 nin_cifar10 resnet20_cifar10
resnet56_cifar10 resnet164bn_cifar10 preresnet20_cifar10 resnext29_32x4d_cifar10 seresnet20_cifar10 sepreresnet20_cifar10
pyramidnet110_a48_cifar10 densenet40_k12_cifar10 densenet40_k12_bc_cifar10 xdensenet40_2_k24_bc_cifar10 wrn20_10_1bit_cifar10
ror3_56_cifar10 shakeshakeresnet20_2x16d_cifar10 diaresnet20_cifar10 diapreresnet20_cifar10 resdropresnet20_cifar10 msdnet22
octresnet10_ad2 fastseresnet101b superpointnet mobilenet_wd4 shufflenetv2_wd2 fcn8sd_resnetd50b_voc pspnet_resnetd50b_voc
deeplabv3_resnetd50b_voc icnet_resnetd50b_cityscapes fastscnn_cityscapes cgnet_cityscapes dabnet_cityscapes sinet_cityscapes
bisenet_resnet18_celebamaskhq danet_resnetd50b_cityscapes fpenet_cityscapes enet_cityscapes erfnet_cityscapes
linknet_cityscapes segnet_cityscapes unet_cityscapes edanet_cityscapes esnet_cityscapes lednet_cityscapes espcnet_cityscapes
lwopenpose2d_mobilenet_cmupan_coco simplepose_resnet18_coco ibppose_coco lffd20x5s320v2_widerface jasper5x3 quartznet5x5_en_ls
jasperdr10x5_en preresnet10 mobilenetv3_small_wd2 resnet26 resnetbc14b mobilenetv2_wd2 dla46xc regnetx004 regnety004
espnetv2_w3d2 squeezeresnet_v1_1 fdmobilenet_wd2 proxylessnas_gpu menet128_8x1_g4 igcv3_wd2 sqnxt23_w3d2 preresnet26
"""
PYTORCHCV = _PYTORCHCV.split()
# what a family is asked to leave out that is no network: peaks found in heat maps, spectra made of sound; sizes of training
OPTIONS: dict[str, dict[str, Any]] = {
    "simplepose": {"return_heatmap": True},
    "jasper": {"from_audio": False},
    "quartznet": {"from_audio": False},
    "fastscnn": {"fixed_size": False},
}

_TRANSFORMERS = """
bert gpt2 llama mistral qwen2 gemma distilbert roberta albert t5 bart vit deit opt gpt_neox phi falcon mixtral electra swin
whisper mamba clip convnext
"""
TRANSFORMERS = _TRANSFORMERS.split()


def sizes_for(name: str) -> list[tuple[int, ...]]:
    """Image sizes to try, small first: most networks take any size that their strides divide."""
    if "cifar10" in name:
        return [(3, 32, 32)]
    if name.startswith(("jasper", "quartznet")):
        return [(64, 128), (80, 128)]
    return [
        (3, 96, 96),
        (3, 128, 128),
        (3, 224, 224),
        (3, 256, 256),
        (3, 299, 299),
        (3, 331, 331),
        (3, 448, 448),
        (3, 480, 480),
        (1, 224, 224),
    ]


def stand_in_for_torchvision() -> None:
    """pytorchcv imports one layer of torchvision for a single family; where torchvision cannot be imported that family is left
    out.
    """
    try:
        import torchvision.ops  # noqa: F401
    except (ImportError, RuntimeError):
        for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
            del sys.modules[name]
        package, operations = types.ModuleType("torchvision"), types.ModuleType("torchvision.ops")
        package.__spec__ = importlib.machinery.ModuleSpec("torchvision", None)
        operations.DeformConv2d = type("DeformConv2d", (nn.Module,), {})  # type: ignore[attr-defined]
        package.ops = operations  # type: ignore[attr-defined]
        sys.modules |= {"torchvision": package, "torchvision.ops": operations}


def build_pytorchcv(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    stand_in_for_torchvision()
    from pytorchcv.model_provider import get_model

    options = next((given for family, given in OPTIONS.items() if name.startswith(family)), {})
    model = get_model(name, pretrained=False, **options)
    model.eval()
    wanted = getattr(model, "in_size", None)
    shapes = sizes_for(name)
    if isinstance(wanted, (tuple, list)) and len(shapes) > 1 and len(shapes[0]) == 3:
        shapes = [*shapes, (shapes[0][0], *wanted)]
    last: Exception | None = None
    for shape in shapes:
        try:
            with torch.no_grad():
                model(torch.randn(2, *shape))
            return model, (torch.randn(1, *shape),)
        except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
            last = error
    for shape in shapes[:2]:  # networks of sequences with lengths
        with contextlib.suppress(RuntimeError, ValueError, AssertionError, IndexError, TypeError):
            with torch.no_grad():
                model(torch.randn(2, *shape), torch.full((2,), shape[-1]))
            return model, (torch.randn(1, *shape), torch.full((1,), shape[-1]))
    raise RuntimeError(f"no image size works: {last}")


def build_torchvision(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    import torchvision

    arguments = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, **arguments).eval()
    for size in (96, 128, 224, 299):
        with contextlib.suppress(RuntimeError, ValueError, AssertionError):
            with torch.no_grad():
                model(torch.randn(1, 3, size, size))
            return model, (torch.randn(1, 3, size, size),)
    raise RuntimeError("no image size works")


class Logits(nn.Module):
    """A transformers model with positional inputs and a plain tensor as output, without a cache."""

    def __init__(self, model: nn.Module, keys: tuple[str, ...], options: tuple[tuple[str, Any], ...] = ()) -> None:
        super().__init__()
        self.model, self.keys, self.options = model, keys, options

    def forward(self, *inputs: Tensor) -> Tensor:
        out = self.model(**dict(zip(self.keys, inputs, strict=True)), **dict(self.options), return_dict=False)
        return out[0] if isinstance(out, tuple) else out


def build_transformers(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    import transformers as t

    torch.manual_seed(0)
    small = {
        "vocab_size": 96,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 80,
        "max_position_embeddings": 64,
    }
    causal = (("use_cache", False),)
    tokens = (torch.randint(3, 90, (1, 9)),)
    picture = (torch.randn(1, 3, 32, 32),)
    table: dict[str, Callable[[], tuple[nn.Module, tuple[str, ...], tuple[Any, ...], tuple[tuple[str, Any], ...]]]] = {
        "bert": lambda: (t.BertForSequenceClassification(t.BertConfig(**small)), ("input_ids",), tokens, ()),
        "roberta": lambda: (t.RobertaForSequenceClassification(t.RobertaConfig(**small)), ("input_ids",), tokens, ()),
        "electra": lambda: (t.ElectraForSequenceClassification(t.ElectraConfig(**small, embedding_size=24)), ("input_ids",),
        tokens, ()),
        "albert": lambda: (t.AlbertForSequenceClassification(t.AlbertConfig(**small, embedding_size=24)), ("input_ids",),
        tokens, ()),
        "distilbert": lambda: (t.DistilBertForSequenceClassification(t.DistilBertConfig(vocab_size=96, dim=48, n_layers=2,
        n_heads=4, hidden_dim=80, max_position_embeddings=64)), ("input_ids",), tokens, ()),
        "gpt2": lambda: (t.GPT2LMHeadModel(t.GPT2Config(vocab_size=96, n_embd=48, n_layer=2, n_head=4, n_positions=64)),
        ("input_ids",), tokens, causal),
        "gpt_neox": lambda: (t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**small)), ("input_ids",), tokens, causal),
        "opt": lambda: (t.OPTForCausalLM(t.OPTConfig(vocab_size=96, hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
        ffn_dim=80, max_position_embeddings=64, word_embed_proj_dim=48)), ("input_ids",), tokens, causal),
        "llama": lambda: (t.LlamaForCausalLM(t.LlamaConfig(**small, num_key_value_heads=2)), ("input_ids",), tokens, causal),
        "mistral": lambda: (t.MistralForCausalLM(t.MistralConfig(**small, num_key_value_heads=2, sliding_window=None)),
        ("input_ids",), tokens, causal),
        "qwen2": lambda: (t.Qwen2ForCausalLM(t.Qwen2Config(**small, num_key_value_heads=2)), ("input_ids",), tokens, causal),
        "gemma": lambda: (t.GemmaForCausalLM(t.GemmaConfig(**small, num_key_value_heads=2, head_dim=12)), ("input_ids",),
        tokens, causal), "phi": lambda: (t.PhiForCausalLM(t.PhiConfig(**small)), ("input_ids",), tokens, causal),
        "falcon": lambda: (t.FalconForCausalLM(t.FalconConfig(vocab_size=96, hidden_size=48, num_hidden_layers=2,
        num_attention_heads=4)), ("input_ids",), tokens, causal),
        "mixtral": lambda: (t.MixtralForCausalLM(t.MixtralConfig(**small, num_key_value_heads=2, num_local_experts=3,
        sliding_window=None)), ("input_ids",), tokens, causal),
        "mamba": lambda: (t.MambaForCausalLM(t.MambaConfig(vocab_size=96, hidden_size=48, num_hidden_layers=2)), ("input_ids",),
        tokens, causal),
        "t5": lambda: (t.T5ForConditionalGeneration(t.T5Config(vocab_size=96, d_model=48, d_kv=12, d_ff=80, num_layers=2,
        num_heads=4)), ("input_ids", "decoder_input_ids"), (tokens[0], tokens[0][:, :5]), causal),
        "bart": lambda: (t.BartForConditionalGeneration(t.BartConfig(vocab_size=96, d_model=48, encoder_layers=2,
        decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=80, decoder_ffn_dim=80,
        max_position_embeddings=64)), ("input_ids", "decoder_input_ids"), (tokens[0], tokens[0][:, :5]), causal),
        "whisper": lambda: (t.WhisperForConditionalGeneration(t.WhisperConfig(vocab_size=96, d_model=48, encoder_layers=2,
        decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=80, decoder_ffn_dim=80,
        max_source_positions=16, max_target_positions=32, num_mel_bins=20, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1)), ("input_features", "decoder_input_ids"), (torch.randn(1, 20, 32), tokens[0][:, :5]),
        causal),
        "vit": lambda: (t.ViTForImageClassification(t.ViTConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=80, image_size=32, patch_size=8)), ("pixel_values",), picture, ()),
        "deit": lambda: (t.DeiTForImageClassification(t.DeiTConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=80, image_size=32, patch_size=8)), ("pixel_values",), picture, ()),
        "swin": lambda: (t.SwinForImageClassification(t.SwinConfig(image_size=32, patch_size=2, embed_dim=24, depths=[1, 1],
        num_heads=[2, 4], window_size=4)), ("pixel_values",), picture, ()),
        "convnext": lambda: (t.ConvNextForImageClassification(t.ConvNextConfig(hidden_sizes=[16, 24], depths=[1, 1],
        num_stages=2)), ("pixel_values",), picture, ()),
        "clip": lambda: (t.CLIPVisionModel(t.CLIPVisionConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=80, image_size=32, patch_size=8)), ("pixel_values",), picture, ()),
    }  # fmt: skip
    model, keys, inputs, options = table[name]()
    return Logits(model.eval(), keys, options).eval(), inputs


# --- timm: drawn, not picked --------------------------------------------------------------------------------------------

DRAWN = Path(__file__).with_name("timm.txt")
LARGEST = 60_000_000  # parameters; the rule was set before the draw


def draw(count: int = 40, seed: int = 25) -> list[str]:
    """The names of timm's list in an order of this seed, without those of more than LARGEST parameters; the first `count`."""
    import timm

    names = sorted(timm.list_models())
    random.Random(seed).shuffle(names)
    found: list[str] = []
    for name in names:
        if len(found) == count:
            break
        try:
            with torch.device("meta"):
                model = timm.create_model(name)
        except (RuntimeError, NotImplementedError):  # reads a number while it is built, which no tensor of "meta" has
            model = timm.create_model(name)
        if sum(p.numel() for p in model.parameters()) <= LARGEST:
            found.append(name)
    return found


def build_timm(name: str, least: int = 64) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """With pictures as small as it takes from `least` pixels on, or of the size that timm gives it."""
    import timm

    own = timm.data.resolve_model_data_config(timm.create_model(name))["input_size"]
    for size in (side for side in (64, 96, 112, 128, 192) if least <= side < own[-1]):
        for given in ({"img_size": size}, {}):
            with contextlib.suppress(Exception):  # whatever a network raises at a size that is not its own
                model = timm.create_model(name, **given).eval()
                with torch.no_grad():
                    model(torch.randn(2, 3, size, size))
                return model, (torch.randn(1, 3, size, size),)
    return timm.create_model(name).eval(), (torch.randn(1, *own),)


SUITES: dict[str, Callable[[str], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "pytorchcv": build_pytorchcv,
    "torchvision": build_torchvision,
    "transformers": build_transformers,
    "timm": build_timm,
}


_HEAVY = """
vgg senet wrn densenet nasnet pnas polynet inception airnex fishnet dpn irevnet 064 hrnet pyramidnet xception resnext dla102 160
restnest pspnet danet fcn8 deeplab icnet alphapose ntsnet ibppose alexnet zfnet
"""
HEAVY = _HEAVY.split()


def networks(only: str) -> Iterator[tuple[str, str]]:
    """All networks, the quick ones first, so that a run cut short has seen most families."""
    everything = [("transformers", n) for n in TRANSFORMERS] + [("pytorchcv", n) for n in PYTORCHCV]
    with contextlib.suppress(ImportError, RuntimeError, AttributeError):
        import torchvision

        everything += [("torchvision", name) for name in torchvision.models.list_models(torchvision.models)]
    if importlib.util.find_spec("timm") is not None and DRAWN.exists():
        everything += [("timm", name) for name in DRAWN.read_text().split()]

    seen: dict[tuple[str, str], int] = {}

    def weight(item: tuple[str, str]) -> tuple[int, int]:
        family = item[0], item[1][:6]
        seen[family] = seen.get(family, 0) + 1
        return (0 if "cifar10" in item[1] else 2 if any(word in item[1] for word in HEAVY) else 1), seen[family]

    for suite, name in sorted(dict.fromkeys(everything), key=weight):
        if only in f"{suite}/{name}":
            yield suite, name
