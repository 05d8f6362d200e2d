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

// Writes x / scale + offset as bytes, `count` of them, a multiple of the width: the largest x, which may be anything
// finite, becomes kMost.
template <int kMost>
DL_INLINE Quantized quantize_bytes(const float* x, int count, int offset, uint8_t* out) {
  F32 most = {};
  for (int i = 0; i < count; i += kWidth) most = max(most, absolute(load(x + i)));
  const float limit = highest(most), inverse = limit > 0.0f ? kMost / limit : 0.0f;
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
