// Rows of activations in the format that the next matrix reads, one record per row.
//
// int8:  quants [32 per block], scale, scale * sum and -128 * sum [one per block each]
// bf16:  pairs;   f32: as they are. All padded with zeros to the matrix's units.

namespace draftline {
namespace DRAFTLINE_ISA {

struct RowFormat {
  int32_t kind;
  int32_t num_units;
  int64_t stride;  // bytes from row to row
};

DL_INLINE RowFormat row_format(const Matrix& reader) {
  const int64_t n = reader.num_units;
  const bool is_int8 = reader.kind == kQ4 || reader.kind == kQ8;
  const int64_t bytes = is_int8 ? n * (kBlock + 12) : n * 4;
  return {reader.kind, reader.num_units, (bytes + 63) / 64 * 64};
}

// A block's 32 values become int8 with the scale max / 127. `x` may hold anything finite.
DL_INLINE void quantize_block(const float* x, int8_t* quants, float* scale, float* scaled_sum, int32_t* offset) {
  F32 most = {};
  for (int i = 0; i < kBlock; i += kWidth) most = max(most, absolute(load(x + i)));
  const float limit = highest(most);
  const float inverse = limit > 0.0f ? 127.0f / limit : 0.0f;
  I32 total = {};
  for (int i = 0; i < kBlock; i += kWidth) {
    const I32 rounded = round_to_int(load(x + i) * splat(inverse));
    const I8 bytes = __builtin_convertvector(rounded, I8);
    __builtin_memcpy(quants + i, &bytes, sizeof bytes);
    total = total + rounded;
  }
  const int32_t all = sum(total);
  *scale = limit * (1.0f / 127.0f);
  *scaled_sum = *scale * static_cast<float>(all);
  *offset = -128 * all;
}

// Writes one row. `x` has zeros up to the end of its last block.
static void write_row(const RowFormat& format, const float* x, uint8_t* record) {
  const int n = format.num_units;
  if (format.kind == kF32) {
    __builtin_memcpy(record, x, sizeof(float) * n);
  } else if (format.kind == kBF16) {
    uint16_t* out = reinterpret_cast<uint16_t*>(record);
    for (int i = 0; i < 2 * n; i += kWidth) {
      const U16 rounded = to_bf16_halves(load(x + i));
      __builtin_memcpy(out + i, &rounded, 2 * min_of(2 * n - i, kWidth));
    }
  } else {
    int8_t* quants = reinterpret_cast<int8_t*>(record);
    float* scales = reinterpret_cast<float*>(record + n * kBlock);
    int32_t* offsets = reinterpret_cast<int32_t*>(scales + 2 * n);
    for (int i = 0; i < n; ++i)
      quantize_block(x + i * kBlock, quants + i * kBlock, scales + i, scales + n + i, offsets + i);
  }
}

}  // namespace DRAFTLINE_ISA
}  // namespace draftline
