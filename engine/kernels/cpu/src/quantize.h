// Rows of activations in the format that the next matrix reads, one record per row.
//
// int8:  QuantizedBlock, one after the other
// bf16:  Pair;   f32: as they are. All padded with zeros to the matrix's units.

namespace draftline {
namespace DRAFTLINE_ISA {

// 32 columns; all of it together, so that a block is written to one or two cache lines.
struct QuantizedBlock {
  int8_t quants[kBlock];
  float scale;
  float scaled_sum;  // scale * sum of the quants
  int32_t offset;    // -128 * sum of the quants
};

#if defined(DRAFTLINE_AVX2)
// What 8-bit weights are multiplied with: quants widened to 16 bits, in each group of four the even before the odd ones.
struct WideBlock {
  int16_t quants[kBlock];
  float scale;
  int32_t offset;
};
#else
using WideBlock = QuantizedBlock;
#endif

struct RowFormat {
  int32_t kind;
  int32_t num_units;
  int32_t num_blocks;  // of 32 columns
  int64_t stride;      // bytes from row to row
};

DL_INLINE RowFormat row_format(const Matrix& reader) {
  const int64_t n = reader.num_units;
  int64_t unit_bytes = sizeof(float);
  if (reader.kind == kQ4) unit_bytes = sizeof(QuantizedBlock);
  if (reader.kind == kQ8) unit_bytes = sizeof(WideBlock);
  if (reader.kind == kBF16) unit_bytes = kPairBytes;
  const int32_t num_blocks = padded(reader.num_columns, kBlock) / kBlock;
  return {reader.kind, reader.num_units, num_blocks, (n * unit_bytes + 63) / 64 * 64};
}

// What became of values that share a scale.
struct Quantized {
  float scale;
  float total;  // of the quants, without their offsets: a whole number
};

// As whole numbers magnitudes have the same order, with NaN above infinity: so the largest hides no NaN.
DL_INLINE I32 larger_magnitude(I32 a, F32 x) {
  const I32 b = (I32)absolute(x);
#if defined(DRAFTLINE_AVX512)
  return (I32)_mm512_max_epi32((__m512i)a, (__m512i)b);
#elif defined(DRAFTLINE_AVX2)
  return (I32)_mm256_max_epi32((__m256i)a, (__m256i)b);
#else
  const I32 is_a = a > b;
  return (is_a & a) | (~is_a & b);
#endif
}

DL_INLINE float largest_magnitude(I32 bits) {
#if defined(DRAFTLINE_AVX512)
  const int32_t most = _mm512_reduce_max_epi32((__m512i)bits);
#elif defined(DRAFTLINE_AVX2)
  __m128i half = _mm_max_epi32(_mm256_castsi256_si128((__m256i)bits), _mm256_extracti128_si256((__m256i)bits, 1));
  half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  const int32_t most = _mm_cvtsi128_si32(_mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
#else
  int32_t most = bits[0];
  for (int i = 1; i < kWidth; ++i) most = bits[i] > most ? bits[i] : most;
#endif
  float value;
  __builtin_memcpy(&value, &most, sizeof value);
  return value;
}

// Writes x / scale + offset as bytes, `count` of them, a multiple of the width: the largest x becomes kMost. Where an x
// is not finite the scale is NaN, and so is all that is made of the bytes.
template <int kMost>
DL_INLINE Quantized quantize_bytes(const float* x, int count, int offset, uint8_t* out) {
  I32 most = {};
  for (int i = 0; i < count; i += kWidth) most = larger_magnitude(most, load(x + i));
  const float limit = largest_magnitude(most), inverse = limit > 0.0f ? kMost / limit : 0.0f;
  if (!__builtin_isfinite(limit)) {
    __builtin_memset(out, offset, count);
    return {__builtin_nanf(""), 0.0f};
  }
  F32 total = {};  // below 2**24, so that no sum is rounded, and it need not leave the vector registers
  for (int i = 0; i < count; i += kWidth) {
    const I32 quants = round_to_int(load(x + i) * splat(inverse));
    store_low_bytes(out + i, quants + splat(offset));
    total = total + __builtin_convertvector(quants, F32);
  }
  return {limit * (1.0f / kMost), sum(total)};
}

DL_INLINE void quantize_block(const float* x, QuantizedBlock* block) {
  const Quantized quantized = quantize_bytes<127>(x, kBlock, 0, reinterpret_cast<uint8_t*>(block->quants));
  block->scale = quantized.scale;
  block->scaled_sum = quantized.scale * quantized.total;
  block->offset = static_cast<int32_t>(-128.0f * quantized.total);
}

#if defined(DRAFTLINE_AVX2)
DL_INLINE void quantize_block(const float* x, WideBlock* block) {
  alignas(16) uint8_t quants[kBlock];
  const Quantized quantized = quantize_bytes<127>(x, kBlock, 0, quants);
  for (int i = 0; i < kBlock; i += 16) store_widened(block->quants + i, quants + i);
  block->scale = quantized.scale;
  block->offset = static_cast<int32_t>(-128.0f * quantized.total);
}
#endif

// Writes 32 values of a row: columns from 32 * index on, zeros behind the last.
DL_INLINE void write_block(const RowFormat& format, const float* x, int index, uint8_t* record) {
  const int n = format.num_units;
  if (format.kind == kF32) {
    float* out = reinterpret_cast<float*>(record) + index * kBlock;
    for (int i = 0; i < min_of(kBlock, n - index * kBlock); ++i) out[i] = x[i];
  } else if (format.kind == kBF16) {
    uint8_t* out = record + index * kBlock / 2 * kPairBytes;
    for (int i = 0, end = min_of(kBlock, 2 * n - index * kBlock); i < end; i += kWidth)
      store_pairs(out + i / 2 * kPairBytes, load(x + i), end - i);
  } else if (format.kind == kQ8) {
    quantize_block(x, reinterpret_cast<WideBlock*>(record) + index);
  } else {
    quantize_block(x, reinterpret_cast<QuantizedBlock*>(record) + index);
  }
}

// Writes one row. `x` has zeros up to the end of its last block.
static void write_row(const RowFormat& format, const float* x, uint8_t* record) {
  for (int i = 0; i < format.num_blocks; ++i) write_block(format, x + i * kBlock, i, record);
}

}  // namespace DRAFTLINE_ISA
}  // namespace draftline
