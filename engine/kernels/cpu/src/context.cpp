// The exported functions, and the working memory that steps share. Those that return a Status must be asked for it.
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <new>

#include "layout.h"
#include "plan.h"

#define DRAFTLINE_EXPORT extern "C" __attribute__((visibility("default")))

namespace draftline {
namespace {

constexpr int64_t kHugePage = 1 << 21;
constexpr int kMaxThreads = 255;

// Memory that grows and is reused; its content is not kept when it grows.
class Buffer {
 public:
  ~Buffer() { std::free(data_); }

  template <class T = uint8_t>
  T* get(int64_t bytes) {
    if (bytes > size_) {
      std::free(data_);
      size_ = 0;  // in case that there is no more: the next call must ask again
      const int64_t size = (bytes + bytes / 4 + 63) / 64 * 64;
      data_ = std::aligned_alloc(64, size);
      if (data_ == nullptr) throw std::bad_alloc();
      size_ = size;
    }
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  int64_t size_ = 0;
};

const Kernels* best_kernels(const char* name) {
  for (auto* find : {avx512_bf16_kernels, avx512_kernels, avx2_kernels, portable_kernels}) {
    const Kernels* kernels = find();
    if (kernels != nullptr && (name == nullptr || std::strcmp(name, kernels->name) == 0)) return kernels;
  }
  return nullptr;
}

enum Status : int32_t { kDone = 0, kOutOfMemory = 1, kFailed = 2 };

// No exception may leave a C function: it would end the process.
template <class Work>
Status guarded(Work work) noexcept {
  try {
    work();
    return kDone;
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  } catch (...) {
    return kFailed;
  }
}

int64_t largest(std::initializer_list<int64_t> values) { return *std::max_element(values.begin(), values.end()); }

}  // namespace
}  // namespace draftline

using namespace draftline;

struct Context {
  Context(int num_threads, const Kernels* kernels) : pool(num_threads), kernels(kernels) {}

  Pool pool;
  const Kernels* kernels;
  Buffer inner_records, queries, partials, row_values, own_records, unused_partials, scratch, shared_records, samples;
  Buffer hidden, logits;  // of steps that end in tokens
  Buffer kept_hidden, kept_queries, faults;
  Plan plan, kept_plan;
  StepTimes times{};
  bool is_timing = false;
};

namespace draftline {
namespace {

// Memory whose size follows from the model and the number of rows.
void provide_memory(Context& context, Step& step) {
  const Model& model = *step.model;
  const int num_threads = context.pool.num_threads();
  const Layer& layer = model.layers[0];
  int64_t record = 0;
  for (const Matrix* reader : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down, &model.head})
    record = largest({record, context.kernels->record_bytes(reader)});
  const int64_t attention_size = static_cast<int64_t>(model.num_heads) * model.head_dim + kMaxHeadDim;
  step.row_values_stride = padded(largest({step.hidden_stride, attention_size}) + 64, 64);
  step.row_values = context.row_values.get<float>(4 * num_threads * step.row_values_stride);
  step.own_records_stride = kRowsPrepared * record + 64;
  step.own_records = context.own_records.get(num_threads * step.own_records_stride);
  step.shared_records = context.shared_records.get(step.num_rows * record);
}

void provide_layer_memory(Context& context, Step& step, int64_t num_partials) {
  const Model& model = *step.model;
  const int num_threads = context.pool.num_threads();
  int32_t value_bytes, query_bytes;
  context.kernels->kv_sizes(step.kv->kind, model.head_dim, &step.key_bytes, &value_bytes, &query_bytes);
  step.query_stride = query_bytes;
  step.queries = context.queries.get(step.num_rows * model.num_heads * step.query_stride);
  step.inner_records = context.inner_records.get(step.num_rows * context.kernels->record_bytes(&model.layers[0].down));
  step.partial_stride = partial_bytes(step.shape);
  step.partials = context.partials.get(num_partials * model.num_heads * step.partial_stride);
  step.unused_partials = context.unused_partials.get(num_threads * step.partial_stride);
  step.scratch_stride = sizeof(AttentionScratch);
  step.scratch = context.scratch.get(num_threads * step.scratch_stride);
}

void run(Context& context, Step& step, void (*job)(void*, int), int max_phases) {
  const auto start = std::chrono::steady_clock::now();
  context.pool.run(job, &step, max_phases);
  context.times.step_nanoseconds += (std::chrono::steady_clock::now() - start).count();
}

Step new_step(Context& context, const Model* model, int num_rows, float* hidden) {
  Step step{};
  step.model = model;
  step.pool = &context.pool;
  step.num_rows = num_rows;
  step.hidden = hidden;
  step.hidden_stride = padded(model->hidden_size, kBlock);
  step.shape = {model->head_dim, padded(model->head_dim, kLanes)};
  provide_memory(context, step);
  return step;
}

}  // namespace
}  // namespace draftline

DRAFTLINE_EXPORT int32_t draftline_abi_version() { return DRAFTLINE_ABI_VERSION; }

// Bytes of the structs that others mirror, in the order of abi.h; ends with 0.
DRAFTLINE_EXPORT const int64_t* draftline_struct_bytes() {
  static const int64_t bytes[] = {sizeof(Matrix), sizeof(Layer),       sizeof(Model),     sizeof(KVTiles),
                                  sizeof(Span),   sizeof(RowSampling), sizeof(StepTimes), 0};
  return bytes;
}

// The best instruction set for this processor, or the named one; null if it cannot run here.
DRAFTLINE_EXPORT const char* draftline_instruction_set(const char* name) {
  const Kernels* kernels = best_kernels(name);
  return kernels == nullptr ? nullptr : kernels->name;
}

DRAFTLINE_EXPORT Context* draftline_context_new(int32_t num_threads, const char* instruction_set) {
  const Kernels* kernels = best_kernels(instruction_set);
  if (kernels == nullptr || num_threads < 1 || num_threads > kMaxThreads) return nullptr;
  Context* context = nullptr;
  guarded([&] { context = new Context(num_threads, kernels); });
  return context;
}

DRAFTLINE_EXPORT void draftline_context_free(Context* context) { delete context; }

DRAFTLINE_EXPORT int64_t draftline_kv_tile_bytes(int32_t kind, int32_t head_dim) {
  int32_t key_bytes, value_bytes, query_bytes;
  portable_kernels()->kv_sizes(kind, head_dim, &key_bytes, &value_bytes, &query_bytes);
  return key_bytes + value_bytes;
}

namespace draftline {
namespace {

void use_plan(Step& step, const Plan& plan) {
  step.rows = plan.rows.data();
  step.attention_units = plan.units.data();
  step.num_attention_units = static_cast<int32_t>(plan.units.size());
}

// The end of a step for the rows in `kept`, ascending: what lies behind the last layer's keys and values is computed
// for no others. Its working memory is the step's own, but for hidden states and queries.
Step step_of_kept(Context& context, const Step& step, const int32_t* kept, int32_t num_kept, float* hidden) {
  const std::vector<Span> spans = kept_spans(step.spans, step.num_spans, kept, num_kept);
  const int num_spans = static_cast<int>(spans.size());
  context.kept_plan.place_rows(num_kept, step.kv->tiles_per_block, spans.data(), num_spans, step.block_tables);
  context.kept_plan.cut_attention(*step.model, context.pool.num_threads(), spans.data(), num_spans, step.block_tables);
  Step end = step;
  end.num_rows = num_kept;
  end.hidden = hidden;
  end.queries = context.kept_queries.get(num_kept * step.model->num_heads * step.query_stride);
  use_plan(end, context.kept_plan);
  return end;
}

// Hidden states of the rows in `kept`, or of all if it is null.
void forward(Context& context, const Model* model, const KVTiles* kv, const int64_t* token_ids, int32_t num_rows,
             const Span* spans, int32_t num_spans, const int32_t* block_tables, const int32_t* kept, int32_t num_kept,
             float* hidden, uint8_t* faults) {
  const bool keeps_all = kept == nullptr || num_kept == num_rows;
  const int64_t stride = padded(model->hidden_size, kBlock);
  Step step = new_step(context, model, num_rows, keeps_all ? hidden : context.hidden.get<float>(4 * num_rows * stride));
  step.kv = kv;
  step.token_ids = token_ids;
  step.spans = spans;
  step.num_spans = num_spans;
  step.block_tables = block_tables;
  step.faults = faults;
  const int64_t num_partials =
      context.plan.place_rows(num_rows, kv->tiles_per_block, spans, num_spans, block_tables);
  provide_layer_memory(context, step, num_partials);
  context.plan.cut_attention(*model, context.pool.num_threads(), spans, num_spans, block_tables);
  use_plan(step, context.plan);
  Step end;
  if (!keeps_all) {
    end = step_of_kept(context, step, kept, num_kept, hidden);
    step.kept_rows = kept;
    step.end = &end;
  }
  run(context, step, context.kernels->forward, kMaxPhasesPerLayer * model->num_layers + 2);
  ++context.times.num_steps;
}

}  // namespace
}  // namespace draftline

// Hidden states [num_rows, hidden_size padded to 32] of a step's tokens, whose keys and values are stored. In `faults`
// [num_rows], zeroed by the caller or null, the rows are marked of which something is not finite: it is stored as 0.
DRAFTLINE_EXPORT int32_t draftline_forward(Context* context, const Model* model, const KVTiles* kv,
                                        const int64_t* token_ids, int32_t num_rows, const Span* spans,
                                        int32_t num_spans, const int32_t* block_tables, float* hidden,
                                        uint8_t* faults) {
  return guarded([&] {
    forward(*context, model, kv, token_ids, num_rows, spans, num_spans, block_tables, nullptr, 0, hidden, faults);
  });
}

namespace draftline {
namespace {

void compute_logits(Context& context, const Model* model, const float* hidden, int32_t num_rows, float* logits) {
  Step step = new_step(context, model, num_rows, const_cast<float*>(hidden));
  step.logits = logits;
  run(context, step, context.kernels->compute_logits, 2);
}

void sample(Context& context, const float* logits, int64_t stride, int32_t num_rows, int32_t vocab_size,
            const RowSampling* rows, int64_t* tokens, uint8_t* faults) {
  const int64_t memory_stride = 3 * static_cast<int64_t>(vocab_size) + 8192;
  const int num_threads = context.pool.num_threads();
  SampleJob job{&context.pool, logits, stride, num_rows, vocab_size, rows, tokens, faults,
                context.samples.get<float>(4 * num_threads * memory_stride), memory_stride};
  const auto start = std::chrono::steady_clock::now();
  context.pool.run(context.kernels->sample, &job, 1);
  context.times.step_nanoseconds += (std::chrono::steady_clock::now() - start).count();
}

}  // namespace
}  // namespace draftline

// Logits [num_rows, vocab_size] of hidden states as draftline_forward wrote them.
DRAFTLINE_EXPORT int32_t draftline_compute_logits(Context* context, const Model* model, const float* hidden,
                                                  int32_t num_rows, float* logits) {
  return guarded([&] { compute_logits(*context, model, hidden, num_rows, logits); });
}

// A token for each row of logits [num_rows, stride], among the first vocab_size; `faults` [num_rows] as in a step.
DRAFTLINE_EXPORT int32_t draftline_sample(Context* context, const float* logits, int64_t stride, int32_t num_rows,
                                          int32_t vocab_size, const RowSampling* rows, int64_t* tokens,
                                          uint8_t* faults) {
  return guarded([&] { sample(*context, logits, stride, num_rows, vocab_size, rows, tokens, faults); });
}

namespace draftline {
namespace {

// A token for each of the rows in `kept`, whose logits [num_kept, model's vocab_size] stay in `logits` unless it is null.
void forward_and_choose(Context& context, const Model* model, const KVTiles* kv, const int64_t* token_ids,
                        int32_t num_rows, const Span* spans, int32_t num_spans, const int32_t* block_tables,
                        const int32_t* kept, int32_t num_kept, const RowSampling* sampling, int32_t vocab_size,
                        float* logits, int64_t* tokens, uint8_t* faults) {
  const int64_t stride = padded(model->hidden_size, kBlock);
  float* hidden = context.kept_hidden.get<float>(4 * num_kept * stride);
  forward(context, model, kv, token_ids, num_rows, spans, num_spans, block_tables, kept, num_kept, hidden, faults);
  if (num_kept == 0) return;
  if (logits == nullptr) logits = context.logits.get<float>(4 * num_kept * static_cast<int64_t>(model->vocab_size));
  compute_logits(context, model, hidden, num_kept, logits);
  uint8_t* sampled_faults = faults == nullptr ? nullptr : context.faults.get(num_kept);
  if (faults != nullptr) std::memset(sampled_faults, 0, num_kept);
  sample(context, logits, model->vocab_size, num_kept, vocab_size, sampling, tokens, sampled_faults);
  for (int32_t i = 0; faults != nullptr && i < num_kept; ++i) faults[kept[i]] |= sampled_faults[i];
}

}  // namespace
}  // namespace draftline

// Tokens [num_logits]: a step from tokens to tokens, one for each of its rows in logits_rows, which ascend. In `faults`
// [num_rows], zeroed, the rows are marked whose keys, values or logits are not finite. `logits` [num_logits, model's
// vocab_size] is null unless somebody wants to see them.
DRAFTLINE_EXPORT int32_t draftline_step(Context* context, const Model* model, const KVTiles* kv, const int64_t* token_ids,
                                     int32_t num_rows, const Span* spans, int32_t num_spans,
                                     const int32_t* block_tables, const int32_t* logits_rows, int32_t num_logits,
                                     const RowSampling* sampling, int32_t vocab_size, float* logits,
                                     int64_t* tokens, uint8_t* faults) {
  return guarded([&] {
    forward_and_choose(*context, model, kv, token_ids, num_rows, spans, num_spans, block_tables, logits_rows, num_logits,
                       sampling, vocab_size, logits, tokens, faults);
  });
}

// Tokens [num_steps, num_drafting] of a draft model: the spans are run, then each token chosen for the first
// num_drafting of them. `rows` [num_steps, num_drafting]; every position must have its slot.
DRAFTLINE_EXPORT int32_t draftline_draft(Context* context, const Model* model, const KVTiles* kv,
                                      const int64_t* token_ids, int32_t num_rows, const Span* spans,
                                      int32_t num_spans, const int32_t* block_tables, int32_t num_drafting,
                                      int32_t num_steps, const RowSampling* rows, int32_t vocab_size,
                                      int64_t* tokens) {
  return guarded([&] {
    std::vector<Span> current(spans, spans + num_drafting);
    std::vector<int32_t> last_rows(num_drafting);
    for (int i = 0; i < num_drafting; ++i) last_rows[i] = spans[i].first_row + spans[i].num_tokens - 1;
    for (int step = 0;; ++step, rows += num_drafting, tokens += num_drafting) {
      forward_and_choose(*context, model, kv, token_ids, num_rows, spans, num_spans, block_tables, last_rows.data(),
                         num_drafting, rows, vocab_size, nullptr, tokens, nullptr);
      if (step + 1 == num_steps) return;
      for (int i = 0; i < num_drafting; ++i) {
        current[i] = {i, 1, current[i].first_position + current[i].num_tokens, current[i].table_offset};
        last_rows[i] = i;
      }
      token_ids = tokens, spans = current.data();
      num_rows = num_spans = num_drafting;
    }
  });
}

// Count the time spent at barriers from now on; costs two clock readings each.
DRAFTLINE_EXPORT void draftline_set_timing(Context* context, int32_t is_on) { context->pool.set_timing(is_on); }

// Times since the last call.
DRAFTLINE_EXPORT void draftline_take_times(Context* context, StepTimes* times) {
  context->times.barrier_nanoseconds = context->pool.take_barrier_nanoseconds();
  context->times.num_barriers = context->pool.take_num_barriers();
  *times = context->times;
  context->times = {};
}

// Zeroed memory on large pages where the system has them: fewer misses of the address cache. Null if full.
DRAFTLINE_EXPORT void* draftline_allocate(int64_t bytes) {
  const int64_t size = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* mapped = mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  uint8_t* const start = static_cast<uint8_t*>(mapped);
  const int64_t skipped = -reinterpret_cast<intptr_t>(mapped) & (kHugePage - 1);
  if (skipped > 0) munmap(start, skipped);
  munmap(start + skipped + size, kHugePage - skipped);
#if defined(MADV_HUGEPAGE)
  madvise(start + skipped, size, MADV_HUGEPAGE);
#endif
  return start + skipped;
}

DRAFTLINE_EXPORT void draftline_free(void* memory, int64_t bytes) {
  munmap(memory, (bytes + kHugePage - 1) / kHugePage * kHugePage);
}
