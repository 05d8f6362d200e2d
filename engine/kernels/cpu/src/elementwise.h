// Norms, rotation and activations on float rows; rows are padded with zeros to a multiple of 32.

namespace draftline {
namespace DRAFTLINE_ISA {

// out = x / rms(x) * weight; n values and zeros up to the padding, in x and weight.
static void rms_norm(const float* x, int n, const float* weight, float eps, float* out) {
  F32 squares = {};
  for (int i = 0; i < n; i += kWidth) squares = fma(load(x + i), load(x + i), squares);
  const float scale = 1.0f / __builtin_sqrtf(sum(squares) / n + eps);
  for (int i = 0; i < padded(n, kBlock); i += kWidth) store(out + i, load(x + i) * splat(scale) * load(weight + i));
}

// out = (x - mean) / std * weight + bias; weight and bias padded with zeros.
static void layer_norm(const float* x, int n, const float* weight, const float* bias, float eps, float* out) {
  F32 total = {};
  for (int i = 0; i < n; i += kWidth) total = total + load(x + i);
  const float mean = sum(total) / n;
  F32 squares = {};
  for (int i = 0; i < n; i += kWidth) {
    const F32 d = select(lane_numbers() < splat(n - i), load(x + i) - splat(mean), F32{});
    squares = fma(d, d, squares);
  }
  const float scale = 1.0f / __builtin_sqrtf(sum(squares) / n + eps);
  for (int i = 0; i < padded(n, kBlock); i += kWidth)
    store(out + i, fma((load(x + i) - splat(mean)) * splat(scale), load(weight + i), load(bias + i)));
}

static void normalize(const Model& model, const float* x, const float* weight, const float* bias, float* out) {
  if (model.norm_kind == kLayerNorm)
    layer_norm(x, model.hidden_size, weight, bias, model.norm_eps, out);
  else
    rms_norm(x, model.hidden_size, weight, model.norm_eps, out);
}

// RMSNorm of one head, whose length need not fill lanes.
static void norm_head(float* x, int dim, const float* weight, float eps) {
  float total = 0.0f;
  for (int i = 0; i < dim; ++i) total += x[i] * x[i];
  const float scale = 1.0f / __builtin_sqrtf(total / dim + eps);
  for (int i = 0; i < dim; ++i) x[i] = x[i] * scale * weight[i];
}

// Replaces by zeros what bfloat16 cannot hold as a number, in `count` values, a multiple of the width; tells whether
// all could stay. Values that are not finite would outlive their request: others multiply them by weights of 0.
static bool make_finite(float* x, int count) {
  I32 all = splat(-1);
  for (int i = 0; i < count; i += kWidth) {
    const I32 is_finite = absolute(load(x + i)) <= splat(3.38e38f);
    store(x + i, (F32)(is_finite & (I32)load(x + i)));
    all = all & is_finite;
  }
  return !any(~all);
}

// Rotate dimension i against i + dim / 2.
static void rotate_head(float* x, int dim, const float* cos, const float* sin) {
  const int half = dim / 2;
  int i = 0;
  for (; i + kWidth <= half; i += kWidth) {
    const F32 a = load(x + i), b = load(x + i + half);
    store(x + i, a * load(cos + i) - b * load(sin + i));
    store(x + i + half, b * load(cos + i) + a * load(sin + i));
  }
  for (; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    x[i] = a * cos[i] - b * sin[i];
    x[i + half] = b * cos[i] + a * sin[i];
  }
}

// erf within 2e-7 (Abramowitz and Stegun 7.1.26).
DL_INLINE F32 error_function(F32 x) {
  const F32 magnitude = absolute(x);
  const F32 t = splat(1.0f) / fma(splat(0.3275911f), magnitude, splat(1.0f));
  F32 p = splat(1.061405429f);
  p = fma(p, t, splat(-1.453152027f));
  p = fma(p, t, splat(1.421413741f));
  p = fma(p, t, splat(-0.284496736f));
  p = fma(p, t, splat(0.254829592f));
  const F32 y = splat(1.0f) - p * t * exponential(-(magnitude * magnitude));
  return select(x < splat(0.0f), -y, y);
}

DL_INLINE F32 activate(int32_t activation, F32 x) {
  if (activation == kGelu) {
    const F32 half = x * splat(0.5f);
    return fma(half, error_function(x * splat(0.70710678118654752f)), half);
  }
  F32 slope = x;  // the result is x * sigmoid(slope)
  if (activation == kGeluTanh) slope = fma(x * x * x, splat(0.044715f), x) * splat(1.5957691216057308f);
  return x / (splat(1.0f) + exponential(-slope));
}

}  // namespace DRAFTLINE_ISA
}  // namespace draftline
