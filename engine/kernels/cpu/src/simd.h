// Vectors as wide as a register and what the kernels do with them, for the instruction set of the includer.
//
// The vectors are GCC's and clang's own; intrinsics stand where a machine has an instruction that C++ cannot
// name. Everything in memory is laid out for 16 lanes: narrower registers take it in parts.
#ifndef DRAFTLINE_ISA
#error "include kernels.h from one of the isa_*.cpp files"
#endif

namespace draftline {
namespace DRAFTLINE_ISA {

#if defined(DRAFTLINE_AVX512)
constexpr int kWidth = 16;
constexpr int kMaxRows = 9;     // that share one pass over the weights (a token and 8 drafts): their sums are in registers
constexpr int kMaxVectors = 4;  // of a row's values summed at once
constexpr int kMostScoredTiles = 4;  // of keys that a single row is multiplied with at once
constexpr int kMostScores = 8;       // sums of keys' and queries' products at once, where several tiles are
#elif defined(DRAFTLINE_AVX2)
constexpr int kWidth = 8;
constexpr int kMaxRows = 6;
constexpr int kMaxVectors = 2;
constexpr int kMostScoredTiles = 4;
constexpr int kMostScores = 12;
#else
constexpr int kWidth = 4;
constexpr int kMaxRows = 4;
constexpr int kMaxVectors = 2;
constexpr int kMostScoredTiles = 2;
constexpr int kMostScores = 8;
#endif
constexpr int kParts = kLanes / kWidth;  // vectors that make a tile's 16 lanes
constexpr int kPartsAtOnce = kParts == 2 ? 2 : 1;  // that share what is loaded of the other operand

typedef float F32 __attribute__((vector_size(4 * kWidth)));
typedef float F32U __attribute__((vector_size(4 * kWidth), aligned(4)));
typedef int32_t I32 __attribute__((vector_size(4 * kWidth)));
typedef uint32_t U32 __attribute__((vector_size(4 * kWidth)));
typedef uint32_t U32U __attribute__((vector_size(4 * kWidth), aligned(4)));
typedef uint8_t U8 __attribute__((vector_size(4 * kWidth)));
typedef uint16_t U16 __attribute__((vector_size(2 * kWidth)));
typedef uint16_t U16U __attribute__((vector_size(2 * kWidth), aligned(2)));
typedef int8_t I8 __attribute__((vector_size(kWidth)));

#define DL_PRAGMA(text) _Pragma(#text)
#define DL_UNROLL(times) DL_PRAGMA(GCC unroll times)
#define DL_INLINE static inline __attribute__((always_inline))

DL_INLINE F32 load(const float* p) { return *reinterpret_cast<const F32U*>(p); }
DL_INLINE void store(float* p, F32 x) { *reinterpret_cast<F32U*>(p) = x; }
DL_INLINE U32 load_words(const void* p) { return *reinterpret_cast<const U32U*>(p); }
DL_INLINE U8 load_bytes(const void* p) { return (U8)load_words(p); }
DL_INLINE F32 splat(float x) { return x - F32{}; }  // and not 0 + x, which is work: -0 would become 0
DL_INLINE I32 splat(int32_t x) { return I32{} + x; }
DL_INLINE F32 select(I32 mask, F32 a, F32 b) { return (F32)((mask & (I32)a) | (~mask & (I32)b)); }

// Sums of kRows rows into one part of each.
template <int kRows>
DL_INLINE void store_rows(const F32* sums, float (*out)[kLanes], int part) {
  for (int row = 0; row < kRows; ++row) store(out[row] + part * kWidth, sums[row]);
}

DL_INLINE I32 lane_numbers() {
  I32 numbers;
  for (int i = 0; i < kWidth; ++i) numbers[i] = i;
  return numbers;
}

DL_INLINE int32_t load_int(const void* p) {
  int32_t value;
  __builtin_memcpy(&value, p, 4);
  return value;
}

// Compilers would rather load a value again for each use, or keep products in memory until they add them pairwise.
template <class Vector>
DL_INLINE void keep_in_register(Vector& x) {
#if defined(DRAFTLINE_AVX512) || defined(DRAFTLINE_AVX2)
  __asm__("" : "+v"(x));
#else
  (void)x;
#endif
}

// Ask for memory that will be read soon, into the second-level cache. Any address will do.
DL_INLINE void fetch(const uint8_t* p, int num_bytes) {
  for (int i = 0; i < num_bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}

// a * b + c, rounded once where the machine can.
DL_INLINE F32 fma(F32 a, F32 b, F32 c) {
#if defined(DRAFTLINE_AVX512)
  return (F32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(DRAFTLINE_AVX2)
  return (F32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (F32)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

DL_INLINE F32 max(F32 a, F32 b) {
#if defined(DRAFTLINE_AVX512)
  return (F32)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(DRAFTLINE_AVX2)
  return (F32)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return select(a > b, a, b);
#endif
}

DL_INLINE F32 absolute(F32 x) { return (F32)((I32)x & splat(0x7fffffff)); }

DL_INLINE bool any(I32 mask) {
#if defined(DRAFTLINE_AVX512)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(DRAFTLINE_AVX2)
  return _mm256_movemask_epi8((__m256i)mask) != 0;
#else
  int32_t all = 0;
  for (int i = 0; i < kWidth; ++i) all |= mask[i];
  return all != 0;
#endif
}

// Halves are added pairwise.
DL_INLINE float sum(F32 x) {
#if defined(DRAFTLINE_AVX512)
  return _mm512_reduce_add_ps((__m512)x);
#else
  float lanes[kWidth];
  store(lanes, x);
  for (int width = kWidth / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
#endif
}

DL_INLINE float highest(F32 x) {
#if defined(DRAFTLINE_AVX512)
  return _mm512_reduce_max_ps((__m512)x);
#else
  float most = x[0];
  for (int i = 1; i < kWidth; ++i) most = x[i] > most ? x[i] : most;
  return most;
#endif
}

DL_INLINE I32 round_to_int(F32 x) {  // to nearest even; |x| < 2**22
#if defined(DRAFTLINE_AVX2)
  return (I32)_mm256_cvtps_epi32((__m256)x);
#else
  const F32 magic = splat(12582912.0f);
  return (I32)(x + magic) - (I32)magic;
#endif
}

// e**x within 2 ulp; 0 far below -87; exactly 1 at 0 (polynomial of Cephes' expf).
DL_INLINE F32 exponential(F32 x) {
#if defined(DRAFTLINE_AVX512)
  x = (F32)_mm512_min_ps(_mm512_max_ps((__m512)x, (__m512)splat(-200.0f)), (__m512)splat(88.0f));
  const F32 n = (F32)_mm512_roundscale_ps((__m512)(x * splat(1.44269504088896341f)), 8);  // to nearest, quietly
#else
  const I32 is_there = x >= splat(-87.0f);
  x = max(x, splat(-87.0f));
  x = select(x > splat(88.0f), splat(88.0f), x);
  const I32 whole = round_to_int(x * splat(1.44269504088896341f));
  const F32 n = __builtin_convertvector(whole, F32);
#endif
  F32 r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  F32 p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p * r, r, r) + splat(1.0f);
#if defined(DRAFTLINE_AVX512)
  return (F32)_mm512_scalef_ps((__m512)p, (__m512)n);  // p * 2**n; an exact 0 at -200
#else
  return (F32)(is_there & ((I32)p + (whole << 23)));
#endif
}

// Natural logarithm of positive normal numbers within 2 ulp (polynomial of Cephes' logf).
DL_INLINE F32 logarithm(F32 x) {
  I32 bits = (I32)x;
  I32 exponent = ((bits >> 23) & splat(0xff)) - splat(126);
  F32 m = (F32)((bits & splat(0x007fffff)) | splat(0x3f000000));  // [0.5, 1)
  const I32 is_small = m < splat(0.70710678118654752f);
  exponent = exponent + is_small;  // the mask is -1
  m = select(is_small, m + m, m) - splat(1.0f);
  const F32 e = __builtin_convertvector(exponent, F32);
  const F32 m2 = m * m;
  F32 p = splat(7.0376836292e-2f);
  p = fma(p, m, splat(-1.1514610310e-1f));
  p = fma(p, m, splat(1.1676998740e-1f));
  p = fma(p, m, splat(-1.2420140846e-1f));
  p = fma(p, m, splat(1.4249322787e-1f));
  p = fma(p, m, splat(-1.6668057665e-1f));
  p = fma(p, m, splat(2.0000714765e-1f));
  p = fma(p, m, splat(-2.4999993993e-1f));
  p = fma(p, m, splat(3.3333331174e-1f));
  F32 y = p * m * m2;
  y = fma(e, splat(-2.12194440e-4f), y);
  y = fma(m2, splat(-0.5f), y);
  return fma(e, splat(0.693359375f), m + y);
}

// IEEE half precision to float, as GGUF stores scales.
DL_INLINE F32 load_half(const uint8_t* p) {
#if defined(DRAFTLINE_AVX512)
  return (F32)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(DRAFTLINE_AVX2)
  return (F32)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  const U16 half = *reinterpret_cast<const U16U*>(p);
  const U32 wide = __builtin_convertvector(half, U32);
  // 2**112 moves the exponent bias, and makes subnormal halves normal floats.
  const F32 magnitude = (F32)((wide & 0x7fff) << 13) * splat(5.192296858534828e+33f);
  const U32 is_special = (U32)((wide & 0x7c00) == 0x7c00);  // infinity or NaN, and not 65536 or more
  return (F32)((U32)magnitude | (is_special & 0x7f800000) | ((wide & 0x8000) << 16));
#endif
}

// Rounds to nearest even into the low 16 bits of each lane; NaN stays NaN, where rounding could carry its bits to -0.
DL_INLINE U32 to_bf16(F32 x) {
  const U32 bits = (U32)x, is_nan = (U32)(x != x);
  return (((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) & ~is_nan) | (is_nan & 0x7fc0);
}

DL_INLINE U16 to_bf16_halves(F32 x) {
#if defined(DRAFTLINE_BF16)
  return (U16)_mm512_cvtneps_pbh((__m512)x);
#else
  return __builtin_convertvector(to_bf16(x), U16);
#endif
}

// The low byte of each lane. Zen 4 narrows from a register into memory in some twenty cycles, so into a register first.
DL_INLINE void store_low_bytes(void* p, I32 x) {
  I8 bytes = __builtin_convertvector(x, I8);
#if defined(DRAFTLINE_AVX512)
  __asm__("" : "+v"(bytes));
#endif
  __builtin_memcpy(p, &bytes, sizeof bytes);
}

#if defined(DRAFTLINE_AVX2)
// 16 bytes as 16-bit numbers, in each group of four the even before the odd ones.
DL_INLINE void store_widened(int16_t* out, const uint8_t* bytes) {
  const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
  const __m128i even = _mm_srai_epi16(_mm_slli_epi16(x, 8), 8), odd = _mm_srai_epi16(x, 8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_unpacklo_epi32(even, odd));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 8), _mm_unpackhi_epi32(even, odd));
}
#endif

// Into the first or the second half of each word; what lies in the others may be written by another thread.
DL_INLINE void store_every_other_half(uint8_t* words, U16 halves, int is_second) {
#if defined(DRAFTLINE_AVX512)
  const __m512i wide = _mm512_cvtepu16_epi32((__m256i)halves);
  if (is_second != 0)
    _mm512_mask_storeu_epi16(words, 0xaaaaaaaa, _mm512_slli_epi32(wide, 16));
  else
    _mm512_mask_storeu_epi16(words, 0x55555555, wide);
#else
  uint16_t* out = reinterpret_cast<uint16_t*>(words) + is_second;
  for (int i = 0; i < kWidth; ++i) out[2 * i] = halves[i];
#endif
}

// kWidth bytes into one of the four of each word; what lies in the others may be written by another thread.
DL_INLINE void store_every_fourth_byte(uint8_t* words, const uint8_t* bytes, int place) {
#if defined(DRAFTLINE_AVX512)
  const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
  _mm512_mask_storeu_epi8(words, 0x1111111111111111ull << place, _mm512_sllv_epi32(wide, _mm512_set1_epi32(8 * place)));
#else
  for (int i = 0; i < kWidth; ++i) words[4 * i + place] = bytes[i];
#endif
}

// Lane i: acc + the four products of unsigned bytes w[4i..] and signed bytes a; exact.
DL_INLINE I32 dot_bytes(I32 acc, U8 w, int32_t a) {
#if defined(DRAFTLINE_AVX512)
  return (I32)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32(a));
#elif defined(DRAFTLINE_AVX2)
  // 255 * 127 * 2 does not fit 16 bits: the top bit goes by itself.
  const __m256i four = _mm256_set1_epi32(a), ones = _mm256_set1_epi16(1);
  const __m256i low = _mm256_and_si256((__m256i)w, _mm256_set1_epi8(0x7f));
  const __m256i top = _mm256_and_si256((__m256i)w, _mm256_set1_epi8(-128));
  return acc + (I32)_mm256_add_epi32(_mm256_madd_epi16(_mm256_maddubs_epi16(low, four), ones),
                                     _mm256_madd_epi16(_mm256_maddubs_epi16(top, four), ones));
#elif defined(__SSE2__)
  // Even and odd bytes as 16-bit numbers: their products fit.
  const uint32_t even = static_cast<uint16_t>(static_cast<int8_t>(a)) |
                        static_cast<uint32_t>(static_cast<int8_t>(a >> 16)) << 16;
  const uint32_t odd = static_cast<uint16_t>(static_cast<int8_t>(a >> 8)) | static_cast<uint32_t>(a >> 24) << 16;
  const __m128i low = _mm_and_si128((__m128i)w, _mm_set1_epi16(0xff)), high = _mm_srli_epi16((__m128i)w, 8);
  return acc + (I32)_mm_madd_epi16(low, _mm_set1_epi32(even)) + (I32)_mm_madd_epi16(high, _mm_set1_epi32(odd));
#else
  const U32 wide = (U32)w;
  for (int byte = 0; byte < 4; ++byte) {
    const I32 value = (I32)((wide >> (8 * byte)) & 0xff);
    acc = acc + value * splat(static_cast<int32_t>(static_cast<int8_t>(a >> (8 * byte))));
  }
  return acc;
#endif
}

// Lane i: acc + the four products of signed bytes v[4i..], none of them -128, and unsigned bytes a; exact.
DL_INLINE I32 dot_signed_bytes(I32 acc, U8 v, int32_t a) {
#if defined(DRAFTLINE_AVX512)
  return (I32)_mm512_dpbusd_epi32((__m512i)acc, _mm512_set1_epi32(a), (__m512i)v);
#elif defined(DRAFTLINE_AVX2)
  // 255 * 127 * 2 does not fit 16 bits: the top bit goes by itself.
  const __m256i low = _mm256_set1_epi32(a & 0x7f7f7f7f), top = _mm256_set1_epi32(a & static_cast<int32_t>(0x80808080));
  const __m256i ones = _mm256_set1_epi16(1);
  const __m256i products = _mm256_add_epi32(_mm256_madd_epi16(_mm256_maddubs_epi16(low, (__m256i)v), ones),
                                            _mm256_madd_epi16(_mm256_maddubs_epi16(top, (__m256i)v), ones));
  return acc + (I32)products;
#elif defined(__SSE2__)
  const __m128i even = _mm_set1_epi32(a & 0x00ff00ff);
  const __m128i odd = _mm_set1_epi32(static_cast<int32_t>(static_cast<uint32_t>(a) >> 8 & 0x00ff00ff));
  const __m128i low = _mm_srai_epi16(_mm_slli_epi16((__m128i)v, 8), 8), high = _mm_srai_epi16((__m128i)v, 8);
  return acc + (I32)_mm_madd_epi16(low, even) + (I32)_mm_madd_epi16(high, odd);
#else
  for (int byte = 0; byte < 4; ++byte) {
    const I32 value = (I32)((U32)v << (24 - 8 * byte)) >> 24;
    acc = acc + value * splat(static_cast<int32_t>(static_cast<uint32_t>(a) >> (8 * byte) & 0xff));
  }
  return acc;
#endif
}

// Two activations as dot_bf16 multiplies them: rounded to bfloat16, but stored as floats where it would only be
// widened again for each product.
#if defined(DRAFTLINE_BF16)
typedef uint32_t Pair;
constexpr int kPairBytes = 4;
DL_INLINE Pair load_pair(const uint8_t* p) { return load_int(p); }
#else
typedef const float* Pair;  // read when it is multiplied, straight into all lanes
constexpr int kPairBytes = 8;
DL_INLINE Pair load_pair(const uint8_t* p) { return reinterpret_cast<Pair>(p); }
#endif

// Rounds kWidth values into pairs, of which only the first `count` values are written.
DL_INLINE void store_pairs(uint8_t* out, F32 x, int count) {
#if defined(DRAFTLINE_BF16)
  const U16 rounded = to_bf16_halves(x);
#else
  const U32 rounded = to_bf16(x) << 16;
#endif
  if (count >= kWidth)
    __builtin_memcpy(out, &rounded, sizeof rounded);  // a length that is known takes no call
  else
    __builtin_memcpy(out, &rounded, kPairBytes / 2 * count);
}

// Lane i: acc + w[2i] * a[0] + w[2i + 1] * a[1], all bfloat16.
DL_INLINE F32 dot_bf16(F32 acc, U32 w, Pair a) {
#if defined(DRAFTLINE_BF16)
  return (F32)_mm512_dpbf16_ps((__m512)acc, (__m512bh)w, (__m512bh)_mm512_set1_epi32(a));
#else
  acc = fma((F32)(w << 16), splat(a[0]), acc);
  return fma((F32)(w & 0xffff0000u), splat(a[1]), acc);
#endif
}

// acc[row][i] + the products of vector i of `line` with each row's pair.
template <int kRows, int kVectors>
DL_INLINE void add_pair(const uint8_t* line, const uint8_t* pairs, int64_t stride, F32 (&acc)[kRows][kVectors]) {
#if defined(DRAFTLINE_BF16)
  DL_UNROLL(9)
  for (int row = 0; row < kRows; ++row)
    for (int i = 0; i < kVectors; ++i)
      acc[row][i] = dot_bf16(acc[row][i], load_words(line + 4 * kWidth * i), load_pair(pairs + row * stride));
#else
  // One side after the other: half as many vectors of the line are needed at once.
  DL_UNROLL(2)
  for (int side = 0; side < 2; ++side) {
    F32 values[kVectors];
    for (int i = 0; i < kVectors; ++i) {
      const U32 words = load_words(line + 4 * kWidth * i);
      values[i] = (F32)(side == 0 ? words << 16 : words & 0xffff0000u);
    }
    DL_UNROLL(9)
    for (int row = 0; row < kRows; ++row) {
      const F32 value = splat(load_pair(pairs + row * stride)[side]);
      for (int i = 0; i < kVectors; ++i) {
        acc[row][i] = fma(values[i], value, acc[row][i]);
        keep_in_register(acc[row][i]);
      }
    }
  }
#endif
}

}  // namespace DRAFTLINE_ISA
}  // namespace draftline
