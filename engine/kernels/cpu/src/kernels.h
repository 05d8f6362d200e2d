// All kernels for one instruction set: include from an isa_*.cpp file, inside its target region.
#include "simd.h"
#include "quantize.h"
#include "kv_ahead.h"
#if defined(DRAFTLINE_AVX2)
#include "blocks_avx2.h"
#else
#include "blocks.h"
#endif
#include "matmul.h"
#include "kv_tile.h"
#include "attention.h"
#include "elementwise.h"
#include "step.h"
#include "sample.h"

namespace draftline {
namespace DRAFTLINE_ISA {

static void forward(void* step, int thread) { StepThread(*static_cast<Step*>(step), thread).forward(); }

static void compute_logits(void* step, int thread) { StepThread(*static_cast<Step*>(step), thread).compute_logits(); }

// Rows are the units of one phase.
static void sample(void* argument, int thread) {
  const SampleJob& job = *static_cast<SampleJob*>(argument);
  UnitCounter* counters = job.pool->next_counters(thread);
  for (int row; (row = counters->next.fetch_add(1, std::memory_order_relaxed)) < job.num_rows;)
    job.tokens[row] = sample_row(job.logits + row * job.stride, job.vocab_size, job.rows[row],
                                 job.memory + thread * job.memory_stride,
                                 job.faults == nullptr ? nullptr : job.faults + row);
}

static int64_t record_bytes(const Matrix* reader) { return row_format(*reader).stride; }

template <class KV>
static void sizes_of(HeadShape s, int32_t* key_bytes, int32_t* value_bytes, int32_t* query_bytes) {
  *key_bytes = KV::key_bytes(s);
  *value_bytes = KV::value_bytes(s);
  *query_bytes = KV::query_bytes(s);
}

static void kv_sizes(int32_t kind, int head_dim, int32_t* key_bytes, int32_t* value_bytes, int32_t* query_bytes) {
  const HeadShape s{head_dim, padded(head_dim, kLanes)};
  switch (kind) {
    case kKVBF16: return sizes_of<KVBF16>(s, key_bytes, value_bytes, query_bytes);
    case kKVF32: return sizes_of<KVF32>(s, key_bytes, value_bytes, query_bytes);
    default: return sizes_of<KVInt8>(s, key_bytes, value_bytes, query_bytes);
  }
}

#define DL_STRING_OF(x) #x
#define DL_STRING(x) DL_STRING_OF(x)
static const Kernels table = {DL_STRING(DRAFTLINE_ISA), forward, compute_logits, sample, record_bytes, kv_sizes};

}  // namespace DRAFTLINE_ISA
}  // namespace draftline
