// Attention over paged keys and values: partial softmaxes over fixed splits, merged in ascending order.
//
// A split is 512 positions, worked through in strips of 128; what a row sees of them depends on its own
// position alone. Masked weights are exactly 0, so neighbours that see more or less change no bit.
// (Online softmax: arXiv 1805.02867, 2205.14135.)

namespace draftline {
namespace DRAFTLINE_ISA {

// Tiles of keys whose scores are wanted, and those that come after them.
struct KeyTiles {
  const uint8_t* at[kStripTiles + kMostScoredTiles];
  int count, num_known;
};

// Sums of one row and tile wait for one another, so a few rows go through several tiles at once.
template <class KV, int kRows>
DL_INLINE void score_tiles(HeadShape s, const KeyTiles& keys, const uint8_t* queries, int64_t stride, float* out) {
  constexpr int kTiles = kRows == 1 ? kMostScoredTiles : 2 * kRows * kPartsAtOnce <= kMostScores ? 2 : 1;
  int tile = 0;
  for (; tile + kTiles <= keys.count; tile += kTiles) {
    // Tiles of a request lie in blocks far apart: no processor guesses where the next one is.
    for (int next = tile + kTiles; next < min_of(tile + 2 * kTiles, keys.num_known); ++next)
      fetch(keys.at[next], KV::key_bytes(s) + KV::value_bytes(s));
    KV::template scores<kRows, kTiles>(s, keys.at + tile, queries, stride, out + tile * kTilePositions);
  }
  for (; tile < keys.count; ++tile)
    KV::template scores<kRows, 1>(s, keys.at + tile, queries, stride, out + tile * kTilePositions);
}

template <class KV>
DL_INLINE void score_rows(HeadShape s, const KeyTiles& keys, const uint8_t* queries, int64_t stride, int num_rows,
                          float* out) {
  switch (num_rows) {
    case 1: return score_tiles<KV, 1>(s, keys, queries, stride, out);
    case 2: return score_tiles<KV, 2>(s, keys, queries, stride, out);
    case 3: return score_tiles<KV, 3>(s, keys, queries, stride, out);
    case 4: return score_tiles<KV, 4>(s, keys, queries, stride, out);
    case 5: return score_tiles<KV, min_of(5, kMaxRows)>(s, keys, queries, stride, out);
    case 6: return score_tiles<KV, min_of(6, kMaxRows)>(s, keys, queries, stride, out);
    case 7: return score_tiles<KV, min_of(7, kMaxRows)>(s, keys, queries, stride, out);
    case 8: return score_tiles<KV, min_of(8, kMaxRows)>(s, keys, queries, stride, out);
    default: return score_tiles<KV, kMaxRows>(s, keys, queries, stride, out);
  }
}

// values = values * correction + weights * V for kRows rows and kVectors vectors of dimensions.
template <class KV, int kRows, int kVectors>
static void update_values(HeadShape s, const uint8_t* const* value_tiles, int num_tiles, int first_vector,
                          const uint8_t* weights, int64_t stride, const float* corrections, float* const* values) {
  F32 acc[kRows][kVectors];
  for (int row = 0; row < kRows; ++row)
    for (int i = 0; i < kVectors; ++i)
      acc[row][i] = load(values[row] + (first_vector + i) * kWidth) * splat(corrections[row]);
  for (int tile = 0; tile < num_tiles; ++tile)
    KV::template add_values<kRows, kVectors>(s, value_tiles[tile] + first_vector * 4 * kWidth,
                                             weights + tile * KV::kWeightBytes, stride, acc);
  for (int row = 0; row < kRows; ++row)
    for (int i = 0; i < kVectors; ++i) store(values[row] + (first_vector + i) * kWidth, acc[row][i]);
}

template <class KV, int kRows>
static void update_row_values(HeadShape s, const uint8_t* const* value_tiles, int num_tiles, const uint8_t* weights,
                              int64_t stride, const float* corrections, float* const* values) {
  int vector = 0;
  const int num_vectors = s.padded_dim / kWidth;
  for (; vector + kMaxVectors <= num_vectors; vector += kMaxVectors)
    update_values<KV, kRows, kMaxVectors>(s, value_tiles, num_tiles, vector, weights, stride, corrections, values);
  for (; vector < num_vectors; ++vector)
    update_values<KV, kRows, 1>(s, value_tiles, num_tiles, vector, weights, stride, corrections, values);
}

struct AttentionInput {
  HeadShape shape;
  const uint8_t* queries;  // [rows][num_heads] records
  int64_t query_stride;    // bytes between heads; rows are num_heads of them apart
  int32_t num_heads;
  const uint8_t* kv_layer;
  int64_t head_stride, tile_stride;
  int32_t tiles_per_block;
  int32_t key_bytes;
};

// Keys and values of 16 positions.
DL_INLINE const uint8_t* tile_at(const AttentionInput& in, const AttentionUnit& unit, int number) {
  const int64_t block = unit.block_table[number / in.tiles_per_block];
  const int64_t tile = block * in.tiles_per_block + number % in.tiles_per_block;
  return in.kv_layer + unit.kv_head * in.head_stride + tile * in.tile_stride;
}

// Turns a row's scores of one strip into weights; returns the factor for what was summed before.
template <class KV>
DL_INLINE float weigh(HeadShape s, float* scores, int num_tiles, int num_visible, const uint8_t* const* value_tiles,
                      uint8_t* weights, Partial* partial) {
  F32 most = splat(-__builtin_inff());
  for (int i = 0; i < num_tiles * kTilePositions; i += kWidth) {
    F32 x = load(scores + i);
    if (num_visible < i + kWidth) {
      x = select(lane_numbers() < splat(num_visible - i), x, splat(-__builtin_inff()));
      store(scores + i, x);
    }
    most = max(most, x);
  }
  const float strip_highest = highest(most);
  const float new_highest = partial->highest > strip_highest ? partial->highest : strip_highest;
  F32 total = {};
  for (int i = 0; i < num_tiles * kTilePositions; i += kWidth) {
    // A row that sees nothing of the strip has no highest score to compare with.
    const F32 weight = num_visible > 0 ? exponential(load(scores + i) - splat(new_highest)) : F32{};
    total = total + weight;
    store(scores + i, weight);
  }
  for (int tile = 0; tile < num_tiles; ++tile)
    KV::write_weights(scores + tile * kTilePositions, value_tiles[tile], s, weights + tile * KV::kWeightBytes);
  if (num_visible <= 0) return 1.0f;
  const float correction = exponential(splat(partial->highest - new_highest))[0];
  partial->sum = partial->sum * correction + sum(total);
  partial->highest = new_highest;
  return correction;
}

template <class KV>
DL_INLINE void score_strip(const AttentionInput& in, AttentionScratch& scratch, int num_rows, KeyTiles& keys) {
  for (int row = 0; row < num_rows; row += kMaxRows) {
    const int count = min_of(num_rows - row, kMaxRows);
    score_rows<KV>(in.shape, keys, scratch.queries + row * in.query_stride, in.query_stride, count,
                   scratch.scores[row]);
    keys.num_known = 0;  // the next are asked for once
  }
}

template <class KV>
DL_INLINE void add_strip(HeadShape s, const AttentionScratch& scratch, int num_rows, const uint8_t* const* value_tiles,
                         int num_tiles, const float* corrections, float* const* values) {
  constexpr int64_t kStride = sizeof scratch.weights[0];
  for (int row = 0; row < num_rows; row += 4) {
    const uint8_t* weights = scratch.weights[row];
    switch (num_rows - row) {
      case 1: update_row_values<KV, 1>(s, value_tiles, num_tiles, weights, kStride, corrections + row, values + row); break;
      case 2: update_row_values<KV, 2>(s, value_tiles, num_tiles, weights, kStride, corrections + row, values + row); break;
      case 3: update_row_values<KV, 3>(s, value_tiles, num_tiles, weights, kStride, corrections + row, values + row); break;
      default: update_row_values<KV, 4>(s, value_tiles, num_tiles, weights, kStride, corrections + row, values + row);
    }
  }
}

// Fill the partials of a unit, one per (token, head), tokens first.
template <class KV>
static void attend(const AttentionInput& in, const AttentionUnit& unit, Partial* const* partials,
                   AttentionScratch& scratch) {
  const HeadShape s = in.shape;
  const int num_rows = unit.num_tokens * unit.num_heads;
  float corrections[kUnitRows];
  float* values[kUnitRows];
  for (int row = 0; row < num_rows; ++row) {
    const int64_t token = unit.first_row + row / unit.num_heads, head = unit.first_head + row % unit.num_heads;
    const uint8_t* query = in.queries + (token * in.num_heads + head) * in.query_stride;
    __builtin_memcpy(scratch.queries + row * in.query_stride, query, in.query_stride);
    partials[row]->highest = -__builtin_inff();
    partials[row]->sum = 0.0f;
    values[row] = partials[row]->values;
    for (int i = 0; i < s.padded_dim; i += kWidth) store(values[row] + i, F32{});
  }
  const int end = min_of(unit.first_position + unit.num_tokens, (unit.split + 1) * kSplit);
  for (int begin = unit.split * kSplit; begin < end; begin += kStrip) {
    const int num_tiles = (min_of(kStrip, end - begin) + kTilePositions - 1) / kTilePositions;
    const int num_left = (end - begin + kTilePositions - 1) / kTilePositions;
    KeyTiles keys{{}, num_tiles, min_of(num_left, kStripTiles + kMostScoredTiles)};
    const uint8_t* value_tiles[kStripTiles];
    for (int tile = 0; tile < keys.num_known; ++tile) keys.at[tile] = tile_at(in, unit, begin / kTilePositions + tile);
    for (int tile = 0; tile < num_tiles; ++tile) value_tiles[tile] = keys.at[tile] + in.key_bytes;
    score_strip<KV>(in, scratch, num_rows, keys);
    for (int row = 0; row < num_rows; ++row) {
      const int num_visible = unit.first_position + row / unit.num_heads + 1 - begin;
      corrections[row] = weigh<KV>(s, scratch.scores[row], num_tiles, num_visible, value_tiles, scratch.weights[row],
                                   partials[row]);
    }
    add_strip<KV>(s, scratch, num_rows, value_tiles, num_tiles, corrections, values);
  }
}

// The whole softmax of one row and head from its partials, `stride` bytes apart.
static void merge_partials(HeadShape s, const uint8_t* first, int64_t stride, int count, float* out) {
  const Partial* partial = reinterpret_cast<const Partial*>(first);
  float most = partial->highest, total = partial->sum;
  for (int i = 0; i < s.padded_dim; i += kWidth) store(out + i, load(partial->values + i));
  for (int split = 1; split < count; ++split) {
    partial = reinterpret_cast<const Partial*>(first + split * stride);
    const float higher = most > partial->highest ? most : partial->highest;
    const float before = exponential(splat(most - higher))[0], here = exponential(splat(partial->highest - higher))[0];
    total = total * before + partial->sum * here;
    most = higher;
    for (int i = 0; i < s.padded_dim; i += kWidth)
      store(out + i, fma(load(partial->values + i), splat(here), load(out + i) * splat(before)));
  }
  for (int i = 0; i < s.padded_dim; i += kWidth) store(out + i, load(out + i) * splat(1.0f / total));
}

}  // namespace DRAFTLINE_ISA
}  // namespace draftline
