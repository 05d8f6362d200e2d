// Asking for a layer's keys and values while the matrices before its attention are multiplied.
//
// With many requests the matrices keep the processors busy and memory idles; attention is the other way round.
// So each thread asks, a few lines with each block of weights, for its share of what attention reads next. The
// lines wait in the caches below the first; should they be gone by then, nothing but the asking was lost.

namespace draftline {
namespace DRAFTLINE_ISA {

// Memory to ask for while one tile of weights is multiplied: so many lines with each of the tile's units.
struct Ahead {
  const uint8_t* at;
  int lines;
};

DL_INLINE void fetch_ahead(Ahead& ahead) {
  for (int i = 0; i < ahead.lines; ++i, ahead.at += 64) __builtin_prefetch(ahead.at, 0, 2);
}

class KVAhead {
 public:
  KVAhead(const Step& step, int thread, int num_threads) : step_(step), tile_bytes_(step.kv->layer_stride) {
    int64_t num_tiles = 0;
    for (int i = 0; i < step.num_spans; ++i) num_tiles += tiles_of(step.spans[i]);
    first_ = num_tiles * thread / num_threads;
    end_ = num_tiles * (thread + 1) / num_threads;
    const int64_t num_units = units_of_layer() / num_threads + 1;
    const int64_t lines = (end_ - first_) * tile_bytes_ / 64;
    lines_ = step.num_rows < kRowsThatFetch ? 0 : min_of(kMostLines, static_cast<int>(lines / num_units) + 1);
  }

  // From here on ask for this layer's.
  void start(int layer) {
    next_ = layer < step_.model->num_layers && lines_ > 0 ? first_ : end_;
    layer_ = step_.kv->base + layer * step_.kv->layer_stride;
    span_ = 0;
    before_span_ = 0;
    left_ = 0;
  }

  Ahead take(int num_units) {
    if (left_ <= 0) {
      if (next_ == end_) return {nullptr, 0};
      at_ = layer_ + tile_number(next_++) * step_.kv->tile_stride;
      left_ = tile_bytes_;
    }
    const Ahead taken{at_, lines_};
    at_ += 64 * lines_ * num_units;  // past the tile's end lies the next layer's: early, but not in vain
    left_ -= 64 * lines_ * num_units;
    return taken;
  }

 private:
  static constexpr int kMostLines = 4;  // with a unit: more of them would wait for one another

  static int tiles_of(const Span& span) {
    return (span.first_position + span.num_tokens + kTilePositions - 1) / kTilePositions;
  }

  // Units of weights in all passes of one layer.
  int64_t units_of_layer() const {
    const Layer& layer = step_.model->layers[0];
    int64_t units = 0;
    for (const Matrix* matrix : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down})
      units += static_cast<int64_t>(matrix->num_tiles) * matrix->num_units;
    return units * ((step_.num_rows + kMaxRows - 1) / kMaxRows);
  }

  // Where tile `index` of all spans lies; called in ascending order.
  int64_t tile_number(int64_t index) {
    while (index >= before_span_ + tiles_of(step_.spans[span_])) before_span_ += tiles_of(step_.spans[span_++]);
    const int number = static_cast<int>(index - before_span_), per_block = step_.kv->tiles_per_block;
    const int64_t block = step_.block_tables[step_.spans[span_].table_offset + number / per_block];
    return block * per_block + number % per_block;
  }

  const Step& step_;
  const int64_t tile_bytes_;  // of all heads of one layer
  int64_t first_, end_;       // this thread's tiles, of all spans one after the other
  int lines_;

  const uint8_t* layer_ = nullptr;
  const uint8_t* at_ = nullptr;
  int64_t next_ = 0, left_ = 0, before_span_ = 0;
  int span_ = 0;
};

}  // namespace DRAFTLINE_ISA
}  // namespace draftline
