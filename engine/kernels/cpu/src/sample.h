// From a row of logits to a token: temperature, top-k, top-p, min-p, then argmax of logit plus noise.
//
// The kept set is the one of engine/sampling/logits_processors.py, found by thresholds instead of a sort; the
// noise is the hash of engine/sampling/noise.py. Ties stay together, and a tie of sums goes to the lower token.

namespace draftline {
namespace DRAFTLINE_ISA {

constexpr int kGroup = 64;    // tokens whose highest logit stands for them in the search for top-k
constexpr int kBins = 4096;   // of equal width in log-probability, for top-p
constexpr float kBinsPerNat = 128.0f;

DL_INLINE U32 mix_bits(U32 x) {  // Murmur3's 32-bit finaliser
  x = x ^ (x >> 16);
  x = x * 0x85ebca6bu;
  x = x ^ (x >> 13);
  x = x * 0xc2b2ae35u;
  return x ^ (x >> 16);
}

// Uniform noise of tokens as u where it is below one half, else u - 1: both tails keep full precision.
DL_INLINE F32 noise_offset(I32 tokens, const RowSampling& sampling) {
  const U32 bits = mix_bits(mix_bits((U32)tokens) + sampling.noise_low) ^ sampling.noise_high;
  return (__builtin_convertvector((I32)bits, F32) + splat(0.5f)) * splat(0x1p-32f);
}

DL_INLINE F32 gumbel(F32 offset) {
  const I32 is_low = offset > splat(0.0f);
  // log1p: the logarithm of the rounded sum, and what the rounding lost.
  const F32 rounded = offset + splat(1.0f);
  const F32 x = select(is_low, offset, rounded);
  const F32 lost = select(is_low, splat(0.0f), (offset - (rounded - splat(1.0f))) / rounded);
  return -logarithm(-(logarithm(x) + lost));
}

// No noise with this offset is higher: -log(u) is at least 1 - u, and that at least its power of two.
DL_INLINE F32 gumbel_bound(F32 offset) {
  const I32 exponent = ((((I32)offset) >> 23) & splat(0xff)) - splat(127);
  const F32 bound = __builtin_convertvector(exponent, F32) * splat(-0.69314724f) + splat(1e-4f);
  return select(offset > splat(0.0f), splat(0.3666f), bound);
}

// Logits of one row divided by its temperature, padded with -inf to whole groups.
struct ScaledRow {
  float* values;
  int size, padded_size;
  float highest;
};

static ScaledRow scale_row(const float* logits, int size, float temperature, float* values) {
  const int padded_size = padded(size, kGroup);
  F32 most = splat(-__builtin_inff());
  int i = 0;
  for (; i + kWidth <= size; i += kWidth) {
    const F32 x = load(logits + i) / splat(temperature);
    store(values + i, x);
    most = max(most, x);
  }
  float highest_value = highest(most);
  for (; i < padded_size; ++i) {
    values[i] = i < size ? logits[i] / temperature : -__builtin_inff();
    highest_value = values[i] > highest_value ? values[i] : highest_value;
  }
  return {values, size, padded_size, highest_value};
}

// The k-th largest of n values, which are put in another order (Hoare's selection).
static float select_largest(float* values, int n, int k) {
  int low = 0, high = n - 1;
  const int wanted = k - 1;
  while (low < high) {
    const float pivot = values[low + (high - low) / 2];
    int i = low, j = high;
    while (i <= j) {
      while (values[i] > pivot) ++i;
      while (values[j] < pivot) --j;
      if (i <= j) {
        const float swapped = values[i];
        values[i++] = values[j];
        values[j--] = swapped;
      }
    }
    if (wanted <= j)
      high = j;
    else if (wanted >= i)
      low = i;
    else
      break;
  }
  return values[wanted];
}

// Values of at least `limit`, in their order; returns how many.
static int collect(const ScaledRow& row, float limit, float* out) {
  int count = 0;
  for (int i = 0; i < row.padded_size; i += kWidth) {
    const F32 x = load(row.values + i);
    if (!any(x >= splat(limit))) continue;
    for (int lane = 0; lane < kWidth; ++lane)
      if (row.values[i + lane] >= limit) out[count++] = row.values[i + lane];
  }
  return count;
}

// The k-th largest value. k groups have at least k values as high as the k-th highest group: few others do.
static float top_k_threshold(const ScaledRow& row, int k, float* memory) {
  const int num_groups = row.padded_size / kGroup;
  float limit = -__builtin_inff();
  if (k <= num_groups) {
    for (int group = 0; group < num_groups; ++group) {
      F32 most = load(row.values + group * kGroup);
      for (int i = kWidth; i < kGroup; i += kWidth) most = max(most, load(row.values + group * kGroup + i));
      memory[group] = highest(most);
    }
    limit = select_largest(memory, num_groups, k);
  }
  const int count = collect(row, limit, memory);
  return select_largest(memory, count, k);
}

static void sort_descending(float* values, int n) {  // heap sort: small n, no recursion
  for (int end = n, root = n / 2; end > 1;) {
    if (root > 0) {
      --root;
    } else {
      const float last = values[--end];
      values[end] = values[0];
      values[0] = last;
    }
    for (int parent = root, child; (child = 2 * parent + 1) < end; parent = child) {
      if (child + 1 < end && values[child + 1] < values[child]) ++child;
      if (values[parent] <= values[child]) break;
      const float swapped = values[parent];
      values[parent] = values[child];
      values[child] = swapped;
    }
  }
}

DL_INLINE int bin_of(float distance) {
  const float scaled = distance * kBinsPerNat;
  return scaled < kBins - 1 ? static_cast<int>(scaled) : kBins - 1;
}

// The smallest value of the fewest likeliest tokens whose share of those from `limit` up reaches top_p.
// Shares are summed by bins of log-probability; only the bin in which it happens is put in order.
static float top_p_threshold(const ScaledRow& row, float limit, float top_p, float* memory) {
  float* mass = memory;  // [kBins], then the values of one bin
  for (int bin = 0; bin < kBins; ++bin) mass[bin] = 0.0f;
  for (int i = 0; i < row.padded_size; i += kWidth) {
    const F32 x = load(row.values + i);
    const F32 distance = splat(row.highest) - x;
    if (!any((x >= splat(limit)) & (distance < splat(87.0f)))) continue;
    const F32 probability = exponential(-distance);
    for (int lane = 0; lane < kWidth; ++lane)
      if (x[lane] >= limit && x[lane] > -__builtin_inff()) mass[bin_of(distance[lane])] += probability[lane];
  }
  float total = 0.0f;
  for (int bin = 0; bin < kBins; ++bin) total += mass[bin];
  float reached = 0.0f;
  int bin = 0;
  while (bin < kBins - 1 && reached + mass[bin] < top_p * total) reached += mass[bin++];
  float* values = memory + kBins;
  int count = 0;
  for (int i = 0; i < row.padded_size; i += kWidth) {
    const F32 x = load(row.values + i);
    if (!any(x >= splat(limit))) continue;
    for (int lane = 0; lane < kWidth; ++lane)
      if (x[lane] >= limit && x[lane] > -__builtin_inff() && bin_of(row.highest - x[lane]) == bin)
        values[count++] = x[lane];
  }
  sort_descending(values, count);
  for (int i = 0; i < count; ++i) {
    reached += exponential(splat(values[i] - row.highest))[0];
    if (reached >= top_p * total) return values[i];
  }
  return count > 0 ? values[count - 1] : limit;
}

static int32_t argmax(const float* values, int size) {
  F32 most = splat(-__builtin_inff());
  int i = 0;
  for (; i + kWidth <= size; i += kWidth) most = max(most, load(values + i));
  float best = highest(most);
  for (; i < size; ++i) best = values[i] > best ? values[i] : best;
  for (i = 0; i < size; ++i)
    if (values[i] == best) return i;
  return 0;  // nothing but NaN
}

static int32_t draw(const ScaledRow& row, float limit, const RowSampling& sampling) {
  float best = -__builtin_inff();
  int32_t token = -1;
  const int likeliest = argmax(row.values, row.size);
  // The likeliest token's part first: with its sum known, nearly all others are ruled out by the bound.
  const int first = likeliest / kWidth * kWidth;
  for (int turn = -1; turn < row.padded_size / kWidth; ++turn) {
    const int i = turn < 0 ? first : turn * kWidth;
    const F32 x = load(row.values + i);
    const F32 offset = noise_offset(lane_numbers() + splat(i), sampling);
    if (!any((x >= splat(limit)) & (x + gumbel_bound(offset) >= splat(best)))) continue;
    const F32 sums = x + gumbel(offset);
    for (int lane = 0; lane < kWidth; ++lane) {
      if (!(x[lane] >= limit) || x[lane] == -__builtin_inff()) continue;
      if (sums[lane] > best || (sums[lane] == best && i + lane < token)) {
        best = sums[lane];
        token = i + lane;
      }
    }
  }
  return token < 0 ? likeliest : token;
}

// The first logit that is NaN or infinitely high, which no sound model has; -1 if there is none.
static int32_t find_broken(const float* logits, int size) {
  const F32 infinity = splat(__builtin_inff());
  I32 sound = splat(-1);
  int i = 0;
  for (; i + kWidth <= size; i += kWidth) sound = sound & (load(logits + i) < infinity);
  if (any(~sound)) i = 0;
  for (; i < size; ++i)
    if (!(logits[i] < __builtin_inff())) return i;
  return -1;
}

// `memory` holds padded_size + max(padded_size, kBins) + padded_size floats. A row with a broken logit gets that
// token, which a grammar at least has not forbidden, and `fault` is set where there is one.
static int32_t sample_row(const float* logits, int size, const RowSampling& sampling, float* memory, uint8_t* fault) {
  const int32_t broken = find_broken(logits, size);
  if (broken >= 0) {
    if (fault != nullptr) *fault = 1;
    return broken;
  }
  if (sampling.temperature <= 0.0f) return argmax(logits, size);
  const ScaledRow row = scale_row(logits, size, sampling.temperature, memory);
  float* rest = memory + row.padded_size;
  float limit = -__builtin_inff();
  if (sampling.top_k > 0 && sampling.top_k < size) limit = top_k_threshold(row, sampling.top_k, rest);
  if (sampling.top_p < 1.0f) {
    const float nucleus = top_p_threshold(row, limit, sampling.top_p, rest);
    limit = nucleus > limit ? nucleus : limit;
  }
  if (sampling.min_p > 0.0f) {
    const float least = row.highest + logarithm(splat(sampling.min_p))[0];
    limit = least > limit ? least : limit;
  }
  return draw(row, limit, sampling);
}

}  // namespace DRAFTLINE_ISA
}  // namespace draftline
