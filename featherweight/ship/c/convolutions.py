"""The C of convolutions: windows laid out, and kernels over non-zeros and over all weights, from vectors of the compiler's.

`@` stands for the name of the network, as in `kernels`.
"""

from __future__ import annotations


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


STAGE = (
    _lay("v", "@_LANES")
    + _lay("h", "8")
    + _lay("q", "4")
    + """
/* The windows of a convolution: plane i is what one place of its kernel sees, zero outside of the input, which has 16 floats of
   the arena before and behind it. */
static void @_stage(const float *x, float *d, const int32_t *planes, int count, int h, int w, int rows, int ow, int sy, int sx,
                    int dy, int dx, int py, int px, int kh, int kw, int size) {
  for (int i = 0; i < count; i++, d += size) {
    const int id = planes ? planes[i] : i, x0 = id % kw * dx - px, rest = id / kw, y0 = rest % kh * dy - py;
    const float *s = x + rest / kh * (h * w);
    int lo = x0 < 0 ? (sx - 1 - x0) / sx : 0, hi = x0 < w ? (w - 1 - x0) / sx + 1 : 0;
    hi = hi > ow ? ow : hi;
    lo = lo > hi ? hi : lo;
    if (sx == 1 && sy == 1 && ow % 4 == 0 && x0 >= -16 && ow - hi <= 16) {
      if (ow % @_LANES == 0) @_lay_v(s + x0, d, h, w, rows, ow, lo, hi, y0);
      else if (ow % 8 == 0) @_lay_h(s + x0, d, h, w, rows, ow, lo, hi, y0);
      else @_lay_q(s + x0, d, h, w, rows, ow, lo, hi, y0);
      continue;
    }
    for (int r = 0; r < rows; r++) {
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
  }
}
"""
)

CHAINS = {8: 1, 4: 2, 2: 4, 1: 4}  # vectors of a tile -> sums kept apart, so that no addition waits for the one before


def sparse(tile: int, vector: str, kind: str) -> str:
    """One tile of `tile` vectors, all outputs: sums over (value, place) of the non-zeros. `counts`: of each, and which output it
    is; those of one count stand together, so that the processor foresees where a loop ends. `from`, `to`: to the next vector."""
    chains = CHAINS[tile]
    each = range(tile)

    def add(chain: int) -> str:
        at = f"i + {chain}" if chain else "i"
        lines = [f"      const float w{chain} = w[{at}], *p{chain} = s + place[{at}];"]
        lines += [f"      a{chain}_{t} += w{chain} * *(const @_{vector} *)(p{chain} + {t} * from);" for t in each]
        return "\n".join(lines)

    first = [f"a{c}_{t} = zero{'' if c else ' + bias[k]'}" for c in range(chains) for t in each]
    text = [f"static void @_sparse_{vector}{tile}_{kind}(const float *s, ptrdiff_t from, float *o, ptrdiff_t to, int stride,",
            f"    int outputs, const uint{kind}_t *place, const uint32_t *counts, const float *w, const float *bias,",
            "    int relu) {",
            f"  const @_{vector} zero = {{0}};",
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
    return "\n".join([*text, "    place += n;", "    w += n;", "  }", "}", ""])


def sparse_tiles(kind: str) -> str:
    """What both convolutions below share."""
    few = [sparse(tile, vector, kind) for vector, tiles in (("v", CHAINS), ("q", (2, 1))) for tile in tiles]
    return "\n".join(few)


def sparse_rows(kind: str) -> str:
    """Convolution over non-zeros, `outputs` planes, whose windows are rows of the input itself."""
    more = [sparse(tile, vector, kind) for vector, tiles in (("h", tuple(CHAINS)), ("q", (8, 4))) for tile in tiles]
    given = "size, outputs, place, counts, w, bias, relu);"
    rows = [
        f"    for (; rows - r >= {tile}{f' && tile >= {tile}' if tile > 1 else ''}; r += {tile}) "
        f"@_sparse_%s{tile}_{kind}(s + r * line + c, line, o + r * width + c, width, {given}"
        for tile in CHAINS
    ]

    def columns(vector: str, lanes: str) -> str:
        inner = "\n".join(row % vector for row in rows)
        return f"""  for (int c = 0; c < width; c += {lanes}) {{
    int r = 0;
    c = c > width - {lanes} ? width - {lanes} : c; /* the last column once more, moved back to end where the row ends */
{inner}
  }}"""

    return "\n".join([*more, f"""
/* Rows `line` apart, at least 4 wide. */
static void @_rows_{kind}(const float *s, int line, float *o, int rows, int width, int outputs, const uint{kind}_t *place,
                          const uint32_t *counts, const float *w, const float *bias, int relu, int tile) {{
  const int size = rows * width;
  if (width >= @_LANES) {{
{columns("v", "@_LANES")}
  }} else if (width >= 8) {{
{columns("h", "8")}
  }} else {{
{columns("q", "4")}
  }}
}}
"""])  # fmt: skip


def sparse_flat(kind: str) -> str:
    """Convolution over non-zeros, `outputs` planes of `size` contiguous entries."""
    given = "size, outputs, place, counts, w, bias, relu);"
    flat = f"(s + v, @_LANES, o + v, @_LANES, {given}"
    short = f"(s + v, 4, o + v, 4, {given}"
    return f"""
static void @_conv_{kind}(const float *s, float *o, int size, int outputs, const uint{kind}_t *place, const uint32_t *counts,
                          const float *w, const float *bias, int relu, int tile) {{
  int v = 0;
  while (size - v >= @_LANES) {{
    const int left = (size - v) / @_LANES;
    if (tile >= 8 && left >= 8) {{ @_sparse_v8_{kind}{flat} v += 8 * @_LANES; }}
    else if (tile >= 4 && left >= 4) {{ @_sparse_v4_{kind}{flat} v += 4 * @_LANES; }}
    else if (left >= 2) {{ @_sparse_v2_{kind}{flat} v += 2 * @_LANES; }}
    else {{ @_sparse_v1_{kind}{flat} v += @_LANES; }}
  }}
  if (v < size && v > 0) {{ /* the last vector once more, moved back to end where the plane ends */
    v = size - @_LANES;
    @_sparse_v1_{kind}{flat}
    return;
  }}
  while (size - v >= 4) {{
    if (size - v >= 8) {{ @_sparse_q2_{kind}{short} v += 8; }}
    else {{ @_sparse_q1_{kind}{short} v += 4; }}
  }}
  if (v < size && v > 0) {{
    v = size - 4;
    @_sparse_q1_{kind}{short}
    return;
  }}
  for (; v < size; v++) {{
    int i = 0;
    for (int k = 0; k < outputs; k++) {{
      float sum = bias[k];
      for (const int end = i + (int)counts[2 * k]; i < end; i++) sum += w[i] * s[v + (int)place[i]];
      o[v + (int)counts[2 * k + 1] * size] = relu && sum < 0.0f ? 0.0f : sum;
    }}
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
