"""Pictures as inline SVG: plots and sequence logos; and PNG as a data URI. Colours are classes of the page's style."""

from __future__ import annotations

import base64
import html
import math
import struct
import zlib
from collections.abc import Sequence

import numpy as np

Array = np.ndarray
WIDTH, HEIGHT, LEFT, BELOW = 480, 300, 58, 44

# Letters in a box of 1 x 1, y downwards: shapes and not text, so that every machine draws them alike.
GLYPHS = {
    "A": "M0 1L.39 0H.61L1 1H.79L.7 .76H.3L.21 1ZM.36 .59H.64L.5 .2Z",
    "C": "M.98 .66A.5 .5 0 1 1 .98 .34L.77 .4A.29 .34 0 1 0 .77 .6Z",
    "G": "M.98 .34A.5 .5 0 1 0 .98 .68V.47H.55V.61H.77V.64A.29 .34 0 1 1 .77 .4Z",
    "T": "M0 0H1V.17H.61V1H.39V.17H0Z",
}


def escaped(text: object) -> str:
    return html.escape(str(text), quote=True)


def symbols() -> str:
    """The letters, once a page; `<use href="#base-A">` draws one."""
    shapes = "".join(f'<symbol id="base-{x}" viewBox="0 0 1 1" width="1" height="1" preserveAspectRatio="none">'
                     f'<path d="{path}" fill-rule="evenodd"/></symbol>' for x, path in GLYPHS.items())  # fmt: skip
    return f'<svg width="0" height="0" aria-hidden="true" style="position:absolute">{shapes}</svg>'


def drawing(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img">'
    return f"{head}<title>{escaped(label)}</title>{''.join(parts)}</svg>"


def text(x: float, y: float, said: object, anchor: str = "start", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{escaped(said)}</text>'


# --- axes ----------------------------------------------------------------------------------------------------------------


class Plane:
    """A plot with numbered axes: `x` and `y` put data where they belong. `logarithmic`: the axis of x."""

    def __init__(
        self, xs: tuple[float, float], ys: tuple[float, float], x_name: str, y_name: str, logarithmic: bool = False
    ) -> None:
        self.logarithmic = logarithmic
        self.xs = _spread(*((math.log10(v) for v in xs) if logarithmic else xs))
        self.ys = _spread(*ys)
        self.parts = [f'<rect x="{LEFT}" y="8" width="{WIDTH - LEFT - 10}" height="{HEIGHT - BELOW - 8}" class="axis"/>']
        for value in ticks(*self.ys):
            at = self.y(value)
            self.parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{at:.1f}" y2="{at:.1f}" class="grid"/>')
            self.parts.append(text(LEFT - 6, at + 4, number(value), "end"))
        for value in powers(*self.xs) if logarithmic else ticks(*self.xs):
            at = self.x(value)
            self.parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="8" y2="{HEIGHT - BELOW}" class="grid"/>')
            self.parts.append(text(at, HEIGHT - BELOW + 16, number(value), "middle"))
        self.parts.append(text((LEFT + WIDTH - 10) / 2, HEIGHT - 6, x_name, "middle"))
        middle = (HEIGHT - BELOW + 8) / 2
        self.parts.append(text(12, middle, y_name, "middle", f' transform="rotate(-90 12 {middle:.1f})"'))

    def x(self, value: float) -> float:
        place = math.log10(value) if self.logarithmic else value
        return LEFT + (place - self.xs[0]) / (self.xs[1] - self.xs[0]) * (WIDTH - LEFT - 10)

    def y(self, value: float) -> float:
        return 8 + (self.ys[1] - value) / (self.ys[1] - self.ys[0]) * (HEIGHT - BELOW - 8)

    def point(self, x: float, y: float, kind: str, shape: str = "circle", title: str = "", size: float = 3.2) -> None:
        """shape: circle, cross or square, so that colour is never all that tells."""
        at, of = self.x(x), self.y(y)
        said = f"<title>{escaped(title)}</title>" if title else ""
        if shape == "circle":
            self.parts.append(f'<circle cx="{at:.1f}" cy="{of:.1f}" r="{size}" class="{kind} hollow">{said}</circle>')
        elif shape == "cross":
            path = f"M{at - size:.1f} {of - size:.1f}l{2 * size} {2 * size}m0 {-2 * size}l{-2 * size} {2 * size}"
            self.parts.append(f'<path d="{path}" class="{kind} hollow">{said}</path>')
        else:
            box = f'x="{at - size:.1f}" y="{of - size:.1f}" width="{2 * size}" height="{2 * size}"'
            self.parts.append(f'<rect {box} class="{kind}">{said}</rect>')

    def line(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{path}" class="{kind}"/>')

    def drawn(self, label: str) -> str:
        return drawing(WIDTH, HEIGHT, label, self.parts)


def _spread(low: float, high: float) -> tuple[float, float]:
    """With room at both ends, and never empty."""
    room = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from low to high."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [step * place for place in range(first, math.floor(high / step + 1e-9) + 1)]


def powers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between 10^low and 10^high; only the powers where that would be many."""
    some = (1,) if high - low > 2.5 else (1, 2, 5)
    found = [factor * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for factor in some]
    inside = [value for value in found if low <= math.log10(value) <= high]
    return inside if len(inside) > 2 else [value for value in ticks(10**low, 10**high, 4) if value > 0]


def number(value: float) -> str:
    """Short: 1.2 M, 34 k, 0.05."""
    if value == 0:
        return "0"
    for least, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= least:
            return f"{value / least:.4g}{unit}"
    return f"{value:.4g}"


# --- plots ---------------------------------------------------------------------------------------------------------------


def histogram(series: Sequence[tuple[str, str, Array]], low: float, high: float, bins: int, x_name: str, label: str) -> str:
    """(name, class, values) each as an outline; shares of the examples. The first is filled."""
    counted = [(name, kind, np.histogram(np.clip(values, low, high), bins, (low, high))[0] / len(values))
               for name, kind, values in series]  # fmt: skip
    plane = Plane((low, high), (0.0, max(float(shares.max()) for *_, shares in counted)), x_name, "share of the examples")
    for place, (name, kind, shares) in enumerate(counted):
        step = (high - low) / bins
        points = [(low, 0.0)]
        for index, share in enumerate(shares):
            points += [(low + index * step, float(share)), (low + (index + 1) * step, float(share))]
        points.append((high, 0.0))
        if place == 0:
            path = " ".join(f"{plane.x(x):.1f},{plane.y(y):.1f}" for x, y in points)
            plane.parts.append(f'<polygon points="{path}" class="{kind}" fill-opacity=".25" stroke="none"/>')
        plane.line(points, kind)
        y = 24 + 16 * place
        dash = ("", ' stroke-dasharray="6 3"', ' stroke-dasharray="2 3"')[place % 3]
        plane.parts[-1] = plane.parts[-1].replace("/>", f"{dash}/>")
        plane.parts.append(f'<line x1="{LEFT + 10}" x2="{LEFT + 32}" y1="{y}" y2="{y}" class="{kind} hollow"{dash}/>')
        plane.parts.append(text(LEFT + 38, y + 4, name))
    return plane.drawn(label)


def logo(matrix: Array, label: str, step: float = 18, height: float = 90) -> str:
    """A sequence logo of probabilities (length, 4): letters as high as the information that they carry, two bits at most."""
    safe = np.clip(matrix, 1e-12, 1)
    bits = np.maximum(0, 2 + (safe * np.log2(safe)).sum(axis=1))
    parts = [text(22, 12, "2", "end"), text(22, height, "0", "end"), text(22, height / 2 + 4, "bits", "end")]
    for position, row in enumerate(matrix):
        y = height
        for letter in np.argsort(row, kind="stable"):
            high = float(row[letter] * bits[position] / 2 * height)
            if high < 0.5:
                continue
            y -= high
            name = "ACGT"[letter]
            move = f"translate({28 + step * position:.1f} {y:.1f}) scale({0.94 * step:.2f} {high:.2f})"
            parts.append(f'<use href="#base-{name}" class="{name}" transform="{move}"/>')
    parts.append(f'<line x1="26" x2="{28 + step * len(matrix):g}" y1="{height + 1:g}" y2="{height + 1:g}" class="axis"/>')
    return drawing(30 + step * len(matrix), height + 6, label, parts)


def png(pixels: Array) -> str:
    """uint8 (height, width) or (height, width, 3) -> a data URI."""
    kind = 2 if pixels.ndim == 3 else 0
    rows = pixels.reshape(len(pixels), -1)
    raw = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(rows))

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, kind, 0, 0, 0)
    whole = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(whole).decode()
