// From GGUF's rows to tiles: done once, when a model is loaded.
#include <cstring>

#include "layout.h"

namespace draftline {
namespace {

constexpr int kQ40Bytes = 18, kQ41Bytes = 20, kQ80Bytes = 34;  // of a stored block of 32

// Half precision of -8 * scale: Q4_0 is Q4_1 with this minimum. Only the exponent changes, by 3.
uint16_t minus_eight_times(uint16_t half) {
  const uint16_t exponent = half >> 10 & 0x1f;
  if (exponent == 0) {  // subnormal or zero: eight times it is exact in the wider range
    uint32_t mantissa = half & 0x3ff;
    if (mantissa == 0) return half ^ 0x8000;
    int shift = 3, result_exponent = 1;
    mantissa <<= shift;
    while (mantissa >= 0x800) {
      mantissa >>= 1;
      ++result_exponent;
    }
    const uint16_t packed = mantissa < 0x400 ? mantissa : (result_exponent << 10 | (mantissa & 0x3ff));
    return ((half & 0x8000) ^ 0x8000) | packed;
  }
  if (exponent >= 28) return ((half & 0x8000) ^ 0x8000) | 0x7c00;
  return (half ^ 0x8000) + (3 << 10);
}

void pack_q4(const uint8_t* block, bool has_minimum, int lane, uint8_t* unit) {
  uint16_t scale, minimum;
  std::memcpy(&scale, block, 2);
  minimum = minus_eight_times(scale);
  if (has_minimum) std::memcpy(&minimum, block + 2, 2);
  std::memcpy(unit + 2 * lane, &scale, 2);
  std::memcpy(unit + 32 + 2 * lane, &minimum, 2);
  const uint8_t* nibbles = block + (has_minimum ? 4 : 2);  // byte i: columns i and i + 16
  for (int column = 0; column < kBlock; ++column) {
    const int value = column < 16 ? nibbles[column] & 15 : nibbles[column - 16] >> 4;
    const int group = column / 4;
    unit[64 + 64 * (group / 2) + 4 * lane + column % 4] |= value << (4 * (group % 2));
  }
}

void pack_q8(const uint8_t* block, int lane, uint8_t* unit) {
  std::memcpy(unit + 2 * lane, block, 2);
  for (int column = 0; column < kBlock; ++column)
    unit[32 + 64 * (column / 4) + 4 * lane + column % 4] = block[2 + column] + 128;
}

}  // namespace

extern "C" {

enum RowFormatNumber : int32_t { kRowsQ40 = 0, kRowsQ41 = 1, kRowsQ80 = 2, kRowsBF16 = 3, kRowsF32 = 4 };

// Pack rows of one format into zeroed tiles of the kind that holds it. A null row pointer is a row of zeros.
__attribute__((visibility("default"))) void draftline_pack(int32_t format, const uint8_t* const* rows,
                                                           int32_t num_rows, int32_t num_columns,
                                                           int64_t tile_bytes, uint8_t* tiles) {
  for (int row = 0; row < num_rows; ++row) {
    const uint8_t* stored = rows[row];
    if (stored == nullptr) continue;
    uint8_t* tile = tiles + row / kLanes * tile_bytes;
    const int lane = row % kLanes;
    if (format == kRowsF32) {
      for (int i = 0; i < num_columns; ++i) std::memcpy(tile + 64 * i + 4 * lane, stored + 4 * i, 4);
    } else if (format == kRowsBF16) {
      for (int i = 0; i < num_columns; ++i)
        std::memcpy(tile + 64 * (i / 2) + 4 * lane + 2 * (i % 2), stored + 2 * i, 2);
    } else {
      for (int block = 0; block < num_columns / kBlock; ++block) {
        if (format == kRowsQ80)
          pack_q8(stored + block * kQ80Bytes, lane, tile + block * kQ8UnitBytes);
        else
          pack_q4(stored + block * (format == kRowsQ41 ? kQ41Bytes : kQ40Bytes), format == kRowsQ41, lane,
                  tile + block * kQ4UnitBytes);
      }
    }
  }
}
}

}  // namespace draftline
