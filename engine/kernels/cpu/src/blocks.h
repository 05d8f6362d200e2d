// Products of blocks: weights of a unit wait in registers for one row of activations after the other.

namespace draftline {
namespace DRAFTLINE_ISA {

template <int kRows>
static void dot_q4(const uint8_t* tile, const uint8_t* rows, int64_t stride, int num_units, float (*out)[kLanes],
                   Ahead ahead) {
  for (int part = 0; part < kParts; ++part) {
    F32 acc[kRows] = {};
    for (int number = 0; number < num_units; ++number) {
      const uint8_t* unit = tile + number * kQ4UnitBytes;
      const F32 scale = load_half(unit + 2 * kWidth * part), minimum = load_half(unit + 32 + 2 * kWidth * part);
      if (kRows >= kRowsThatFetch && part == 0) {
        fetch(unit + num_units * kQ4UnitBytes, kQ4UnitBytes);
        fetch_ahead(ahead);
      }
      U8 weights[8];
      for (int line = 0; line < 4; ++line) {
        const U8 both = load_bytes(unit + 64 + 64 * line + 4 * kWidth * part);
        weights[2 * line] = both & 0x0f;
        weights[2 * line + 1] = (U8)((U32)both >> 4) & 0x0f;
      }
      DL_UNROLL(9)
      for (int row = 0; row < kRows; ++row) {
        const QuantizedBlock& block = reinterpret_cast<const QuantizedBlock*>(rows + row * stride)[number];
        I32 first = {}, second = {};
        DL_UNROLL(4)
        for (int group = 0; group < 4; ++group) {
          first = dot_bytes(first, weights[2 * group], load_int(block.quants + 8 * group));
          second = dot_bytes(second, weights[2 * group + 1], load_int(block.quants + 8 * group + 4));
        }
        acc[row] = fma(__builtin_convertvector(first + second, F32), scale * splat(block.scale), acc[row]);
        acc[row] = fma(minimum, splat(block.scaled_sum), acc[row]);
      }
    }
    store_rows<kRows>(acc, out, part);
  }
}

template <int kRows>
static void dot_q8(const uint8_t* tile, const uint8_t* rows, int64_t stride, int num_units, float (*out)[kLanes],
                   Ahead ahead) {
  for (int part = 0; part < kParts; ++part) {
    F32 acc[kRows] = {};
    for (int number = 0; number < num_units; ++number) {
      const uint8_t* unit = tile + number * kQ8UnitBytes;
      const F32 scale = load_half(unit + 2 * kWidth * part);
      U8 weights[8];
      if (kRows >= kRowsThatFetch && part == 0) {
        fetch(unit + num_units * kQ8UnitBytes, kQ8UnitBytes);
        fetch_ahead(ahead);
      }
      for (int line = 0; line < 8; ++line) weights[line] = load_bytes(unit + 32 + 64 * line + 4 * kWidth * part);
      DL_UNROLL(9)
      for (int row = 0; row < kRows; ++row) {
        const QuantizedBlock& block = reinterpret_cast<const QuantizedBlock*>(rows + row * stride)[number];
        I32 first = splat(block.offset), second = {};  // the weights' offset of 128
        DL_UNROLL(4)
        for (int group = 0; group < 4; ++group) {
          first = dot_bytes(first, weights[2 * group], load_int(block.quants + 8 * group));
          second = dot_bytes(second, weights[2 * group + 1], load_int(block.quants + 8 * group + 4));
        }
        acc[row] = fma(__builtin_convertvector(first + second, F32), scale * splat(block.scale), acc[row]);
      }
    }
    store_rows<kRows>(acc, out, part);
  }
}

}  // namespace DRAFTLINE_ISA
}  // namespace draftline
