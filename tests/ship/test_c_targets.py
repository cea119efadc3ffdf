"""C on other machines: one source is right with vectors of any width and with none, and its bytes are read off an object."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import pytest
import torch
from torch import nn

from featherweight.errors import InputError
from featherweight.ship import c
from featherweight.ship.c import build, targets
from featherweight.ship.runtimes import compare

HAS_ZIG = importlib.util.find_spec("ziglang") is not None or targets.shutil.which("zig") is not None
needs_zig = pytest.mark.skipif(not HAS_ZIG, reason='zig is not installed: pip install "featherweight[c]"')
EXAMPLE = (torch.zeros(1, 3, 12, 16),)
SEVERAL = [(torch.randn(2, 3, 12, 16),)]


def network() -> nn.Module:
    """Rows and windows, strides, few shared values, pools, and widths that no vector divides; half of its weights are zero."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 7, 3, 2, 1), nn.ReLU(), nn.Conv2d(7, 5, 1)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(60, 33), nn.ReLU(), nn.Linear(33, 4))
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data *= torch.rand_like(weight) < 0.3
    model[3].weight.data = (model[3].weight.data * 16).round() / 16
    return model.eval()


def flags() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().split() if file.exists() else []


@pytest.mark.parametrize(
    ("options", "needs"),
    [(("-march=x86-64",), "sse2"), (("-march=x86-64-v3",), "avx2"), (("-march=x86-64-v4",), "avx512f")],
    ids=["4 lanes", "8 lanes", "16 lanes"],
)
def test_one_source_is_right_with_vectors_of_any_width(options: tuple[str, ...], needs: str) -> None:
    if needs not in flags():
        pytest.skip(f"this processor has no {needs}")
    try:
        made = c.written(network(), EXAMPLE)[1]
        run = build.Loaded(made, ("-O1", *options, "-Wall", "-Wextra", "-Wconversion", "-Werror"))
    except c.CompilerMissing as missing:
        pytest.skip(str(missing))
    assert compare(network(), run, SEVERAL)[1] < 1e-5


@needs_zig
@pytest.mark.parametrize("target", ["aarch64-linux-musl:cortex_a53", "cortex-m4", "cortex-m33"])
def test_what_runs_on_arm_computes_the_same(target: str) -> None:
    """NEON, and Thumb-2 with a unit for floats and no vectors: what runs is that code, under qemu's user mode."""
    if c.Target.of(target).emulator() is None:
        pytest.skip(f"no emulator for {target}: install qemu-user")
    made = c.written(network(), EXAMPLE)[1]
    assert compare(network(), c.Emulated(made, target), SEVERAL)[1] < 1e-5


@needs_zig
def test_flash_and_ram_are_those_of_the_target(tmp_path: Path) -> None:
    found = {
        target: c.export_c(network(), EXAMPLE, tmp_path / "net.c", target=target, check=False)
        for target in ("x86_64-linux-musl:x86_64_v4", "cortex-m4", "cortex-m0plus")
    }
    assert len({one.flash for one in found.values()}) == 3
    assert all(one.tables < (one.flash or 0) < one.tables + 12_000 and one.ram >= 4 * 100 for one in found.values())
    assert found["cortex-m4"].target == "cortex-m4" and found["cortex-m4"].relative is None
    with pytest.raises(c.CError, match="refuses"):
        c.export_c(network(), EXAMPLE, tmp_path / "net.c", target="pdp11-unix", check=False)


def test_targets_are_named_as_zig_names_them() -> None:
    said = {
        "cortex-m0+": ("thumb-linux-musleabi", "cortex_m0plus"),
        "cortex-m4": ("thumb-linux-musleabihf", "cortex_m4+vfp4d16sp"),
        "aarch64-linux-musl": ("aarch64-linux-musl", ""),
        "x86_64-linux-musl:x86-64-v3": ("x86_64-linux-musl", "x86_64_v3"),
    }
    for text, (triple, cpu) in said.items():
        assert c.Target.of(text) == c.Target(triple, cpu)
    for text in ("", "-o/tmp/x", "a b", "arm;rm", "cortex-m4 -o x", "arm:"):
        with pytest.raises(InputError, match="TRIPLE"):
            c.Target.of(text)


def test_without_zig_what_to_install_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets.shutil, "which", lambda name: None)
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(c.CompilerMissing, match=r"featherweight\[c\]"):
        c.export_c(network(), EXAMPLE, tmp_path / "net.c", target="cortex-m4", check=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("wide", "order"), [(True, "<"), (False, "<"), (False, ">")], ids=["64", "32", "32, big"])
def test_sections_of_an_object_are_read(wide: bool, order: str) -> None:
    """Code and constants are flash; data is both; zeros are RAM alone; debug sections are nothing."""
    kinds = [(1, 6, 100), (1, 2, 40), (1, 3, 8), (8, 3, 16), (1, 0, 999)]  # kind, flags, bytes
    form = f"{order}{'IIQQQQIIQQ' if wide else 'IIIIIIIIII'}"
    table = b"".join(struct.pack(form, 0, kind, flags, 0, 0, size, 0, 0, 0, 0) for kind, flags, size in kinds)
    head = bytearray(64)
    head[:6] = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2])
    struct.pack_into(f"{order}{'Q' if wide else 'I'}", head, 40 if wide else 32, 64)
    struct.pack_into(f"{order}HH", head, 58 if wide else 46, struct.calcsize(form), len(kinds))
    assert build.sections(bytes(head) + table) == (148, 24)
    assert build.sections(b"MZ" + bytes(8)) == (10, 0)
