// The plain C interface of the CPU kernels: every struct here is mirrored field by field in library.py.
#pragma once
#include <cstdint>

#define DRAFTLINE_ABI_VERSION 10

extern "C" {

// How the weights of a matrix are stored. Every kind is cut into tiles of 16 rows (outputs).
enum MatrixKind : int32_t {
  kQ4 = 0,    // 4-bit blocks of 32 columns with scale and minimum (GGUF Q4_1, Q4_0)
  kQ8 = 1,    // 8-bit blocks of 32 columns with a scale (GGUF Q8_0)
  kBF16 = 2,  // column pairs
  kF32 = 3,
};

struct Matrix {
  const uint8_t* data;  // packed tiles, 64-byte aligned
  const float* bias;    // [num_tiles * 16] or null
  int32_t kind;
  int32_t num_columns;  // inputs, as the model knows them
  int32_t num_tiles;    // outputs / 16, rounded up
  int32_t num_units;    // column blocks (quantised), pairs (bf16) or columns (f32) of a tile
  int64_t tile_bytes;
};

struct Layer {
  Matrix qkv;      // one head after the other: query heads, key heads, value heads, each padded to tiles
  Matrix o;        // residual += o(attention)
  Matrix gate_up;  // gated: tiles of gate and up in turn; else up alone
  Matrix down;     // residual += down(activation)
  const float* attn_norm_weight;
  const float* attn_norm_bias;  // null for RMSNorm, as below
  const float* mlp_norm_weight;
  const float* mlp_norm_bias;
  const float* q_norm_weight;  // RMSNorm of each head before rotation, or null
  const float* k_norm_weight;
};

enum NormKind : int32_t { kRMSNorm = 0, kLayerNorm = 1 };
enum ActivationKind : int32_t { kSilu = 0, kGelu = 1, kGeluTanh = 2 };

struct Model {
  const Layer* layers;
  Matrix embed;                  // rows are looked up
  Matrix head;                   // rows are multiplied: the same data when tied
  const float* embed_positions;  // [max_positions, hidden_size] or null
  const float* rope_cos;         // [max_positions, head_dim / 2] or null
  const float* rope_sin;
  const float* norm_weight;
  const float* norm_bias;
  int32_t num_layers, hidden_size, inner_size, num_heads, num_kv_heads, head_dim, vocab_size;
  int32_t norm_kind, activation, is_gated;
  float norm_eps, attention_scale;
};

enum KVKind : int32_t { kKVBF16 = 0, kKVF32 = 1, kKVInt8 = 2 };

// Keys and values in tiles of 16 positions: base + tile * tile_stride + layer * layer_stride + kv_head * head_stride.
// All of a block lies together: a few large pages hold a request, where one page for each tile would not fit the
// processor's address cache.
struct KVTiles {
  uint8_t* base;
  int64_t tile_stride, layer_stride, head_stride;
  int32_t kind;
  int32_t tiles_per_block;
};

// The new tokens of one request in a step.
struct Span {
  int32_t first_row;
  int32_t num_tokens;
  int32_t first_position;
  int32_t table_offset;  // of its block ids in the step's block_tables
};

// How one row of logits becomes a token.
struct RowSampling {
  float temperature;  // 0: greedy, and nothing below matters
  float top_p;        // 1: off
  float min_p;        // 0: off
  int32_t top_k;      // 0: off
  uint32_t noise_low, noise_high;  // the row's noise key
};

struct Context;  // threads and working memory; one step at a time

struct StepTimes {
  uint64_t step_nanoseconds, barrier_nanoseconds;  // barrier: summed over threads
  uint64_t num_steps, num_barriers;
};
}
