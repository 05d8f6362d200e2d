// Where the rows of a step stand, and how their attention is cut into units that the threads share.
#pragma once
#include <vector>

#include "layout.h"

namespace draftline {

struct Plan {
  std::vector<RowPlace> rows;
  std::vector<AttentionUnit> units;

  // Returns the number of partial softmaxes of all rows, for one head.
  int64_t place_rows(int num_rows, int tiles_per_block, const Span* spans, int num_spans, const int32_t* tables);

  void cut_attention(const Model& model, int num_threads, const Span* spans, int num_spans, const int32_t* tables);

 private:
  void add_units(const Model& model, const Span& span, const int32_t* tables, int heads_per_unit);
};

// The spans of a step made of the rows in `kept` alone; both ascend.
std::vector<Span> kept_spans(const Span* spans, int num_spans, const int32_t* kept, int num_kept);

}  // namespace draftline
