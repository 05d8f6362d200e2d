// How keys, values and queries are stored, per KV dtype: a tile holds 16 positions of one head.
//
// Keys:   one line of 16 positions per dimension, pair (bf16) or quad (int8) of dimensions.
// Values: one row of dimensions per position, pair or quad of positions.
// So scores have positions in their lanes, and sums of values dimensions; no shuffle anywhere.

namespace draftline {
namespace DRAFTLINE_ISA {

struct KVBF16 {
  static int key_bytes(HeadShape s) { return (s.dim + 1) / 2 * 64; }
  static int value_bytes(HeadShape s) { return kTilePositions / 2 * s.padded_dim * 4; }
  static int query_bytes(HeadShape s) { return padded((s.dim + 1) / 2 * kPairBytes, 64); }
  static constexpr int kWeightBytes = kTilePositions / 2 * kPairBytes;  // of a row's softmax weights in one tile

  // Heads come padded with zeros.
  static void write_query(HeadShape s, const float* q, uint8_t* record) {
    for (int i = 0; i < s.dim; i += kWidth) store_pairs(record + i / 2 * kPairBytes, load(q + i), kWidth);
  }

  static void write_key(HeadShape s, const float* k, uint8_t* tile, int position) {
    uint16_t halves[kMaxHeadDim];
    for (int i = 0; i < s.dim; i += kWidth) {
      const U16 rounded = to_bf16_halves(load(k + i));
      __builtin_memcpy(halves + i, &rounded, sizeof rounded);
    }
    for (int pair = 0; pair < (s.dim + 1) / 2; ++pair)
      __builtin_memcpy(tile + 64 * pair + 4 * position, halves + 2 * pair, 4);
  }

  static void write_value(HeadShape s, const float* v, uint8_t* values, int position) {
    uint8_t* out = values + position / 2 * s.padded_dim * 4;
    for (int i = 0; i < s.dim; i += kWidth) store_every_other_half(out + 4 * i, to_bf16_halves(load(v + i)), position % 2);
  }

  // Scores of rows, one every kStrip floats, for the positions of kTiles tiles: so many sums are on their way at once.
  template <int kRows, int kTiles>
  static void scores(HeadShape s, const uint8_t* const* keys, const uint8_t* queries, int64_t stride, float* out) {
    for (int part = 0; part < kParts; part += kPartsAtOnce) {
      F32 acc[kTiles][kRows][kPartsAtOnce] = {};
      for (int pair = 0; pair < (s.dim + 1) / 2; ++pair) {
        DL_UNROLL(8)
        for (int tile = 0; tile < kTiles; ++tile) {
          const uint8_t* line = keys[tile] + 64 * pair + 4 * kWidth * part;
          add_pair<kRows, kPartsAtOnce>(line, queries + kPairBytes * pair, stride, acc[tile]);
        }
      }
      for (int tile = 0; tile < kTiles; ++tile)
        for (int i = 0; i < kPartsAtOnce; ++i)
          for (int row = 0; row < kRows; ++row)
            store(out + row * kStrip + tile * kTilePositions + (part + i) * kWidth, acc[tile][row][i]);
    }
  }

  // Softmax weights of a tile's positions as add_values reads them.
  static void write_weights(const float* weights, const uint8_t*, HeadShape, uint8_t* record) {
    for (int i = 0; i < kTilePositions; i += kWidth) store_pairs(record + i / 2 * kPairBytes, load(weights + i), kWidth);
  }

  template <int kRows, int kVectors>
  static void add_values(HeadShape s, const uint8_t* values, const uint8_t* weights, int64_t stride,
                         F32 (&acc)[kRows][kVectors]) {
    for (int pair = 0; pair < kTilePositions / 2; ++pair) {
      const uint8_t* line = values + pair * s.padded_dim * 4;
      add_pair<kRows, kVectors>(line, weights + kPairBytes * pair, stride, acc);
    }
  }
};

struct KVF32 {
  static int key_bytes(HeadShape s) { return s.dim * 64; }
  static int value_bytes(HeadShape s) { return kTilePositions * s.padded_dim * 4; }
  static int query_bytes(HeadShape s) { return padded(s.dim * 4, 64); }
  static constexpr int kWeightBytes = 4 * kTilePositions;

  static void write_query(HeadShape s, const float* q, uint8_t* record) { __builtin_memcpy(record, q, 4 * s.dim); }

  static void write_key(HeadShape s, const float* k, uint8_t* tile, int position) {
    float* out = reinterpret_cast<float*>(tile) + position;
    for (int i = 0; i < s.dim; ++i) out[i * kTilePositions] = k[i];
  }

  static void write_value(HeadShape s, const float* v, uint8_t* values, int position) {
    __builtin_memcpy(values + position * s.padded_dim * 4, v, 4 * s.dim);
  }

  template <int kRows, int kTiles>
  static void scores(HeadShape s, const uint8_t* const* keys, const uint8_t* queries, int64_t stride, float* out) {
    for (int part = 0; part < kParts; ++part) {
      F32 acc[kTiles][kRows] = {};
      for (int i = 0; i < s.dim; ++i) {
        DL_UNROLL(8)
        for (int tile = 0; tile < kTiles; ++tile) {
          const F32 line = load(reinterpret_cast<const float*>(keys[tile]) + kTilePositions * i + kWidth * part);
          DL_UNROLL(9)
          for (int row = 0; row < kRows; ++row)
            acc[tile][row] = fma(line, splat(reinterpret_cast<const float*>(queries + row * stride)[i]), acc[tile][row]);
        }
      }
      for (int tile = 0; tile < kTiles; ++tile)
        for (int row = 0; row < kRows; ++row)
          store(out + row * kStrip + tile * kTilePositions + part * kWidth, acc[tile][row]);
    }
  }

  static void write_weights(const float* weights, const uint8_t*, HeadShape, uint8_t* record) {
    __builtin_memcpy(record, weights, kWeightBytes);
  }

  template <int kRows, int kVectors>
  static void add_values(HeadShape s, const uint8_t* values, const uint8_t* weights, int64_t stride,
                         F32 (&acc)[kRows][kVectors]) {
    for (int position = 0; position < kTilePositions; ++position) {
      const float* line = reinterpret_cast<const float*>(values) + position * s.padded_dim;
      DL_UNROLL(4)
      for (int row = 0; row < kRows; ++row) {
        const F32 weight = splat(reinterpret_cast<const float*>(weights + row * stride)[position]);
        DL_UNROLL(4)
        for (int i = 0; i < kVectors; ++i) acc[row][i] = fma(load(line + kWidth * i), weight, acc[row][i]);
      }
    }
  }
};

// int8 with a scale per position and head. Byte products have an unsigned side: keys, stored with 128 added, and
// softmax weights, which are never negative. Those take each value's scale along and have one scale per tile.
struct KVInt8 {
  static int quads(HeadShape s) { return (s.dim + 3) / 4; }
  static int key_bytes(HeadShape s) { return quads(s) * 64 + 64; }
  static int value_bytes(HeadShape s) { return kTilePositions / 4 * s.padded_dim * 4 + 64; }
  static int query_bytes(HeadShape s) { return padded(quads(s) * 4 + 8, 64); }
  static constexpr int kWeightBytes = kTilePositions + 4;

  // Heads come padded with zeros.
  static void write_query(HeadShape s, const float* q, uint8_t* record) {
    uint8_t quants[kMaxHeadDim];
    const Quantized query = quantize_bytes<127>(q, s.padded_dim, 0, quants);
    const int32_t offset = static_cast<int32_t>(-128.0f * query.total);
    __builtin_memcpy(record, quants, 4 * quads(s));
    __builtin_memcpy(record + 4 * quads(s), &offset, 4);
    __builtin_memcpy(record + 4 * quads(s) + 4, &query.scale, 4);
  }

  static void write_key(HeadShape s, const float* k, uint8_t* tile, int position) {
    uint8_t quants[kMaxHeadDim];
    const Quantized key = quantize_bytes<127>(k, s.padded_dim, 128, quants);
    reinterpret_cast<float*>(tile + quads(s) * 64)[position] = key.scale;
    for (int quad = 0; quad < quads(s); ++quad) __builtin_memcpy(tile + 64 * quad + 4 * position, quants + 4 * quad, 4);
  }

  static void write_value(HeadShape s, const float* v, uint8_t* values, int position) {
    uint8_t quants[kMaxHeadDim];
    const Quantized value = quantize_bytes<127>(v, s.padded_dim, 0, quants);
    reinterpret_cast<float*>(values + value_bytes(s) - 64)[position] = value.scale;
    uint8_t* out = values + position / 4 * s.padded_dim * 4;
    for (int i = 0; i < s.dim; i += kWidth) store_every_fourth_byte(out + 4 * i, quants + i, position % 4);
  }

  template <int kRows, int kTiles>
  static void scores(HeadShape s, const uint8_t* const* keys, const uint8_t* queries, int64_t stride, float* out) {
    const int num_quads = quads(s);
    for (int part = 0; part < kParts; ++part) {
      I32 acc[kTiles][kRows];
      for (int tile = 0; tile < kTiles; ++tile)
        for (int row = 0; row < kRows; ++row) acc[tile][row] = splat(load_int(queries + row * stride + 4 * num_quads));
      for (int quad = 0; quad < num_quads; ++quad) {
        DL_UNROLL(8)
        for (int tile = 0; tile < kTiles; ++tile) {
          const U8 line = load_bytes(keys[tile] + 64 * quad + 4 * kWidth * part);
          DL_UNROLL(9)
          for (int row = 0; row < kRows; ++row)
            acc[tile][row] = dot_bytes(acc[tile][row], line, load_int(queries + row * stride + 4 * quad));
        }
      }
      for (int tile = 0; tile < kTiles; ++tile) {
        const F32 scales = load(reinterpret_cast<const float*>(keys[tile] + 64 * num_quads) + kWidth * part);
        for (int row = 0; row < kRows; ++row) {
          float scale;
          __builtin_memcpy(&scale, queries + row * stride + 4 * num_quads + 4, 4);
          store(out + row * kStrip + tile * kTilePositions + part * kWidth,
                __builtin_convertvector(acc[tile][row], F32) * (scales * splat(scale)));
        }
      }
    }
  }

  static void write_weights(const float* weights, const uint8_t* values, HeadShape s, uint8_t* record) {
    const float* scales = reinterpret_cast<const float*>(values + value_bytes(s) - 64);
    alignas(64) float scaled[kTilePositions];
    for (int i = 0; i < kTilePositions; i += kWidth) store(scaled + i, load(weights + i) * load(scales + i));
    const Quantized quantized = quantize_bytes<255>(scaled, kTilePositions, 0, record);
    __builtin_memcpy(record + kTilePositions, &quantized.scale, 4);
  }

  template <int kRows, int kVectors>
  static void add_values(HeadShape s, const uint8_t* values, const uint8_t* weights, int64_t stride,
                         F32 (&acc)[kRows][kVectors]) {
    for (int row = 0; row < kRows; ++row) {
      const uint8_t* record = weights + row * stride;
      float scale;
      __builtin_memcpy(&scale, record + kTilePositions, 4);
      for (int i = 0; i < kVectors; ++i) {
        I32 total = {};
        for (int quad = 0; quad < kTilePositions / 4; ++quad)
          total = dot_signed_bytes(total, load_bytes(values + quad * s.padded_dim * 4 + 4 * kWidth * i),
                                   load_int(record + 4 * quad));
        acc[row][i] = fma(__builtin_convertvector(total, F32), splat(scale), acc[row][i]);
      }
    }
  }
};

}  // namespace DRAFTLINE_ISA
}  // namespace draftline
