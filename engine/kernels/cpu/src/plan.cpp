#include "plan.h"

namespace draftline {

int64_t Plan::place_rows(int num_rows, int tiles_per_block, const Span* spans, int num_spans, const int32_t* tables) {
  int64_t num_partials = 0;
  rows.resize(num_rows);
  for (const Span* span = spans; span < spans + num_spans; ++span) {
    for (int i = 0; i < span->num_tokens; ++i) {
      const int position = span->first_position + i, number = position / kTilePositions;
      const int64_t block = tables[span->table_offset + number / tiles_per_block];
      rows[span->first_row + i] = {position, static_cast<int32_t>(num_partials),
                                   block * tiles_per_block + number % tiles_per_block};
      num_partials += num_splits(position + 1);
    }
  }
  return num_partials;
}

void Plan::add_units(const Model& model, const Span& span, const int32_t* tables, int heads_per_unit) {
  const int heads_per_kv = model.num_heads / model.num_kv_heads;
  for (int first = 0; first < span.num_tokens; first += kQueryTile) {
    const int count = min_of(kQueryTile, span.num_tokens - first), position = span.first_position + first;
    for (int split = 0; split < num_splits(position + count); ++split)
      for (int kv_head = 0; kv_head < model.num_kv_heads; ++kv_head)
        for (int head = 0; head < heads_per_kv; head += heads_per_unit)
          units.push_back({span.first_row + first, count, position, tables + span.table_offset,
                           kv_head * heads_per_kv + head, min_of(heads_per_unit, heads_per_kv - head), kv_head, split});
  }
}

// Heads that share keys go together, but for a few units every head by itself: threads then get even shares.
void Plan::cut_attention(const Model& model, int num_threads, const Span* spans, int num_spans,
                         const int32_t* tables) {
  const int heads_per_kv = model.num_heads / model.num_kv_heads;
  for (int heads_per_unit : {min_of(kHeadsPerUnit, heads_per_kv), 1}) {
    units.clear();
    for (const Span* span = spans; span < spans + num_spans; ++span) add_units(model, *span, tables, heads_per_unit);
    if (static_cast<int>(units.size()) >= 4 * num_threads) break;
  }
}

std::vector<Span> kept_spans(const Span* spans, int num_spans, const int32_t* kept, int num_kept) {
  std::vector<Span> result;
  int i = 0;
  for (const Span* span = spans; span < spans + num_spans; ++span) {
    const int end = span->first_row + span->num_tokens;
    while (i < num_kept && kept[i] < end) {
      const int first = i++;
      while (i < num_kept && kept[i] == kept[i - 1] + 1 && kept[i] < end) ++i;
      result.push_back({first, i - first, span->first_position + kept[first] - span->first_row, span->table_offset});
    }
  }
  return result;
}

}  // namespace draftline
