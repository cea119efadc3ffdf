"""The C that all layers share: kernels over non-zeros and over all weights, from vectors of the compiler's, and plain loops.

`@` stands for the name of the network, so that two networks can be linked into one program.
"""

from __future__ import annotations

from dataclasses import dataclass

HEAD = """#if defined(__GNUC__) && defined(__AVX512F__)
#define @_LANES 16
#elif defined(__GNUC__) && defined(__AVX__)
#define @_LANES 8
#else
#define @_LANES 4
#endif
#if defined(__GNUC__)
typedef float @_v __attribute__((vector_size(4 * @_LANES), aligned(4), may_alias));
typedef int32_t @_vi __attribute__((vector_size(4 * @_LANES), aligned(4), may_alias));
typedef float @_h __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t @_hi __attribute__((vector_size(32), aligned(4), may_alias));
typedef float @_q __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t @_qi __attribute__((vector_size(16), aligned(4), may_alias));
#else
#error "GCC or Clang is needed: this file uses their vectors"
#endif
"""


@dataclass(frozen=True)
class Entries:
    """How a kernel reads the weights that are left. `kind`: bits of an entry, which is a place; followed by t: which is a place
    and, in its last bits, the number of a value in a table."""

    kind: str

    @property
    def bits(self) -> str:
        return self.kind.removesuffix("t")

    @property
    def shared(self) -> bool:
        return self.kind.endswith("t")

    @property
    def parameters(self) -> str:
        own = f"const uint{self.bits}_t *place, const uint{self.bits}_t *counts, const float *w"
        return f"{own}, uint32_t shift, uint32_t unit" if self.shared else own

    @property
    def arguments(self) -> str:
        return "place, counts, w, shift, unit" if self.shared else "place, counts, w"

    @property
    def first(self) -> str:
        """What a kernel begins with."""
        return "const uint32_t mask = (1u << shift) - 1u;" if self.shared else ""

    @property
    def next(self) -> str:
        """From an output to the next."""
        return "place += n;" if self.shared else "place += n; w += n;"

    def read(self, number: int | str, at: str) -> tuple[str, str, str]:
        """Entry `at`: a declaration, the value and the place."""
        if not self.shared:
            return "", f"w[{at}]", f"place[{at}]"
        return f"const uint32_t e{number} = place[{at}];", f"w[e{number} & mask]", f"(e{number} >> shift) * unit"


def dot(kind: str) -> str:
    """Linear layer over non-zeros, at places of x."""
    entries = Entries(kind)
    lines = []
    for number, total in enumerate("abcd"):
        declared, value, place = entries.read(number, f"i + {number}" if number else "i")
        lines.append(f"      {declared} {total} += {value} * x[{place}];")
    declared, value, place = entries.read(0, "i")
    return f"""
static void @_dot_{kind}(const float *x, float *y, int outputs, {entries.parameters},
                         const float *bias, int relu) {{
  {entries.first}
  for (int k = 0; k < outputs; k++) {{
    const int n = (int)counts[2 * k];
    float a = bias[k], b = 0.0f, c = 0.0f, d = 0.0f;
    int i = 0;
    for (; i + 4 <= n; i += 4) {{
{chr(10).join(lines)}
    }}
    for (; i < n; i++) {{ {declared} a += {value} * x[{place}]; }}
    a += b + (c + d);
    y[counts[2 * k + 1]] = relu && a < 0.0f ? 0.0f : a;
    {entries.next}
  }}
}}
"""


ROWS = """
static float @_total(const @_v a) {
  float s = 0.0f;
  for (int i = 0; i < @_LANES; i++) s += a[i];
  return s;
}

/* Linear layer over all weights, four rows of the matrix at a time. */
static void @_rows(const float *x, float *y, int outputs, int inputs, const float *w, const float *bias, int relu) {
  const @_v zero = {0};
  int k = 0;
  for (; k + 4 <= outputs; k += 4, w += 4 * inputs) {
    @_v a = zero, b = zero, c = zero, d = zero;
    int i = 0;
    for (; i + @_LANES <= inputs; i += @_LANES) {
      const @_v in = *(const @_v *)(x + i);
      a += in * *(const @_v *)(w + i);
      b += in * *(const @_v *)(w + inputs + i);
      c += in * *(const @_v *)(w + 2 * inputs + i);
      d += in * *(const @_v *)(w + 3 * inputs + i);
    }
    float s[4] = {bias[k] + @_total(a), bias[k + 1] + @_total(b), bias[k + 2] + @_total(c), bias[k + 3] + @_total(d)};
    for (; i < inputs; i++)
      for (int j = 0; j < 4; j++) s[j] += w[j * inputs + i] * x[i];
    for (int j = 0; j < 4; j++) y[k + j] = relu && s[j] < 0.0f ? 0.0f : s[j];
  }
  for (; k < outputs; k++, w += inputs) {
    @_v a = zero;
    int i = 0;
    for (; i + @_LANES <= inputs; i += @_LANES) a += *(const @_v *)(x + i) * *(const @_v *)(w + i);
    float s = bias[k] + @_total(a);
    for (; i < inputs; i++) s += w[i] * x[i];
    y[k] = relu && s < 0.0f ? 0.0f : s;
  }
}
"""


POOL = """
static void @_pool(const float *x, float *o, int channels, int h, int w, int oh, int ow, int kh, int kw, int sy, int sx, int py,
                   int px, int dy, int dx, int mean, int divide, int adaptive) {
  for (int c = 0; c < channels; c++, x += h * w)
    for (int r = 0; r < oh; r++) {
      const int y0 = adaptive ? r * h / oh : r * sy - py, y1 = adaptive ? ((r + 1) * h + oh - 1) / oh : y0 + (kh - 1) * dy + 1;
      for (int j = 0; j < ow; j++) {
        const int x0 = adaptive ? j * w / ow : j * sx - px, x1 = adaptive ? ((j + 1) * w + ow - 1) / ow : x0 + (kw - 1) * dx + 1;
        float best = -INFINITY, sum = 0.0f;
        int count = 0;
        for (int y = y0; y < y1; y += dy) {
          if (y < 0 || y >= h) continue;
          for (int i = x0; i < x1; i += dx) {
            if (i < 0 || i >= w) continue;
            const float v = x[y * w + i];
            best = v > best ? v : best;
            sum += v;
            count++;
          }
        }
        if (divide == 1) { /* the padding counts, where it is not beyond what was padded */
          const int ye = y1 < h + py ? y1 : h + py, xe = x1 < w + px ? x1 : w + px;
          count = (ye - y0) * (xe - x0);
        } else if (divide > 1) {
          count = divide - 1;
        }
        *o++ = mean ? sum / (float)count : best;
      }
    }
}
"""

MAX2 = """
/* The largest of 2 x 2, in steps of 2. */
static void @_max2(const float *restrict x, float *restrict o, int channels, int h, int w, int oh, int ow) {
  for (int c = 0; c < channels; c++, x += h * w)
    for (int r = 0; r < oh; r++, o += ow) {
      const float *a = x + 2 * r * w, *b = a + w;
      int j = 0;
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
      for (; j + 4 <= ow; j += 4) {
        const @_q a0 = *(const @_q *)(a + 2 * j), a1 = *(const @_q *)(a + 2 * j + 4), b0 = *(const @_q *)(b + 2 * j);
        const @_q b1 = *(const @_q *)(b + 2 * j + 4), m0 = @_larger(a0, b0), m1 = @_larger(a1, b1);
        const @_q even = __builtin_shufflevector(m0, m1, 0, 2, 4, 6), odd = __builtin_shufflevector(m0, m1, 1, 3, 5, 7);
        *(@_q *)(o + j) = @_larger(even, odd);
      }
#endif
#endif
      for (; j < ow; j++) {
        const float m = a[2 * j] > a[2 * j + 1] ? a[2 * j] : a[2 * j + 1], n = b[2 * j] > b[2 * j + 1] ? b[2 * j] : b[2 * j + 1];
        o[j] = m > n ? m : n;
      }
    }
}
"""
LARGER = """
static inline @_q @_larger(@_q a, @_q b) {
  const @_qi m = a > b;
  return (@_q)((m & (@_qi)a) | (~m & (@_qi)b));
}
"""

REDUCE = {
    "sum": "float s = 0.0f; for (int c = 0; c < count; c++) s += p[c * inner]; o[i] = s;",
    "mean": "float s = 0.0f; for (int c = 0; c < count; c++) s += p[c * inner]; o[i] = s / (float)count;",
    "max": "float s = p[0]; for (int c = 1; c < count; c++) s = p[c * inner] > s ? p[c * inner] : s; o[i] = s;",
    "softmax": "float m = p[0], s = 0.0f; for (int c = 1; c < count; c++) m = p[c * inner] > m ? p[c * inner] : m; "
    "for (int c = 0; c < count; c++) s += o[i + c * inner] = expf(p[c * inner] - m); "
    "for (int c = 0; c < count; c++) o[i + c * inner] /= s;",
    "logsoftmax": "float m = p[0], s = 0.0f; for (int c = 1; c < count; c++) m = p[c * inner] > m ? p[c * inner] : m; "
    "for (int c = 0; c < count; c++) s += expf(p[c * inner] - m); "
    "for (int c = 0; c < count; c++) o[i + c * inner] = p[c * inner] - m - logf(s);",
    "norm": "float m = 0.0f, s = 0.0f; for (int c = 0; c < count; c++) m += p[c * inner]; m /= (float)count; "
    "for (int c = 0; c < count; c++) s += (p[c * inner] - m) * (p[c * inner] - m); s = 1.0f / sqrtf(s / (float)count + eps); "
    "for (int c = 0; c < count; c++) o[i + c * inner] = (p[c * inner] - m) * s;",
}
KEEPS_COUNT = ("softmax", "logsoftmax", "norm")


def reduce(kind: str) -> str:
    """Over the middle of (outer, count, inner)."""
    step = "count * inner" if kind in KEEPS_COUNT else "inner"
    unused = "" if kind == "norm" else "  (void)eps;\n"
    return f"""
static void @_{kind}(const float *x, float *o, int outer, int count, int inner, float eps) {{
{unused}  for (int b = 0; b < outer; b++, x += count * inner, o += {step})
    for (int i = 0; i < inner; i++) {{
      const float *p = x + i;
      {REDUCE[kind]}
    }}
}}
"""


COLUMNS = """
/* Linear layer over all weights, which lie in blocks of 16 outputs, an input after the other: no sum across a vector. */
static void @_columns(const float *x, float *y, int outputs, int inputs, const float *w, const float *bias) {
  enum { each = 16 / @_LANES, most = 4 };
  for (int k = 0; k < outputs;) {
    const int blocks = outputs - k >= 16 * most ? most : 1;
    @_v a[each * most];
    for (int b = 0; b < each * blocks; b++) a[b] = *(const @_v *)(bias + k + b * @_LANES);
    if (blocks == most)
      for (int i = 0; i < inputs; i++)
        for (int b = 0; b < most; b++)
          for (int e = 0; e < each; e++)
            a[b * each + e] += x[i] * *(const @_v *)(w + (b * inputs + i) * 16 + e * @_LANES);
    else
      for (int i = 0; i < inputs; i++)
        for (int e = 0; e < each; e++) a[e] += x[i] * *(const @_v *)(w + i * 16 + e * @_LANES);
    for (int b = 0; b < blocks; b++, k += 16, w += 16 * inputs) {
      const int left = outputs - k;
      float last[16];
      float *into = left < 16 ? last : y + k;
      for (int e = 0; e < each; e++) *(@_v *)(into + e * @_LANES) = a[b * each + e];
      if (left < 16) memcpy(y + k, last, sizeof(float) * (size_t)left);
    }
  }
}
"""

EXP = """
typedef uint32_t @_vu __attribute__((vector_size(4 * @_LANES), aligned(4), may_alias));
/* exp, to about 1e-7 of itself (the polynomial of Cephes): 2^n times exp of the rest, n in the last bits of z. */
static inline @_v @_exp(@_v x) {
  const @_v most = (@_v){0} + 88.0f, least = (@_v){0} - 87.0f;
  x = (@_v)(((x > most) & (@_vi)most) | (~(x > most) & (@_vi)x));
  x = (@_v)(((x < least) & (@_vi)least) | (~(x < least) & (@_vi)x));
  const @_v z = x * 1.44269504f + 12582912.0f, k = z - 12582912.0f;
  const @_v r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
  @_v p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return (@_v)((@_vu)p + ((@_vu)z << 23));
}
static inline @_v @_sigmoid(@_v x) { return 1.0f / (1.0f + @_exp(-x)); }
static inline @_v @_tangent(@_v x) { return 2.0f / (1.0f + @_exp(-2.0f * x)) - 1.0f; }
"""

CELLS = {
    "lstm": """
/* g: the gates from the input, r: those from the state before. */
static void @_lstm(float *h, float *c, const float *g, const float *r, int n) {
  for (int i = 0; i < n; i++) {
    const float in = 1.0f / (1.0f + expf(-(g[i] + r[i]))), forget = 1.0f / (1.0f + expf(-(g[n + i] + r[n + i])));
    const float cell = tanhf(g[2 * n + i] + r[2 * n + i]), out = 1.0f / (1.0f + expf(-(g[3 * n + i] + r[3 * n + i])));
    c[i] = forget * c[i] + in * cell;
    h[i] = out * tanhf(c[i]);
  }
}
""",
    "gru": """
static void @_gru(float *h, float *c, const float *g, const float *r, int n) {
  (void)c;
  for (int i = 0; i < n; i++) {
    const float reset = 1.0f / (1.0f + expf(-(g[i] + r[i]))), update = 1.0f / (1.0f + expf(-(g[n + i] + r[n + i])));
    const float fresh = tanhf(g[2 * n + i] + reset * r[2 * n + i]);
    h[i] = (1.0f - update) * fresh + update * h[i];
  }
}
""",
}


VECTOR_CELLS = {
    "lstm": """
/* g: the gates from the input, r: those from the state before; arrays end in room for a whole vector. */
static void @_lstm(float *h, float *c, const float *g, const float *r, int n) {
  for (int i = 0; i < n; i += @_LANES) {
    const @_v in = @_sigmoid(@_at(g, i) + @_at(r, i)), forget = @_sigmoid(@_at(g, n + i) + @_at(r, n + i));
    const @_v cell = @_tangent(@_at(g, 2 * n + i) + @_at(r, 2 * n + i));
    const @_v out = @_sigmoid(@_at(g, 3 * n + i) + @_at(r, 3 * n + i)), now = forget * @_at(c, i) + in * cell;
    *(@_v *)(c + i) = now;
    *(@_v *)(h + i) = out * @_tangent(now);
  }
}
""",
    "gru": """
static void @_gru(float *h, float *c, const float *g, const float *r, int n) {
  (void)c;
  for (int i = 0; i < n; i += @_LANES) {
    const @_v reset = @_sigmoid(@_at(g, i) + @_at(r, i)), update = @_sigmoid(@_at(g, n + i) + @_at(r, n + i));
    const @_v fresh = @_tangent(@_at(g, 2 * n + i) + reset * @_at(r, 2 * n + i));
    *(@_v *)(h + i) = fresh + update * (@_at(h, i) - fresh);
  }
}
""",
}
AT = """
static inline @_v @_at(const float *a, int i) { return *(const @_v *)(a + i); }
"""


SMALL = """/* A layer: outputs, places, kernel, its width, input, dilation, padding, output, stride, steps, relu, bytes of one. */
typedef uint%d_t @_p;
"""

SPREAD = """
/* A layer over its non-zeros, by loops, for little memory: a byte a place, from one to the next; 255 is a step without one. */
static float @_number(const uint8_t *b, int i, int width) {
  uint32_t u = 0;
  float f;
  for (int j = 0; j < width; j++) u = u >> 8 | (uint32_t)b[width * i + j] << 24;
  memcpy(&f, &u, 4);
  return f;
}

static void @_spread(const float *x, float *y, const @_p *p, const uint8_t *steps, const uint8_t *values, const uint8_t *table,
                     const uint8_t *bias) {
  const int outputs = p[0], places = p[1], kernel = p[2], kw = p[3], h = p[4], w = p[5], oh = p[10], ow = p[11], size = oh * ow;
  for (int i = 0; i < outputs * size; i++) y[i] = @_number(bias, i / size, 4);
  for (int i = 0, at = 0, n = 0; i < (int)p[14]; i++) {
    at += steps[i];
    if (steps[i] == 255) continue;
    const float value = @_number(table ? table : values, table ? values[n] : n, p[16]);
    n++;
    const int e = at % places, y0 = e % kernel / kw * p[6] - p[8], x0 = e % kw * p[7] - p[9];
    const float *s = x + e / kernel * (h * w);
    float *o = y + at / places * size;
    int lo = 0, hi = ow;
    while (lo < hi && x0 + lo * p[13] < 0) lo++;
    while (lo < hi && x0 + (hi - 1) * p[13] >= w) hi--;
    for (int r = 0; r < oh; r++, o += ow) {
      const int v = y0 + r * p[12];
      if (v >= 0 && v < h)
        for (int c = lo; c < hi; c++) o[c] += value * s[v * w + x0 + c * p[13]];
    }
  }
  if (p[15])
    for (int i = 0; i < outputs * size; i++) y[i] = y[i] < 0.0f ? 0.0f : y[i];
}
"""

MAX2_SMALL = """
/* The largest of 2 x 2, in steps of 2. */
static void @_max2(const float *x, float *o, int channels, int h, int w, int oh, int ow) {
  for (int c = 0; c < channels; c++, x += h * w)
    for (int r = 0; r < oh; r++)
      for (int j = 0; j < ow; j++) {
        const float *a = x + 2 * (r * w + j);
        float m = a[0];
        for (int i = 1; i < 4; i++) m = a[i / 2 * w + i %% 2] > m ? a[i / 2 * w + i %% 2] : m;
        *o++ = m;
      }
}
""".replace("%%", "%")
