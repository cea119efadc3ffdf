"""The C of convolutions: windows laid out, and kernels over non-zeros and over all weights, from vectors of the compiler's.

`@` stands for the name of the network, as in `kernels`.
"""

from __future__ import annotations

from collections.abc import Mapping

from featherweight.ship.c.kernels import Entries

LANES = (16, 8, 4)  # of a vector, on the machines that the source may be compiled for
Tiles = frozenset[tuple[str, int]]  # (vector, how many of them) that a kernel works on at once
Reached = Mapping[int, Tiles]  # lanes -> what is used there


def _lay(vector: str, lanes: str) -> str:
    """One plane of a stride of 1, in vectors, masked where they leave the input: reads up to 16 floats beside it."""
    return f"""
static void @_lay_{vector}(const float *s, float *d, int h, int w, int rows, int ow, int lo, int hi, int y0) {{
  const @_{vector} zero = {{0}};
  for (int j = 0; j < ow; j += {lanes}) {{
    @_{vector}i inside;
    for (int i = 0; i < {lanes}; i++) inside[i] = j + i >= lo && j + i < hi ? -1 : 0;
    for (int r = 0; r < rows; r++) {{
      const int y = y0 + r;
      *(@_{vector} *)(d + r * ow + j) = y < 0 || y >= h || j >= hi || j + {lanes} <= lo
        ? zero : (@_{vector})(inside & *(const @_{vector}i *)(s + y * w + j));
    }}
  }}
}}
"""


WINDOWS = """
/* The windows of a convolution: plane i is what one place of its kernel sees, zero outside of the input, which has 16 floats of
   the arena before and behind it. */
static void @_stage(const float *x, float *d, const int32_t *planes, int count, int h, int w, int rows, int ow, int sy, int sx,
                    int dy, int dx, int py, int px, int kh, int kw, int size) {
"""
EACH = """  for (int i = 0; i < count; i++, d += size) {
    const int id = planes ? planes[i] : i, x0 = id % kw * dx - px, rest = id / kw, y0 = rest % kh * dy - py;
    const float *s = x + rest / kh * (h * w);
    int lo = x0 < 0 ? (sx - 1 - x0) / sx : 0, hi = x0 < w ? (w - 1 - x0) / sx + 1 : 0;
    hi = hi > ow ? ow : hi;
    lo = lo > hi ? hi : lo;
"""
ALL_STRIDES = """    for (int r = 0; r < rows; r++) {
      const int y = y0 + r * sy;
      float *o = d + r * ow;
      if (y < 0 || y >= h) {
        for (int j = 0; j < ow; j++) o[j] = 0.0f;
        continue;
      }
      const float *t = s + y * w + x0;
      for (int j = 0; j < lo; j++) o[j] = 0.0f;
      int j = lo;
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
      if (sx == 2)
        for (; j + 4 <= hi; j += 4)
          *(@_q *)(o + j) = (@_q)__builtin_shufflevector(*(const @_q *)(t + 2 * j), *(const @_q *)(t + 2 * j + 4), 0, 2, 4, 6);
#endif
#endif
      for (; j < hi; j++) o[j] = t[j * sx];
      for (j = hi; j < ow; j++) o[j] = 0.0f;
    }
"""


def by_lanes(texts: Mapping[int, str]) -> str:
    """Text for each count of lanes; the preprocessor takes one."""
    if len(set(texts.values())) == 1:
        return texts[LANES[0]]
    said = [f"#{'el' if i else ''}if @_LANES == {lanes}\n{texts[lanes]}\n" for i, lanes in enumerate(LANES)]
    return "".join([*said, "#endif"])


def where_reached(reached: Reached, tile: tuple[str, int], text: str) -> str:
    """A function that is used by some counts of lanes."""
    lanes = [lanes for lanes in LANES if tile in reached[lanes]]
    if not lanes or len(lanes) == len(LANES):
        return text if lanes else ""
    return f"#if {' || '.join(f'@_LANES == {one}' for one in lanes)}\n{text}#endif\n"


def laid(ow: int) -> Reached:
    """Which vectors lay out rows of `ow`, a multiple of 4."""
    return {lanes: frozenset([("v" if ow % lanes == 0 else "h" if ow % 8 == 0 else "q", 1)]) for lanes in LANES}


def stage(reached: Reached, general: bool) -> str:
    """The windows of a convolution. `reached`: the vectors that lay out those of a stride of 1; `general`: all others, too."""
    widths = {"v": "@_LANES", "h": "8", "q": "4"}
    lays = [where_reached(reached, (vector, 1), _lay(vector, lanes)) for vector, lanes in widths.items()]

    def call(lanes: int) -> str:
        left, lines = sorted((vector for vector, _ in reached[lanes]), key="vhq".index), []
        for number, vector in enumerate(left):
            test = "" if number + 1 == len(left) else f"if (ow % {widths[vector]} == 0) "
            lines.append(f"      {'else ' if number else ''}{test}@_lay_{vector}(s + x0, d, h, w, rows, ow, lo, hi, y0);")
        return "\n".join(lines)

    fast = by_lanes({lanes: call(lanes) for lanes in LANES}) + "\n" if any(reached.values()) else ""
    if general and fast:
        fast = f"    if (sx == 1 && sy == 1 && ow % 4 == 0 && x0 >= -16 && ow - hi <= 16) {{\n{fast}      continue;\n    }}\n"
    unused = "" if general else "  (void)sy;\n"
    return "".join(lays) + WINDOWS + unused + EACH + fast + (ALL_STRIDES if general else "") + "  }\n}\n"


CHAINS = {8: 1, 4: 2, 2: 4, 1: 4}  # vectors of a tile -> sums kept apart, so that no addition waits for the one before


def sparse(tile: int, vector: str, kind: str) -> str:
    """One tile of `tile` vectors, all outputs: sums over (value, place) of the non-zeros. `counts`: of each, and which output it
    is; those of one count stand together, so that the processor foresees where a loop ends. `from`, `to`: to the next vector."""
    chains, entries = CHAINS[tile], Entries(kind)
    each = range(tile)

    def add(chain: int) -> str:
        declared, value, place = entries.read(chain, f"i + {chain}" if chain else "i")
        lines = [f"      {declared} const float w{chain} = {value}, *p{chain} = s + {place};"]
        lines += [f"      a{chain}_{t} += w{chain} * *(const @_{vector} *)(p{chain} + {t} * from);" for t in each]
        return "\n".join(lines)

    first = [f"a{c}_{t} = zero{'' if c else ' + bias[k]'}" for c in range(chains) for t in each]
    text = [f"static void @_sparse_{vector}{tile}_{kind}(const float *s, ptrdiff_t from, float *o, ptrdiff_t to, int stride,",
            f"    int outputs, {entries.parameters}, const float *bias, int relu) {{",
            f"  const @_{vector} zero = {{0}};",
            f"  {entries.first}",
            "  for (int k = 0; k < outputs; k++) {",
            "    const int n = (int)counts[2 * k];",
            "    float *y = o + (ptrdiff_t)counts[2 * k + 1] * stride;",
            f"    @_{vector} {', '.join(first)};",
            "    int i = 0;"]  # fmt: skip
    if chains > 1:
        text += [f"    for (; i + {chains} <= n; i += {chains}) {{", *(add(c) for c in range(chains)), "    }"]
    text += ["    for (; i < n; i++) {", add(0), "    }"]
    for t in each:
        for c in range(1, chains):
            text.append(f"    a0_{t} += a{c}_{t};")
        text.append(f"    if (relu) a0_{t} = (@_{vector})(~(a0_{t} < zero) & (@_{vector}i)a0_{t});")
        text.append(f"    *(@_{vector} *)(y + {t} * to) = a0_{t};")
    return "\n".join([*text, f"    {entries.next}", "  }", "}", ""])


def sparse_tiles(kind: str, reached: Reached) -> str:
    """What both convolutions below share, of which only what some layer reaches is written."""
    tiles = [(vector, tile) for vector in "vhq" for tile in CHAINS]
    return "\n".join(where_reached(reached, one, sparse(one[1], one[0], kind)) for one in tiles)


def row_tiles(width: int, rows: int) -> Reached:
    """What `sparse_rows` works on: the last rows by ever smaller tiles."""
    tiles, left = set(), rows
    for tile in CHAINS:
        if left >= tile:
            tiles.add(tile)
            left %= tile
    vectors = {lanes: "v" if width >= lanes else "h" if width >= 8 else "q" for lanes in LANES}
    return {lanes: frozenset((vector, tile) for tile in tiles) for lanes, vector in vectors.items()}


def sparse_rows(kind: str, reached: Reached) -> str:
    """Convolution over non-zeros, `outputs` planes, whose windows are rows of the input itself."""
    entries = Entries(kind)
    given = f"size, outputs, {entries.arguments}, bias, relu);"

    def columns(vector: str, tiles: Tiles) -> str:
        lanes = {"v": "@_LANES", "h": "8", "q": "4"}[vector]
        inner = "\n".join(
            f"    for (; rows - r >= {tile}; r += {tile}) "
            f"@_sparse_{vector}{tile}_{kind}(s + r * line + c, line, o + r * width + c, width, {given}"
            for tile in CHAINS
            if (vector, tile) in tiles
        )
        return f"""  for (int c = 0; c < width; c += {lanes}) {{
    int r = 0;
    c = c > width - {lanes} ? width - {lanes} : c; /* the last column once more, moved back to end where the row ends */
{inner}
  }}"""

    def widths(lanes: int) -> str:
        tests = {"v": "if (width >= @_LANES)", "h": "if (width >= 8)", "q": ""}
        used = [vector for vector in tests if any(one == vector for one, _ in reached[lanes])]
        parts = [f"{'' if len(used) == 1 else tests[v]} {{\n{columns(v, reached[lanes])}\n  }}" for v in used[:-1]]
        return "  " + " else ".join([*parts, f"{{\n{columns(used[-1], reached[lanes])}\n  }}"])

    return f"""
/* Rows `line` apart, at least 4 wide. */
static void @_rows_{kind}(const float *s, int line, float *o, int rows, int width, int outputs, {entries.parameters},
                          const float *bias, int relu) {{
  const int size = rows * width;
{by_lanes({lanes: widths(lanes) for lanes in LANES})}
}}
"""


def flat_tiles(size: int, tile: int) -> Reached:
    """What `sparse_flat` works on; ("s", 1) stands for single entries."""
    found = {}
    for lanes in LANES:
        tiles, v = set(), 0
        while size - v >= lanes:
            most = (size - v) // lanes
            one = next(t for t in CHAINS if t <= most and t <= max(tile, 2))
            tiles.add(("v", one))
            v += one * lanes
        if 0 < v < size:
            tiles.add(("v", 1))
        elif size - v >= 8:
            tiles.add(("q", 2))
        if v == 0 and (4 <= size < 8 or size > 8):
            tiles.add(("q", 1))
        if size < 4:
            tiles.add(("s", 1))
        found[lanes] = frozenset(tiles)
    return found


def sparse_flat(kind: str, reached: Reached) -> str:
    """Convolution over non-zeros, `outputs` planes of `size` contiguous entries."""
    entries = Entries(kind)
    given = f"size, outputs, {entries.arguments}, bias, relu);"
    flat = f"(s + v, @_LANES, o + v, @_LANES, {given}"
    short = f"(s + v, 4, o + v, 4, {given}"
    declared, value, place = entries.read(0, "i")

    def whole(tiles: Tiles) -> str:
        own = [tile for tile in CHAINS if ("v", tile) in tiles]
        tests = {8: "if (tile >= 8 && left >= 8) ", 4: "if (tile >= 4 && left >= 4) ", 2: "if (left >= 2) ", 1: ""}
        lines = [
            f"    {'else ' if i else ''}{'' if tile == own[-1] else tests[tile]}"
            f"{{ @_sparse_v{tile}_{kind}{flat} v += {tile} * @_LANES; }}"
            for i, tile in enumerate(own)
        ]
        before = ["  while (size - v >= @_LANES) {", "    const int left = (size - v) / @_LANES;", "    (void)left;"]
        text = "\n".join([*before, *lines, "  }"])
        if ("v", 1) in tiles:
            text += f"""
  if (v < size && v > 0) {{ /* the last vector once more, moved back to end where the plane ends */
    v = size - @_LANES;
    @_sparse_v1_{kind}{flat}
    return;
  }}"""
        return text

    def narrow(tiles: Tiles) -> str:
        two, one = (f"{{ @_sparse_q{count}_{kind}{short} v += {4 * count}; }}" for count in (2, 1))
        each = [text for tile, text in ((2, two), (1, one)) if ("q", tile) in tiles]
        text = "  while (size - v >= 4) " + (f"if (size - v >= 8) {each[0]} else {each[1]}" if len(each) > 1 else each[0])
        if ("q", 1) in tiles:
            text += f"""
  if (v < size && v > 0) {{
    v = size - 4;
    @_sparse_q1_{kind}{short}
    return;
  }}"""
        return text

    single = f"""  for (; v < size; v++) {{
    int i = 0;
    for (int k = 0; k < outputs; k++) {{
      float sum = bias[k];
      for (const int end = i + (int)counts[2 * k]; i < end; i++) {{ {declared} sum += {value} * s[(uint32_t)v + {place}]; }}
      o[v + (int)counts[2 * k + 1] * size] = relu && sum < 0.0f ? 0.0f : sum;
    }}
  }}"""

    def driver(lanes: int) -> str:
        tiles = reached[lanes]
        parts = [whole(tiles)] if any(one == "v" for one, _ in tiles) else []
        parts += [narrow(tiles)] if any(one == "q" for one, _ in tiles) else []
        return "\n".join([*parts, *([f"  {entries.first}\n{single}"] if ("s", 1) in tiles else [])])

    return f"""
static void @_conv_{kind}(const float *s, float *o, int size, int outputs, {entries.parameters},
                          const float *bias, int relu, int tile) {{
  int v = 0;
  (void)tile;
{by_lanes({lanes: driver(lanes) for lanes in LANES})}
}}
"""


def sparse_planes(kind: str) -> str:
    """The same, an output after the other: for outputs that no cache holds, which are written once from end to end."""
    entries = Entries(kind)
    return f"""
static void @_planes_{kind}(const float *s, float *o, int size, int outputs, {entries.parameters},
                            const float *bias, int relu, int tile) {{
  for (int k = 0; k < outputs; k++, counts += 2, bias++) {{
    const uint32_t n = counts[0];
    @_conv_{kind}(s, o, size, 1, {entries.arguments}, bias, relu, tile);
    {entries.next}
  }}
}}
"""


def dense(tile: int, vector: str) -> str:
    """One tile of `tile` vectors, four outputs at a time, over all weights: w holds those of the four outputs together."""
    lanes = "@_LANES" if vector == "v" else "4"
    each = range(tile)
    read = [f"x{t} = *(const @_{vector} *)(p + {t} * {lanes})" for t in each]
    text = [f"static void @_dense_{vector}{tile}(const float *s, float *o, int stride, int outputs, const int32_t *place,",
            "    int count, const float *w, const float *bias, int relu) {",
            f"  const @_{vector} zero = {{0}};",
            "  for (int k = 0; k < outputs; k += 4) {",
            f"    @_{vector} " + ", ".join(f"a{j}_{t} = zero + bias[k + {j}]" for j in range(4) for t in each) + ";",
            "    for (int i = 0; i < count; i++, w += 4) {",
            "      const float *p = s + place[i];",
            f"      const @_{vector} {', '.join(read)};"]  # fmt: skip
    text += [f"      a{j}_{t} += w[{j}] * x{t};" for j in range(4) for t in each]
    text += ["    }"]
    for j in range(4):
        text += [f"    if (relu) a{j}_{t} = (@_{vector})(~(a{j}_{t} < zero) & (@_{vector}i)a{j}_{t});" for t in each]
        text.append(f"    if (k + {j} < outputs) {{")
        text += [f"      *(@_{vector} *)(o + {j} * stride + {t} * {lanes}) = a{j}_{t};" for t in each]
        text.append("    }")
    return "\n".join([*text, "    o += 4 * stride;", "  }", "}", ""])


def dense_all() -> str:
    call = "(s + v, o + v, size, outputs, place, count, w, bias, relu);"
    return "\n".join([dense(4, "v"), dense(2, "v"), dense(1, "v"), dense(1, "q"), f"""
static void @_conv_all(const float *s, float *o, int size, int outputs, const int32_t *place, int count, const float *w,
                       const float *bias, int relu) {{
  int v = 0;
  while (size - v >= @_LANES) {{
    const int left = (size - v) / @_LANES;
    if (@_LANES == 16 && left >= 4) {{ @_dense_v4{call} v += 4 * @_LANES; }}
    else if (left >= 2) {{ @_dense_v2{call} v += 2 * @_LANES; }}
    else {{ @_dense_v1{call} v += @_LANES; }}
  }}
  if (v < size && v > 0) {{
    v = size - @_LANES;
    @_dense_v1{call}
    return;
  }}
  for (; size - v >= 4; v += 4) @_dense_q1{call}
  if (v < size && v > 0) {{
    v = size - 4;
    @_dense_q1{call}
    return;
  }}
  for (; v < size; v++)
    for (int k = 0; k < outputs; k++) {{
      float sum = bias[k];
      for (int i = 0; i < count; i++) sum += w[(k / 4 * count + i) * 4 + k % 4] * s[v + place[i]];
      o[v + k * size] = relu && sum < 0.0f ? 0.0f : sum;
    }}
}}
"""])  # fmt: skip
