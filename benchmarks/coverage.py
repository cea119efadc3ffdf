"""Which networks can be traced, cut and verified: one row per network, each in its own process with a limit of time and memory.

    python benchmarks/coverage.py run [--only TEXT] [--minutes N]    measure what is missing in coverage.jsonl (resumable)
    python benchmarks/coverage.py table                              write coverage.md from coverage.jsonl
    python benchmarks/coverage.py one SUITE NAME                     one network, printed

Needs the packages pytorchcv and transformers; torchvision's families are measured where torchvision can be imported, torch-
pruning's columns
where torch-pruning can. Weights are random, batch norms get random statistics, and a random half of the units of every site
goes at once.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.machinery
import json
import os
import resource
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featherweight.network.calls import Inputs, tensors_of

HERE = Path(__file__).resolve().parent
ROWS, TABLE = HERE / "coverage.jsonl", HERE / "coverage.md"
SECONDS, GIGABYTES = {"one": 300, "peer": 120}, 10  # of processor time: the machine has other work

# ---------------------------------------------------------------- the networks

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


SUITES: dict[str, Callable[[str], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "pytorchcv": build_pytorchcv,
    "torchvision": build_torchvision,
    "transformers": build_transformers,
}


def randomise(model: nn.Module) -> None:
    """Statistics and affine parameters that are not the identity, and no branch that a zero initialisation hides."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.1)
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
        for parameter in model.parameters():
            if parameter.dim() <= 1 or not bool(parameter.any()):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


# ---------------------------------------------------------------- one row


def measure(suite: str, name: str) -> dict[str, Any]:
    from featherweight.structure import expressible, prune
    from featherweight.structure.capture import capture
    from featherweight.structure.errors import NotExact, NotExportable
    from featherweight.structure.graph import analyse

    torch.set_num_threads(1)
    torch.manual_seed(0)
    row: dict[str, Any] = {"suite": suite, "name": name}
    model, example = SUITES[suite](name)
    randomise(model)
    total = sum(p.numel() for p in model.parameters())
    row |= {"parameters": total, "input": [list(t.shape) for t in example if isinstance(t, Tensor)]}
    start = time.process_time()
    try:
        captured = capture(model, example)
    except NotExportable as error:
        return row | {"traced": False, "why": str(error)[:300]}
    row["export_seconds"] = round(time.process_time() - start, 2)
    start = time.process_time()
    graph = analyse(captured, model)
    row["analysis_seconds"] = round(time.process_time() - start, 2)
    row |= {
        "traced": True,
        "sites": len(graph.sites),
        "frozen": len(graph.frozen),
        "uncounted": graph.uncounted,
        "macs": graph.macs(),
    }
    reasons: dict[str, int] = {}
    for reason in graph.frozen.values():
        key = reason.split(" (")[0]
        reasons[key] = reasons.get(key, 0) + 1
    row["reasons"] = reasons
    accounted = set(graph.frozen) | {captured.tied.get(t, t) for s in graph.sites.values() for t, _ in s.parameters}
    row["unaccounted"] = sum(captured.tied.get(n, n) not in accounted and n not in accounted for n, _ in model.named_parameters())
    row["prunable"] = round(
        sum(
            np.prod(graph.tensors[t])
            for t in {t for s in graph.sites.values() for t, _ in s.parameters}
            if graph.kinds[t] == "parameter"
        )
        / total,
        4,
    )
    rng = np.random.default_rng(0)
    half = {n: np.sort(rng.permutation(s.size)[: max(1, s.size // 2)]).tolist() for n, s in graph.sites.items()}
    half = {n: keep for n, keep in half.items() if len(keep) < graph.sites[n].size}
    if not half:
        return row | {"graph": "frozen", "class": "frozen", **memory()}
    before = plain_outputs(model, captured.inputs)
    start = time.process_time()
    result = prune(model, graph, half, where="graph", any_batch=False)
    row["graph_seconds"] = round(time.process_time() - start, 2)
    row |= {"graph": result.where, "graph_error": result.check.error, "refused": result.refused}
    if result.where == "graph":
        row["graph_cut"] = round(1 - sum(p.numel() for p in result.model.parameters()) / total, 4)
        row["changed"] = apart(before, plain_outputs(result.model, captured.inputs))
    start = time.process_time()
    chosen = {n: half[n] for n in half if n in graph.sites}
    try:
        result = prune(model, graph, chosen, where="class")
    except NotExact as error:
        row["class_why"] = str(error)[:300]
        able = expressible(model, graph, chosen)
        row["class_sites"] = [len(able), len(chosen)]
        chosen = {n: half[n] for n in able}
        result = prune(model, graph, chosen, where="class")
    else:
        row["class_sites"] = [len(chosen), len(chosen)]
    row |= {
        "class": result.where,
        "class_error": result.check.error,
        "class_cut": round(1 - sum(p.numel() for p in model.parameters()) / total, 4),
    }
    row["sizes_predicted"] = sum(p.numel() for p in model.parameters()) == graph.parameters(
        {n: len(k) for n, k in chosen.items()}
    )
    row["class_seconds"] = round(time.process_time() - start, 2)
    return row | memory()


def plain_outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """In single precision: only to show that the cut was not vacuous."""
    with torch.no_grad():
        return floating(inputs.call(model.eval()))


def floating(output: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_of(output) if tensor.is_floating_point()]


def apart(wanted: list[Tensor], got: list[Tensor]) -> float:
    """Largest difference over the largest output; infinite where they cannot be compared."""
    from featherweight.structure.gate import difference
    from featherweight.structure.observe import Observed

    error = difference(Observed(outputs=wanted), Observed(outputs=got)).error
    return float("inf") if error is None else error


def memory() -> dict[str, int]:
    return {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def torch_pruning(suite: str, name: str) -> dict[str, Any]:
    """Torch-Pruning on the same network: half of all channels, output layer left alone; is what it cut what it should be?"""
    try:
        import torch_pruning as tp
    except ImportError:
        return {"tp": "not installed"}
    import copy

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, example = SUITES[suite](name)
    randomise(model)
    model.double()
    example = tuple(t.double() if t.is_floating_point() else t for t in example)
    total = sum(p.numel() for p in model.parameters())
    reference = copy.deepcopy(model)
    names = {module: path for path, module in model.named_modules()}
    left: dict[tuple[str, bool], np.ndarray] = {}
    with torch.no_grad():
        first = model(*example)
    tensors = [o for o in torch.utils._pytree.tree_leaves(first) if isinstance(o, Tensor)]
    classes = {int(t.shape[-1]) for t in tensors} | {int(t.shape[1]) for t in tensors if t.dim() > 1}
    ignored = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.Conv1d)) and m.weight.shape[0] in classes][
        -1:
    ]
    pruner = tp.pruner.BasePruner(
        model, example, importance=tp.importance.RandomImportance(), pruning_ratio=0.5, ignored_layers=ignored
    )
    checked = True
    for group in pruner.step(interactive=True):
        for dependency, indices in group:
            module = dependency.target.module
            path = names.get(module)
            if path is None:
                checked = False
                continue
            inward = "in_channels" in dependency.handler.__name__
            checked &= zero_like_tp(reference.get_submodule(path), inward, np.asarray(indices), left, path)
        group.prune()
    with torch.no_grad():
        result = model(*example)
        expected = reference(*example)
    cut = round(1 - sum(p.numel() for p in model.parameters()) / total, 4)
    error = apart(floating(expected), floating(result))
    return {
        "tp": "exact" if error <= 1e-9 else "runs, not checked" if not checked and error < float("inf") else "different",
        "tp_error": error,
        "tp_cut": cut,
    }


def zero_like_tp(
    module: nn.Module, inward: bool, indices: np.ndarray, left: dict[tuple[str, bool], np.ndarray], path: str
) -> bool:
    """Set to 0 in the reference what Torch-Pruning is about to remove; False for layers that this check does not know."""
    grouped = isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1
    if isinstance(module, nn.modules.conv._ConvNd):
        size = module.in_channels if inward else module.out_channels
    elif isinstance(module, nn.Linear):
        size = module.in_features if inward else module.out_features
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        size = module.num_features
    elif isinstance(module, nn.PReLU):
        return True
    else:
        return type(module).__module__.startswith("torch_pruning")
    alive = left.setdefault((path, inward), np.arange(size))
    gone = torch.from_numpy(alive[indices])
    left[path, inward] = np.delete(alive, indices)
    with torch.no_grad():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.affine:
                module.weight[gone] = 0
                module.bias[gone] = 0
        else:
            weight = module.weight
            dim = 1 if inward else 0
            if isinstance(module, nn.modules.conv._ConvTransposeNd):
                dim = 1 - dim
            if grouped and inward:
                per_in, per_out = module.in_channels // module.groups, module.out_channels // module.groups
                for i in gone.tolist():
                    weight[i // per_in * per_out : (i // per_in + 1) * per_out, i % per_in] = 0
            else:
                weight.index_fill_(dim, gone, 0)
            if not inward and module.bias is not None:
                module.bias[gone] = 0
    return True


# ---------------------------------------------------------------- many rows


def in_process(part: str, suite: str, name: str) -> dict[str, Any]:
    """Measure in a forked process with limits of time and memory, so that a crash costs a row and nothing else."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES << 30, GIGABYTES << 30))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS[part], SECONDS[part] + 10))
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 1)
            os.dup2(null.fileno(), 2)
        try:
            row = PARTS[part](suite, name)
        except BaseException as error:  # noqa: BLE001 - whatever happens is the row
            row = {"crash": f"{type(error).__name__}: {error}"[:300]}
        with os.fdopen(writer, "w") as pipe:
            pipe.write(json.dumps(row))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        return {"crash": f"more than {SECONDS[part]} s"}
    return dict(json.loads(answer)) if answer else {"crash": "killed (memory)"}


def warm_up() -> None:
    """Import once what every child needs."""
    from featherweight.structure import prune, trace

    torch.set_num_threads(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    prune(model, trace(model, (torch.randn(1, 3, 8, 8),)), "0", [0, 1])
    import transformers

    transformers.utils.is_torchvision_available()  # asked once, before there is a stand-in
    stand_in_for_torchvision()
    import pytorchcv.model_provider  # noqa: F401


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

    seen: dict[tuple[str, str], int] = {}

    def weight(item: tuple[str, str]) -> tuple[int, int]:
        family = item[0], item[1][:6]
        seen[family] = seen.get(family, 0) + 1
        return (0 if "cifar10" in item[1] else 2 if any(word in item[1] for word in HEAVY) else 1), seen[family]

    for suite, name in sorted(dict.fromkeys(everything), key=weight):
        if only in f"{suite}/{name}":
            yield suite, name


PARTS = {"one": measure, "peer": torch_pruning}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table", "one", "peer"])
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--only", default="")
    parser.add_argument("--part", choices=["one", "peer"], default="one", help="this library, or torch-pruning")
    parser.add_argument("--minutes", type=float, default=1e9)
    options = parser.parse_args()
    if options.what == "one":
        print(json.dumps(measure(*options.rest)))
    elif options.what == "peer":
        print(json.dumps(torch_pruning(*options.rest)))
    elif options.what == "run":
        done = {(r["suite"], r["name"], r["part"]) for r in rows()}
        warm_up()
        stop = time.monotonic() + 60 * options.minutes
        for suite, name in networks(options.only):
            if (suite, name, options.part) in done or time.monotonic() > stop:
                continue
            row = {"suite": suite, "name": name, "part": options.part} | in_process(options.part, suite, name)
            with ROWS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(
                suite,
                name,
                row.get("crash")
                or [row.get(k) for k in ("why", "graph", "graph_error", "class", "class_sites", "tp") if k in row],
                flush=True,
            )
    write_table()


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def write_table() -> None:
    """coverage.md: what was found, counted, then a line per network."""
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows():
        crash = {"peer_crash" if row["part"] == "peer" else "crash": row["crash"]} if "crash" in row else {}
        merged.setdefault((row["suite"], row["name"]), {}).update(
            {k: v for k, v in row.items() if k not in ("crash", "part")} | crash
        )
    table = [r for r in merged.values() if "traced" in r or "crash" in r]
    lines = [
        "# Coverage of network families",
        "",
        "Written by `python benchmarks/coverage.py table` from `coverage.jsonl`. A random half of the units of every site",
        "goes at once; `graph` is the exported module, `class` the user's own class in place. An error is the largest",
        "difference to the network whose removed slices are 0, over the largest output, in float64; up to 1e-9 counts as",
        "exact. `cut` is the share of the parameters that went, `changed` how much the output moved. torch-pruning: 1.6.1,",
        "pruning ratio 0.5, output layer ignored, checked in the same way. Images are as small as the network permits.",
        "Seconds are of processor time, one thread.",
        "",
        "| | networks | traced | exact as a graph | wrong | nothing to cut | exact in class, all sites | in part | crashes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for suite in SUITES:
        own = [r for r in table if r["suite"] == suite]
        if own:
            exact = [r for r in own if r.get("graph") == "graph" and (r.get("graph_error") or 0) <= 1e-9]
            numbers = [
                len(own),
                sum(bool(r.get("traced")) for r in own),
                len(exact),
                sum(r.get("graph") == "graph" and (r.get("graph_error") or 0) > 1e-9 for r in own),
                sum(r.get("graph") in ("frozen", "nothing") for r in own),
                sum(r.get("class") == "class" and r["class_sites"][0] == r["class_sites"][1] for r in own),
                sum(r.get("class") == "class" and r["class_sites"][0] < r["class_sites"][1] for r in own),
                sum("crash" in r for r in own),
            ]
            lines.append(f"| {suite} | " + " | ".join(map(str, numbers)) + " |")
    peers = [r for r in table if "tp" in r or "peer_crash" in r]
    if peers:
        words: dict[str, int] = {}
        for r in peers:
            word = "error" if "peer_crash" in r else r["tp"]
            words[word] = words.get(word, 0) + 1
        lines += [
            "",
            f"torch-pruning on {len(peers)} of these: " + ", ".join(f"{n} {word}" for word, n in sorted(words.items())) + ".",
        ]
        exact = [r for r in peers if r.get("tp") == "exact"]
        more = sorted(r["name"] for r in exact if r["tp_cut"] > max(r.get("class_cut", 0), r.get("graph_cut", 0)))
        lines += ["", f"Where torch-pruning is exact and cuts more: {', '.join(more) or 'nowhere'}."]
    head = [
        "network",
        "input",
        "parameters",
        "prunable",
        "sites",
        "graph",
        "cut",
        "changed",
        "class",
        "sites",
        "cut",
        "export",
        "analysis",
        "memory",
        "torch-pruning",
        "cut",
    ]
    lines += ["", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(line(r)) + " |" for r in sorted(table, key=lambda r: (r["suite"], r["name"]))]
    TABLE.write_text("\n".join(lines) + "\n")


def line(r: dict[str, Any]) -> list[str]:
    def number(key: str, form: str) -> str:
        return format(r[key], form) if r.get(key) is not None else ""

    shape = " ".join("x".join(map(str, s)) for s in r.get("input", []))
    peer = ("error: " + r["peer_crash"][:60]).replace("|", "/") if "peer_crash" in r else r.get("tp", "")
    if "crash" in r or not r.get("traced"):
        why = (r.get("crash") or r.get("why") or "")[:120].replace("|", "/")
        return [r["name"], shape, number("parameters", ","), "not traced: " + why, *[""] * 10, peer, number("tp_cut", ".0%")]
    graph = "exact" if (r.get("graph_error") or 0) <= 1e-9 else number("graph_error", ".0e")
    graph = graph if r.get("graph") == "graph" else "nothing cut"
    kind = {"class": "exact", "frozen": "nothing cut"}.get(r.get("class", ""), r.get("class", ""))
    return [
        r["name"],
        shape,
        number("parameters", ","),
        number("prunable", ".0%"),
        str(r.get("sites", "")),
        graph,
        number("graph_cut", ".0%"),
        number("changed", ".1g"),
        kind,
        "/".join(map(str, r.get("class_sites", []))),
        number("class_cut", ".0%"),
        number("export_seconds", ".1f") + " s",
        number("analysis_seconds", ".2f") + " s",
        number("peak_mb", "d") + " MB",
        peer,
        number("tp_cut", ".0%"),
    ]


if __name__ == "__main__":
    main()
