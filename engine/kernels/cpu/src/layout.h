// Sizes and working memory that every instruction set shares.
#pragma once
#include <cstdint>

#include "abi.h"
#include "threads.h"

namespace draftline {

constexpr int kLanes = 16;
constexpr int kBlock = 32;             // columns that share a scale
constexpr int kQ4UnitBytes = 320;      // 16 scales, 16 minima (half precision), 4 lines of nibbles
constexpr int kQ8UnitBytes = 544;      // 16 scales, 8 lines of bytes
constexpr int kTilePositions = 16;     // of keys and values in one tile
constexpr int kStrip = 128;            // positions whose softmax is taken at once
constexpr int kSplit = 512;            // positions of a partial softmax
constexpr int kStripTiles = kStrip / kTilePositions;
constexpr int kQueryTile = 9;          // query positions of one unit of attention
constexpr int kHeadsPerUnit = 8;       // at most
constexpr int kUnitRows = kQueryTile * kHeadsPerUnit;
constexpr int kMaxHeadDim = 256;
constexpr int kRowsPrepared = 9;       // by every thread for itself, at most
constexpr int kMaxPhasesPerLayer = 8;

// From so many rows on a pass computes longer than its tile of weights takes to arrive, and asks for the next tile
// meanwhile: else memory would idle while processors work and the other way round. With fewer rows memory is the
// limit anyway.
constexpr int kRowsThatFetch = 3;

inline constexpr int padded(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }
inline constexpr int min_of(int a, int b) { return a < b ? a : b; }
inline constexpr int num_splits(int num_positions) { return (num_positions + kSplit - 1) / kSplit; }

struct HeadShape {
  int dim;
  int padded_dim;  // rounded up to lanes
};

// Some query tokens of one request, some heads that share their keys, one split of the positions.
struct AttentionUnit {
  int32_t first_row, num_tokens, first_position;
  const int32_t* block_table;
  int32_t first_head, num_heads, kv_head, split;
};

// A partial softmax of one row and head: highest score, sum of weights, weighted sum of values.
struct Partial {
  float highest, sum;
  float padding[14];
  float values[kMaxHeadDim];  // only the head's padded length is there
};

inline constexpr int64_t partial_bytes(HeadShape shape) { return 64 + 4 * shape.padded_dim; }

// Attention's memory of one thread; rows lie side by side.
struct AttentionScratch {
  alignas(64) float scores[kUnitRows][kStrip];
  alignas(64) uint8_t weights[kUnitRows][kStripTiles * 4 * kTilePositions];
  alignas(64) uint8_t queries[kUnitRows * kMaxHeadDim * 4];
};

// Where a row of a step stands.
struct RowPlace {
  int32_t position;
  int32_t first_partial;  // of its splits, in units of all heads
  int64_t tile;           // of its keys and values
};

// What the threads of one step work on. Strides are in elements of the pointer beside them, or bytes.
struct Step {
  const Model* model;
  const KVTiles* kv;
  Pool* pool;
  int32_t num_rows;
  const int64_t* token_ids;
  const RowPlace* rows;
  const Span* spans;
  int32_t num_spans;
  const int32_t* block_tables;
  const AttentionUnit* attention_units;
  int32_t num_attention_units;
  HeadShape shape;
  int32_t key_bytes;
  uint8_t* faults;  // [num_rows], set for rows whose keys or values are not finite; may be null
  const int32_t* kept_rows;  // of which alone `end` computes what lies behind the last layer's keys and values
  Step* end;                 // null: all rows are kept

  float* hidden;  // [num_rows, hidden_stride]
  int64_t hidden_stride;
  float* logits;  // [num_rows, vocab_size]
  uint8_t* inner_records;  // of rows between the two matrices of the feed-forward
  uint8_t* queries;  // [num_rows, num_heads] records
  int64_t query_stride;
  uint8_t* partials;
  int64_t partial_stride;

  // Of each thread:
  float* row_values;
  int64_t row_values_stride;
  uint8_t* own_records;
  int64_t own_records_stride;
  uint8_t* unused_partials;
  uint8_t* scratch;
  int64_t scratch_stride;

  uint8_t* shared_records;
};

// Rows of logits that become tokens.
struct SampleJob {
  Pool* pool;
  const float* logits;
  int64_t stride;
  int32_t num_rows, vocab_size;
  const RowSampling* rows;
  int64_t* tokens;
  uint8_t* faults;  // [num_rows], set for rows with logits that are NaN or infinitely high; may be null
  float* memory;  // of each thread
  int64_t memory_stride;
};

// The kernels of one instruction set.
struct Kernels {
  const char* name;
  void (*forward)(void* step, int thread);
  void (*compute_logits)(void* step, int thread);
  void (*sample)(void* job, int thread);
  int64_t (*record_bytes)(const Matrix* reader);
  void (*kv_sizes)(int32_t kind, int head_dim, int32_t* key_bytes, int32_t* value_bytes, int32_t* query_bytes);
};

// Best first; null where this build or this processor lacks it.
const Kernels* avx512_bf16_kernels();
const Kernels* avx512_kernels();
const Kernels* avx2_kernels();
const Kernels* portable_kernels();

}  // namespace draftline
