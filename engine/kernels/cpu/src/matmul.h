// One tile of 16 outputs times 1 to 8 rows: the one loop that all matrix products are made of.
//
// Each row has sums of its own, added in ascending column order, so its bits do not depend on how many rows
// share the pass over the weights.

namespace draftline {
namespace DRAFTLINE_ISA {

template <int kRows>
static void dot_q4(const uint8_t* tile, const uint8_t* rows, int64_t stride, int num_units, F32* out) {
  F32 acc[kRows] = {};
  for (int unit = 0; unit < num_units; ++unit, tile += kQ4UnitBytes) {
    const F32 scale = load_half(tile), minimum = load_half(tile + 32);
    U8 weights[8];
    for (int line = 0; line < 4; ++line) {
      const U8 both = load_bytes(tile + 64 + 64 * line);
      weights[2 * line] = both & 0x0f;
      weights[2 * line + 1] = (U8)((U32)both >> 4) & 0x0f;
    }
DL_UNROLL(8)
    for (int row = 0; row < kRows; ++row) {
      const uint8_t* record = rows + row * stride;
      const uint8_t* quants = record + unit * kBlock;
      I32 first = {}, second = {};
DL_UNROLL(4)
      for (int group = 0; group < 4; ++group) {
        first = dot_bytes<true>(first, weights[2 * group], load_int(quants + 8 * group));
        second = dot_bytes<true>(second, weights[2 * group + 1], load_int(quants + 8 * group + 4));
      }
      const float* scales = reinterpret_cast<const float*>(record + num_units * kBlock) + unit;
      acc[row] = fma(__builtin_convertvector(first + second, F32), scale * splat(scales[0]), acc[row]);
      acc[row] = fma(minimum, splat(scales[num_units]), acc[row]);
    }
  }
  for (int row = 0; row < kRows; ++row) out[row] = acc[row];
}

template <int kRows>
static void dot_q8(const uint8_t* tile, const uint8_t* rows, int64_t stride, int num_units, F32* out) {
  F32 acc[kRows] = {};
  for (int unit = 0; unit < num_units; ++unit, tile += kQ8UnitBytes) {
    const F32 scale = load_half(tile);
    U8 weights[8];
    for (int line = 0; line < 8; ++line) weights[line] = load_bytes(tile + 32 + 64 * line);
DL_UNROLL(8)
    for (int row = 0; row < kRows; ++row) {
      const uint8_t* record = rows + row * stride;
      const uint8_t* quants = record + unit * kBlock;
      const float* scales = reinterpret_cast<const float*>(record + num_units * kBlock) + unit;
      I32 first = splat(load_int(scales + 2 * num_units)), second = {};  // the weights' offset of 128
DL_UNROLL(4)
      for (int group = 0; group < 4; ++group) {
        first = dot_bytes<false>(first, weights[2 * group], load_int(quants + 8 * group));
        second = dot_bytes<false>(second, weights[2 * group + 1], load_int(quants + 8 * group + 4));
      }
      acc[row] = fma(__builtin_convertvector(first + second, F32), scale * splat(scales[0]), acc[row]);
    }
  }
  for (int row = 0; row < kRows; ++row) out[row] = acc[row];
}

template <int kRows>
static void dot_bf16_tile(const uint8_t* tile, const uint8_t* rows, int64_t stride, int num_units, F32* out) {
  F32 even[kRows] = {}, odd[kRows] = {};  // two chains: one waits for its own last sum
  int unit = 0;
  for (; unit + 1 < num_units; unit += 2, tile += 128) {
    const U32 first = load_words(tile), second = load_words(tile + 64);
DL_UNROLL(8)
    for (int row = 0; row < kRows; ++row) {
      const uint8_t* pair = rows + row * stride + 4 * unit;
      even[row] = dot_bf16(even[row], first, load_int(pair));
      odd[row] = dot_bf16(odd[row], second, load_int(pair + 4));
    }
  }
  for (int row = 0; row < kRows; ++row) {
    if (unit < num_units) even[row] = dot_bf16(even[row], load_words(tile), load_int(rows + row * stride + 4 * unit));
    out[row] = even[row] + odd[row];
  }
}

template <int kRows>
static void dot_f32(const uint8_t* tile, const uint8_t* rows, int64_t stride, int num_units, F32* out) {
  F32 even[kRows] = {}, odd[kRows] = {};
  int unit = 0;
  for (; unit + 1 < num_units; unit += 2, tile += 128) {
    const float* weights = reinterpret_cast<const float*>(tile);
    const F32 first = load(weights), second = load(weights + kLanes);
DL_UNROLL(8)
    for (int row = 0; row < kRows; ++row) {
      const float* x = reinterpret_cast<const float*>(rows + row * stride) + unit;
      even[row] = fma(first, splat(x[0]), even[row]);
      odd[row] = fma(second, splat(x[1]), odd[row]);
    }
  }
  for (int row = 0; row < kRows; ++row) {
    const float* x = reinterpret_cast<const float*>(rows + row * stride) + unit;
    if (unit < num_units) even[row] = fma(load(reinterpret_cast<const float*>(tile)), splat(x[0]), even[row]);
    out[row] = even[row] + odd[row];
  }
}

using DotTile = void (*)(const uint8_t*, const uint8_t*, int64_t, int, F32*);

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
    case 5: return dot_tile_of<5>(kind);
    case 6: return dot_tile_of<6>(kind);
    case 7: return dot_tile_of<7>(kind);
    default: return dot_tile_of<8>(kind);
  }
}

// Rows of activations, all in one format.
struct Rows {
  RowFormat format;
  const uint8_t* records;
};

// Multiply `num_tiles` tiles with rows [begin, end), up to 8 at a time. `take(row, count, out)` gets
// out[tile][row], tile from 0; it sees each row once.
template <int kMaxTiles, class Take>
DL_INLINE void multiply_tiles(const Matrix& matrix, int first_tile, int num_tiles, const Rows& rows, int begin,
                              int end, Take take) {
  F32 out[kMaxTiles][kMaxRows];
  for (int row = begin; row < end; row += kMaxRows) {
    const int count = end - row < kMaxRows ? end - row : kMaxRows;
    const DotTile dot = choose_dot_tile(matrix.kind, count);
    for (int tile = 0; tile < num_tiles; ++tile) {
      const uint8_t* weights = matrix.data + (first_tile + tile) * matrix.tile_bytes;
      dot(weights, rows.records + row * rows.format.stride, rows.format.stride, rows.format.num_units, out[tile]);
      if (matrix.bias != nullptr) {
        const F32 bias = load(matrix.bias + (first_tile + tile) * kLanes);
        for (int i = 0; i < count; ++i) out[tile][i] = out[tile][i] + bias;
      }
    }
    take(row, count, out);
  }
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
      const float scale = load_half(unit)[lane];
      if (is_q4) {
        const uint8_t both = unit[64 + 64 * (group / 2) + 4 * lane + column % 4];
        out[column] = scale * ((both >> (4 * (group % 2))) & 0x0f) + load_half(unit + 32)[lane];
      } else {
        out[column] = scale * (unit[32 + 64 * group + 4 * lane + column % 4] - 128);
      }
    }
  }
}

}  // namespace DRAFTLINE_ISA
}  // namespace draftline
