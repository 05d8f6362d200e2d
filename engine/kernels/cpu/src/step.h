// One step of the whole model: a few phases a layer, each cut into units that the threads share.
//
//   x = embed(token) (+ position)
//   per layer: norm -> qkv, rotate, store | attend | merge -> x += o | norm -> act(gate) * up | -> x += down
//
// A bar is a barrier. Rows become the next matrix's operand in place of a phase of their own where they are
// few: every thread prepares all of them for itself, which is cheaper than to wait for one another.

namespace draftline {
namespace DRAFTLINE_ISA {

constexpr int kRowBlock = 256;  // rows of one unit: their activations stay in the second-level cache
constexpr int kHeadTiles = 4;   // of the output head in one unit

// A step as one thread sees it.
class StepThread {
 public:
  StepThread(Step& step, int thread) : step_(step), model_(*step.model), thread_(thread) {}

  void forward() {
    KVAhead ahead(step_, thread_, step_.pool->num_active());
    ahead_ = &ahead;
    ahead.start(0);
    embed();
    for (int number = 0; number < model_.num_layers; ++number) {
      const Layer& layer = model_.layers[number];
      project_heads(layer, number);
      if (number + 1 == model_.num_layers && step_.end != nullptr) {
        keep_rows(*step_.end);
        StepThread(*step_.end, thread_).finish_layer(layer, number);
      } else {
        finish_layer(layer, number);
      }
    }
  }

  void compute_logits() {
    const Rows rows = prepare(model_.head, [&](int row, float* out) {
      normalize(model_, x(row), model_.norm_weight, model_.norm_bias, out);
      return out;
    });
    const int num_groups = (model_.head.num_tiles + kHeadTiles - 1) / kHeadTiles;
    for_row_blocks(num_groups, [&](int group, int begin, int end) {
      const int first = group * kHeadTiles, count = min_of(kHeadTiles, model_.head.num_tiles - first);
      multiply_tiles<kHeadTiles>(model_.head, first, count, rows, begin, end, nullptr, [&](int row, int num, auto& out) {
        for (int tile = 0; tile < count; ++tile)
          for (int i = 0; i < num; ++i) store_logits(row + i, (first + tile) * kLanes, out[tile][i]);
      });
    });
  }

 private:
  // Every thread calls this in the same order; the phase is over for all when it returns.
  template <class Unit>
  void for_units(int count, Unit unit) {
    Pool& pool = *step_.pool;
    const int num_threads = pool.num_active();
    UnitCounter* counters = pool.next_counters(thread_);
    for (int offset = 0; offset < num_threads; ++offset) {
      const int owner = (thread_ + offset) % num_threads;
      const int begin = static_cast<int64_t>(count) * owner / num_threads;
      const int end = static_cast<int64_t>(count) * (owner + 1) / num_threads;
      for (int i; (i = begin + counters[owner].next.fetch_add(1, std::memory_order_relaxed)) < end;) unit(i);
    }
    pool.barrier(thread_);
  }

  // unit(index, first row, end row) for every block of rows and every index below `count`.
  template <class Unit>
  void for_row_blocks(int count, Unit unit) {
    const int num_blocks = (step_.num_rows + kRowBlock - 1) / kRowBlock;
    for_units(count * num_blocks, [&](int i) {
      const int begin = i / count * kRowBlock;
      unit(i % count, begin, min_of(begin + kRowBlock, step_.num_rows));
    });
  }

  // Rows in the format that `reader` multiplies; fill(row, out) returns one as floats, for which `out` has room.
  template <class Fill>
  Rows prepare(const Matrix& reader, Fill fill) {
    const RowFormat format = row_format(reader);
    float* values = step_.row_values + thread_ * step_.row_values_stride;
    if (step_.num_rows <= kRowsPrepared) {
      uint8_t* own = step_.own_records + thread_ * step_.own_records_stride;
      for (int row = 0; row < step_.num_rows; ++row) {
        write_row(format, fill(row, values), own + row * format.stride);
      }
      return {format, own};
    }
    for_units(step_.num_rows, [&](int row) {
      write_row(format, fill(row, values), step_.shared_records + row * format.stride);
    });
    return {format, step_.shared_records};
  }

  float* x(int row) { return step_.hidden + row * step_.hidden_stride; }

  // What follows a layer's keys and values.
  void finish_layer(const Layer& layer, int number) {
    attend_all(number);
    if (ahead_ != nullptr) ahead_->start(number + 1);
    add_attention(layer);
    feed_forward(layer);
  }

  void keep_rows(const Step& end) {
    const int64_t query_bytes = model_.num_heads * step_.query_stride;
    for_units(end.num_rows, [&](int i) {
      const int row = step_.kept_rows[i];
      __builtin_memcpy(end.hidden + i * end.hidden_stride, x(row), sizeof(float) * step_.hidden_stride);
      __builtin_memcpy(end.queries + i * query_bytes, step_.queries + row * query_bytes, query_bytes);
    });
  }

  void embed() {
    for_units(step_.num_rows, [&](int row) {
      read_row(model_.embed, step_.token_ids[row], x(row));
      const int size = model_.hidden_size;
      for (int i = size; i < step_.hidden_stride; ++i) x(row)[i] = 0.0f;
      if (model_.embed_positions == nullptr) return;
      const float* position = model_.embed_positions + static_cast<int64_t>(step_.rows[row].position) * size;
      for (int i = 0; i < size; ++i) x(row)[i] += position[i];
    });
  }

  void project_heads(const Layer& layer, int number) {
    const Rows rows = prepare(layer.qkv, [&](int row, float* out) {
      normalize(model_, x(row), layer.attn_norm_weight, layer.attn_norm_bias, out);
      return out;
    });
    const int num_tiles = step_.shape.padded_dim / kLanes;
    for_row_blocks(model_.num_heads + 2 * model_.num_kv_heads, [&](int head, int begin, int end) {
      multiply_tiles<kMaxHeadDim / kLanes>(
          layer.qkv, head * num_tiles, num_tiles, rows, begin, end, ahead_, [&](int row, int count, auto& out) {
            for (int i = 0; i < count; ++i) {
              alignas(64) float values[kMaxHeadDim];  // what crosses cache lines is read back late
              for (int tile = 0; tile < num_tiles; ++tile)
                __builtin_memcpy(values + tile * kLanes, out[tile][i], sizeof out[tile][i]);
              place_head(layer, number, head, row + i, values);
            }
          });
    });
  }

  // What happens to one head of one row between projection and attention.
  void place_head(const Layer& layer, int number, int head, int row, float* values) {
    const int dim = model_.head_dim;
    const bool is_query = head < model_.num_heads, is_value = head >= model_.num_heads + model_.num_kv_heads;
    const float* norm = is_query ? layer.q_norm_weight : layer.k_norm_weight;
    if (!is_value && norm != nullptr) norm_head(values, dim, norm, model_.norm_eps);
    if (!is_value && model_.rope_cos != nullptr) {
      const int64_t offset = static_cast<int64_t>(step_.rows[row].position) * (dim / 2);
      rotate_head(values, dim, model_.rope_cos + offset, model_.rope_sin + offset);
    }
    if (is_query) {
      for (int i = 0; i < dim; ++i) values[i] *= model_.attention_scale;
      uint8_t* record = step_.queries + (static_cast<int64_t>(row) * model_.num_heads + head) * step_.query_stride;
      return with_kv([&](auto kv) { kv.write_query(step_.shape, values, record); });
    }
    if (!make_finite(values, step_.shape.padded_dim) && step_.faults != nullptr)
      __atomic_store_n(step_.faults + row, 1, __ATOMIC_RELAXED);
    const int kv_head = (head - model_.num_heads) % model_.num_kv_heads;
    uint8_t* tile = step_.kv->base + number * step_.kv->layer_stride + kv_head * step_.kv->head_stride +
                    step_.rows[row].tile * step_.kv->tile_stride;
    const int position = step_.rows[row].position % kTilePositions;
    with_kv([&](auto kv) {
      if (is_value)
        kv.write_value(step_.shape, values, tile + step_.key_bytes, position);
      else
        kv.write_key(step_.shape, values, tile, position);
    });
  }

  void attend_all(int number) {
    const AttentionInput input{step_.shape,        step_.queries,
                               step_.query_stride, model_.num_heads,
                               step_.kv->base + number * step_.kv->layer_stride,
                               step_.kv->head_stride, step_.kv->tile_stride,
                               step_.kv->tiles_per_block, step_.key_bytes};
    AttentionScratch& scratch = *reinterpret_cast<AttentionScratch*>(step_.scratch + thread_ * step_.scratch_stride);
    for_units(step_.num_attention_units, [&](int i) {
      const AttentionUnit& unit = step_.attention_units[i];
      Partial* partials[kUnitRows];
      for (int row = 0; row < unit.num_tokens * unit.num_heads; ++row)
        partials[row] = partial(unit.first_row + row / unit.num_heads, unit.first_head + row % unit.num_heads,
                                unit.split);
      with_kv([&](auto kv) { attend<decltype(kv)>(input, unit, partials, scratch); });
    });
  }

  // A split that only later rows of a unit reach has no place of its own for the earlier: they share one.
  Partial* partial(int row, int head, int split) {
    const RowPlace& place = step_.rows[row];
    if (split >= num_splits(place.position + 1))
      return reinterpret_cast<Partial*>(step_.unused_partials + thread_ * step_.partial_stride);
    const int64_t index = (static_cast<int64_t>(place.first_partial) * model_.num_heads) +
                          static_cast<int64_t>(head) * num_splits(place.position + 1) + split;
    return reinterpret_cast<Partial*>(step_.partials + index * step_.partial_stride);
  }

  void add_attention(const Layer& layer) {
    const Rows rows = prepare(layer.o, [&](int row, float* out) {
      const int count = num_splits(step_.rows[row].position + 1);
      for (int head = 0; head < model_.num_heads; ++head)
        merge_partials(step_.shape, reinterpret_cast<uint8_t*>(partial(row, head, 0)), step_.partial_stride, count,
                       out + head * model_.head_dim);
      for (int i = model_.num_heads * model_.head_dim, end = padded(i, kBlock); i < end; ++i) out[i] = 0.0f;
      return out;
    });
    add_product(layer.o, rows);
  }

  void feed_forward(const Layer& layer) {
    const Rows rows = prepare(layer.gate_up, [&](int row, float* out) {
      normalize(model_, x(row), layer.mlp_norm_weight, layer.mlp_norm_bias, out);
      return out;
    });
    const Rows inner{row_format(layer.down), step_.inner_records};
    const int tiles_each = model_.is_gated ? 2 : 1, num_tiles = layer.gate_up.num_tiles / tiles_each;
    for_row_blocks(inner.format.num_blocks, [&](int block, int begin, int end) {
      const int first = 2 * block, count = min_of(2, num_tiles - first);
      multiply_tiles<4>(layer.gate_up, first * tiles_each, count * tiles_each, rows, begin, end, ahead_,
                        [&](int row, int num, auto& out) {
                          for (int i = 0; i < num; ++i) {
                            alignas(64) float values[kBlock] = {};
                            for (int tile = 0; tile < count; ++tile)
                              activate_tile(out[tile * tiles_each][i], out[(tile + 1) * tiles_each - 1][i],
                                            values + tile * kLanes);
                            write_block(inner.format, values, block,
                                        step_.inner_records + (row + i) * inner.format.stride);
                          }
                        });
    });
    add_product(layer.down, inner);
  }

  void activate_tile(const float* gate, const float* up, float* out) {
    for (int lane = 0; lane < kLanes; lane += kWidth) {
      const F32 value = activate(model_.activation, load(gate + lane));
      store(out + lane, model_.is_gated ? value * load(up + lane) : value);
    }
  }

  // x += matrix * rows
  void add_product(const Matrix& matrix, const Rows& rows) {
    for_row_blocks(matrix.num_tiles, [&](int tile, int begin, int end) {
      multiply_tiles<1>(matrix, tile, 1, rows, begin, end, ahead_, [&](int row, int count, auto& out) {
        for (int i = 0; i < count; ++i) {
          float* place = x(row + i) + tile * kLanes;
          for (int lane = 0; lane < kLanes; ++lane) place[lane] += out[0][i][lane];
        }
      });
    });
  }

  void store_logits(int row, int first, const float* values) {
    float* out = step_.logits + static_cast<int64_t>(row) * model_.vocab_size + first;
    const int count = min_of(kLanes, model_.vocab_size - first);
    if (count == kLanes)
      __builtin_memcpy(out, values, sizeof(float) * kLanes);  // a length that is known takes no call
    else
      __builtin_memcpy(out, values, sizeof(float) * count);
  }

  template <class Use>
  void with_kv(Use use) {
    switch (step_.kv->kind) {
      case kKVBF16: return use(KVBF16());
      case kKVF32: return use(KVF32());
      default: return use(KVInt8());
    }
  }

  Step& step_;
  const Model& model_;
  const int thread_;
  KVAhead* ahead_ = nullptr;
};

}  // namespace DRAFTLINE_ISA
}  // namespace draftline
