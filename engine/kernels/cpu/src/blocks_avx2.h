// Products of blocks where registers have 8 lanes: both halves of a tile at once.
//
// Two loads a cycle are the limit here, so each group of activations that is loaded is multiplied with 16 outputs.
// The sums of a pass fill the registers: weights come from the first-level cache again for every few rows.

namespace draftline {
namespace DRAFTLINE_ISA {

DL_INLINE __m256i broadcast(const void* p) { return _mm256_set1_epi32(load_int(p)); }

// acc += scale * scale of the row's block * total, for both halves.
DL_INLINE void add_scaled(F32 (&acc)[2], const F32 (&scales)[2], float scale, __m256i first, __m256i second) {
  acc[0] = fma(__builtin_convertvector((I32)first, F32), scales[0] * splat(scale), acc[0]);
  acc[1] = fma(__builtin_convertvector((I32)second, F32), scales[1] * splat(scale), acc[1]);
}

template <int kRows>
DL_INLINE void store_halves(const F32 (&acc)[kRows][2], float (*out)[kLanes]) {
  for (int row = 0; row < kRows; ++row) store(out[row], acc[row][0]), store(out[row] + kWidth, acc[row][1]);
}

template <int kRows>
static void dot_q4(const uint8_t* tile, const uint8_t* rows, int64_t stride, int num_units, float (*out)[kLanes],
                   Ahead ahead) {
  const __m256i nibble = _mm256_set1_epi8(0x0f), ones = _mm256_set1_epi16(1);
  F32 acc[kRows][2] = {};
  for (int number = 0; number < num_units; ++number, tile += kQ4UnitBytes, rows += sizeof(QuantizedBlock)) {
    if (kRows >= kRowsThatFetch) {
      fetch(tile + num_units * kQ4UnitBytes, kQ4UnitBytes);
      fetch_ahead(ahead);
    }
    // 15 * 127 for each of 16 products fits 16 bits.
    __m256i sums[kRows][2] = {};
    DL_UNROLL(4)
    for (int line = 0; line < 4; ++line) {
      const __m256i* both = reinterpret_cast<const __m256i*>(tile + 64 + 64 * line);
      DL_UNROLL(2)
      for (int half = 0; half < 2; ++half) {
        const __m256i first = _mm256_and_si256(_mm256_srli_epi16(both[0], 4 * half), nibble);
        const __m256i second = _mm256_and_si256(_mm256_srli_epi16(both[1], 4 * half), nibble);
        DL_UNROLL(9)
        for (int row = 0; row < kRows; ++row) {
          const __m256i four = broadcast(rows + row * stride + 8 * line + 4 * half);
          sums[row][0] = _mm256_add_epi16(sums[row][0], _mm256_maddubs_epi16(first, four));
          keep_in_register(sums[row][0]);
          sums[row][1] = _mm256_add_epi16(sums[row][1], _mm256_maddubs_epi16(second, four));
          keep_in_register(sums[row][1]);
        }
      }
    }
    const F32 scales[2] = {load_half(tile), load_half(tile + 16)};
    const F32 minima[2] = {load_half(tile + 32), load_half(tile + 48)};
    DL_UNROLL(9)
    for (int row = 0; row < kRows; ++row) {
      const QuantizedBlock& block = *reinterpret_cast<const QuantizedBlock*>(rows + row * stride);
      add_scaled(acc[row], scales, block.scale, _mm256_madd_epi16(sums[row][0], ones),
                 _mm256_madd_epi16(sums[row][1], ones));
      acc[row][0] = fma(minima[0], splat(block.scaled_sum), acc[row][0]);
      acc[row][1] = fma(minima[1], splat(block.scaled_sum), acc[row][1]);
    }
  }
  store_halves<kRows>(acc, out);
}

// Sums of two products of bytes do not fit 16 bits, so activations and weights are widened first: even and odd bytes.
template <int kRows>
static void dot_q8(const uint8_t* tile, const uint8_t* rows, int64_t stride, int num_units, float (*out)[kLanes],
                   Ahead ahead) {
  const __m256i low = _mm256_set1_epi16(0xff);
  F32 acc[kRows][2] = {};
  for (int number = 0; number < num_units; ++number, tile += kQ8UnitBytes, rows += sizeof(WideBlock)) {
    if (kRows >= kRowsThatFetch) {
      fetch(tile + num_units * kQ8UnitBytes, kQ8UnitBytes);
      fetch_ahead(ahead);
    }
    __m256i sums[kRows][2];
    for (int row = 0; row < kRows; ++row)
      sums[row][0] = sums[row][1] = broadcast(rows + row * stride + offsetof(WideBlock, offset));
    DL_UNROLL(2)
    for (int line = 0; line < 8; ++line) {
      const __m256i* four = reinterpret_cast<const __m256i*>(tile + 32 + 64 * line);
      DL_UNROLL(2)
      for (int half = 0; half < 2; ++half) {
        const __m256i first = half ? _mm256_srli_epi16(four[0], 8) : _mm256_and_si256(four[0], low);
        const __m256i second = half ? _mm256_srli_epi16(four[1], 8) : _mm256_and_si256(four[1], low);
        DL_UNROLL(9)
        for (int row = 0; row < kRows; ++row) {
          const __m256i two = broadcast(rows + row * stride + 8 * line + 4 * half);
          sums[row][0] = _mm256_add_epi32(sums[row][0], _mm256_madd_epi16(first, two));
          keep_in_register(sums[row][0]);
          sums[row][1] = _mm256_add_epi32(sums[row][1], _mm256_madd_epi16(second, two));
          keep_in_register(sums[row][1]);
        }
      }
    }
    const F32 scales[2] = {load_half(tile), load_half(tile + 16)};
    DL_UNROLL(9)
    for (int row = 0; row < kRows; ++row)
      add_scaled(acc[row], scales, reinterpret_cast<const WideBlock*>(rows + row * stride)->scale, sums[row][0],
                 sums[row][1]);
  }
  store_halves<kRows>(acc, out);
}

}  // namespace DRAFTLINE_ISA
}  // namespace draftline
