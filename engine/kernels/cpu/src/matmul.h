// One tile of 16 outputs times a few rows: the one loop that all matrix products are made of.
//
// Each row has sums of its own, added in ascending column order, so its bits do not depend on how many rows
// share the pass over the weights.

namespace draftline {
namespace DRAFTLINE_ISA {

// Two chains of sums: one would wait for its own last sum.
template <int kRows>
static void dot_bf16_tile(const uint8_t* tile, const uint8_t* rows, int64_t stride, int num_units,
                          float (*out)[kLanes], Ahead) {
  for (int part = 0; part < kParts; ++part) {
    F32 even[kRows] = {}, odd[kRows] = {};
    const uint8_t* weights = tile + 4 * kWidth * part;
    for (int unit = 0; unit + 1 < num_units; unit += 2) {
      U32 first = load_words(weights + 64 * unit), second = load_words(weights + 64 * unit + 64);
      keep_in_register(first), keep_in_register(second);
      DL_UNROLL(9)
      for (int row = 0; row < kRows; ++row) {
        const uint8_t* pair = rows + row * stride + kPairBytes * unit;
        even[row] = dot_bf16(even[row], first, load_pair(pair));
        odd[row] = dot_bf16(odd[row], second, load_pair(pair + kPairBytes));
      }
    }
    if (num_units % 2 != 0) {
      const U32 last = load_words(weights + 64 * (num_units - 1));
      for (int row = 0; row < kRows; ++row)
        even[row] = dot_bf16(even[row], last, load_pair(rows + row * stride + kPairBytes * (num_units - 1)));
    }
    for (int row = 0; row < kRows; ++row) even[row] = even[row] + odd[row];
    store_rows<kRows>(even, out, part);
  }
}

template <int kRows>
static void dot_f32(const uint8_t* tile, const uint8_t* rows, int64_t stride, int num_units, float (*out)[kLanes],
                    Ahead) {
  const float* weights = reinterpret_cast<const float*>(tile);
  for (int part = 0; part < kParts; ++part) {
    F32 totals[kRows] = {};
    // Sums of 64 columns first: rounding then grows with their number, not with the row's length.
    for (int begin = 0; begin < num_units; begin += 64) {
      F32 acc[kRows] = {};
      for (int unit = begin; unit < min_of(begin + 64, num_units); ++unit) {
        const F32 line = load(weights + kLanes * unit + kWidth * part);
        DL_UNROLL(9)
        for (int row = 0; row < kRows; ++row)
          acc[row] = fma(line, splat(reinterpret_cast<const float*>(rows + row * stride)[unit]), acc[row]);
      }
      for (int row = 0; row < kRows; ++row) totals[row] = totals[row] + acc[row];
    }
    store_rows<kRows>(totals, out, part);
  }
}

using DotTile = void (*)(const uint8_t*, const uint8_t*, int64_t, int, float (*)[kLanes], Ahead);

template <int kRows>
DL_INLINE DotTile dot_tile_of(int32_t kind) {
  switch (kind) {
    case kQ4: return dot_q4<kRows>;
    case kQ8: return dot_q8<kRows>;
    case kBF16: return dot_bf16_tile<kRows>;
    default: return dot_f32<kRows>;
  }
}

DL_INLINE DotTile choose_dot_tile(int32_t kind, int num_rows) {
  switch (num_rows) {
    case 1: return dot_tile_of<1>(kind);
    case 2: return dot_tile_of<2>(kind);
    case 3: return dot_tile_of<3>(kind);
    case 4: return dot_tile_of<4>(kind);
    case 5: return dot_tile_of<min_of(5, kMaxRows)>(kind);
    case 6: return dot_tile_of<min_of(6, kMaxRows)>(kind);
    case 7: return dot_tile_of<min_of(7, kMaxRows)>(kind);
    case 8: return dot_tile_of<min_of(8, kMaxRows)>(kind);
    default: return dot_tile_of<kMaxRows>(kind);
  }
}

// Rows of activations, all in one format.
struct Rows {
  RowFormat format;
  const uint8_t* records;
};

// Multiply `num_tiles` tiles with rows [begin, end), a few at a time. `take(row, count, out)` gets
// out[tile][row][lane], tile from 0; it sees each row once. `ahead`, if any, is asked for meanwhile.
template <int kMaxTiles, class Take>
DL_INLINE void multiply_tiles(const Matrix& matrix, int first_tile, int num_tiles, const Rows& rows, int begin,
                              int end, KVAhead* ahead, Take take) {
  alignas(64) float out[kMaxTiles][kMaxRows][kLanes];
  for (int row = begin; row < end; row += kMaxRows) {
    const int count = min_of(kMaxRows, end - row);
    const DotTile dot = choose_dot_tile(matrix.kind, count);
    for (int tile = 0; tile < num_tiles; ++tile) {
      const uint8_t* weights = matrix.data + (first_tile + tile) * matrix.tile_bytes;
      dot(weights, rows.records + row * rows.format.stride, rows.format.stride, rows.format.num_units, out[tile],
          ahead == nullptr ? Ahead{nullptr, 0} : ahead->take(matrix.num_units));
      if (matrix.bias == nullptr) continue;
      const float* bias = matrix.bias + (first_tile + tile) * kLanes;
      for (int i = 0; i < count; ++i)
        for (int lane = 0; lane < kLanes; ++lane) out[tile][i][lane] += bias[lane];
    }
    take(row, count, out);
  }
}

DL_INLINE float half_at(const uint8_t* halves, int lane) {
  return load_half(halves + lane / kWidth * kWidth * 2)[lane % kWidth];
}

// Write row `index` of a matrix as floats, as many as its columns.
static void read_row(const Matrix& matrix, int index, float* out) {
  const uint8_t* tile = matrix.data + (index / kLanes) * matrix.tile_bytes;
  const int lane = index % kLanes;
  for (int column = 0; column < matrix.num_columns; ++column) {
    if (matrix.kind == kF32) {
      out[column] = reinterpret_cast<const float*>(tile)[column * kLanes + lane];
    } else if (matrix.kind == kBF16) {
      const uint16_t* pairs = reinterpret_cast<const uint16_t*>(tile);
      const uint32_t bits = static_cast<uint32_t>(pairs[(column / 2 * kLanes + lane) * 2 + column % 2]) << 16;
      __builtin_memcpy(out + column, &bits, 4);
    } else {
      const bool is_q4 = matrix.kind == kQ4;
      const uint8_t* unit = tile + column / kBlock * (is_q4 ? kQ4UnitBytes : kQ8UnitBytes);
      const int group = column % kBlock / 4;
      const float scale = half_at(unit, lane);
      if (is_q4) {
        const uint8_t both = unit[64 + 64 * (group / 2) + 4 * lane + column % 4];
        out[column] = scale * ((both >> (4 * (group % 2))) & 0x0f) + half_at(unit + 32, lane);
      } else {
        out[column] = scale * (unit[32 + 64 * group + 4 * lane + column % 4] - 128);
      }
    }
  }
}

}  // namespace DRAFTLINE_ISA
}  // namespace draftline
