// Sixteen lanes of float and what the kernels do with them, for the instruction set of the including file.
//
// Vectors are GCC's and clang's own, 64 bytes wide: where registers are narrower the compiler splits them.
// Intrinsics stand where a machine has an instruction that C++ cannot name. Sums keep one order everywhere.
#ifndef DRAFTLINE_ISA
#error "include kernels.h from one of the isa_*.cpp files"
#endif

namespace draftline {
namespace DRAFTLINE_ISA {

typedef float F32 __attribute__((vector_size(64)));
typedef float F32U __attribute__((vector_size(64), aligned(4)));
typedef int32_t I32 __attribute__((vector_size(64)));
typedef uint32_t U32 __attribute__((vector_size(64)));
typedef uint32_t U32U __attribute__((vector_size(64), aligned(4)));
typedef uint8_t U8 __attribute__((vector_size(64)));
typedef uint16_t U16Half __attribute__((vector_size(32)));
typedef uint16_t U16HalfU __attribute__((vector_size(32), aligned(2)));
typedef int8_t I8Quarter __attribute__((vector_size(16), aligned(1)));

#define DL_PRAGMA(text) _Pragma(#text)
#if defined(DRAFTLINE_AVX512)
#define DL_UNROLL(times) DL_PRAGMA(GCC unroll times)  // sums must live in registers
#else
#define DL_UNROLL(times)
#endif
#define DL_INLINE static inline __attribute__((always_inline))

DL_INLINE F32 load(const float* p) { return *reinterpret_cast<const F32U*>(p); }
DL_INLINE void store(float* p, F32 x) { *reinterpret_cast<F32U*>(p) = x; }
DL_INLINE U8 load_bytes(const uint8_t* p) {
  U32 line = *reinterpret_cast<const U32U*>(p);
  return (U8)line;
}
DL_INLINE F32 splat(float x) { return F32{} + x; }
DL_INLINE I32 splat(int32_t x) { return I32{} + x; }
DL_INLINE I32 lane_numbers() { return I32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }
DL_INLINE F32 select(I32 mask, F32 a, F32 b) { return (F32)((mask & (I32)a) | (~mask & (I32)b)); }
DL_INLINE int32_t load_int(const void* p) {
  int32_t value;
  __builtin_memcpy(&value, p, 4);
  return value;
}

// a * b + c, rounded once where the machine can.
DL_INLINE F32 fma(F32 a, F32 b, F32 c) {
#if defined(DRAFTLINE_AVX512)
  return (F32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(DRAFTLINE_AVX2)
  typedef float Half __attribute__((vector_size(32)));
  union Halves { F32 whole; Half half[2]; } x{a}, y{b}, z{c};
  for (int i = 0; i < 2; ++i)
    z.half[i] = (Half)_mm256_fmadd_ps((__m256)x.half[i], (__m256)y.half[i], (__m256)z.half[i]);
  return z.whole;
#elif defined(__aarch64__)
  union Quarters { F32 whole; float32x4_t quarter[4]; } x{a}, y{b}, z{c};
  for (int i = 0; i < 4; ++i) z.quarter[i] = vfmaq_f32(z.quarter[i], x.quarter[i], y.quarter[i]);
  return z.whole;
#else
  return a * b + c;
#endif
}

DL_INLINE F32 max(F32 a, F32 b) {
#if defined(DRAFTLINE_AVX512)
  return (F32)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return select(a > b, a, b);
#endif
}

DL_INLINE F32 absolute(F32 x) { return (F32)((I32)x & splat(0x7fffffff)); }

// Halves are added pairwise: the order depends on nothing.
DL_INLINE float sum(F32 x) {
  float lanes[kLanes];
  store(lanes, x);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

DL_INLINE float highest(F32 x) {
#if defined(DRAFTLINE_AVX512)
  return _mm512_reduce_max_ps((__m512)x);
#else
  float lanes[kLanes];
  store(lanes, x);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
  return lanes[0];
#endif
}

DL_INLINE I32 round_to_int(F32 x) {  // to nearest even; |x| < 2**22
  const F32 magic = splat(12582912.0f);
  return (I32)(x + magic) - (I32)magic;
}

// e**x within 2 ulp; 0 below -87; exactly 1 at 0 (polynomial of Cephes' expf).
DL_INLINE F32 exponential(F32 x) {
  const I32 underflows = x < splat(-87.0f);
  x = select(x > splat(88.0f), splat(88.0f), select(underflows, splat(0.0f), x));
  const I32 n = round_to_int(x * splat(1.44269504088896341f));
  const F32 nf = __builtin_convertvector(n, F32);
  F32 r = fma(nf, splat(-0.693359375f), x);
  r = fma(nf, splat(2.12194440e-4f), r);
  F32 p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p * r, r, r) + splat(1.0f);
  const F32 scaled = (F32)((I32)p + (n << 23));
  return select(underflows, splat(0.0f), scaled);
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
  union Halves { F32 whole; __m256 half[2]; } x;
  for (int i = 0; i < 2; ++i)
    x.half[i] = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + i));
  return x.whole;
#else
  const U16HalfU h = *reinterpret_cast<const U16HalfU*>(p);
  const U32 wide = __builtin_convertvector((U16Half)h, U32);
  const U32 magnitude = (wide & 0x7fff) << 13;
  // 2**112 moves the exponent bias, and makes subnormal halves normal floats.
  const F32 value = (F32)magnitude * splat(5.192296858534828e+33f);
  return (F32)((U32)value | ((wide & 0x8000) << 16));
#endif
}

DL_INLINE F32 from_bf16(U32 upper) { return (F32)(upper << 16); }

// Rounds to nearest even into the low 16 bits of each lane; not for NaN.
DL_INLINE U32 to_bf16(F32 x) {
  const U32 bits = (U32)x;
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

// Lane i: acc + the four products of unsigned bytes w[4i..] and signed bytes a; exact.
template <bool kSmallWeights>  // weights below 128
DL_INLINE I32 dot_bytes(I32 acc, U8 w, int32_t a) {
#if defined(DRAFTLINE_AVX512)
  return (I32)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32(a));
#elif defined(DRAFTLINE_AVX2)
  union Halves { I32 whole; U8 bytes; __m256i half[2]; } sum{acc}, x;
  x.bytes = w;
  const __m256i four = _mm256_set1_epi32(a), ones = _mm256_set1_epi16(1);
  for (int i = 0; i < 2; ++i) {
    // 255 * 127 * 2 does not fit 16 bits: the top bit goes by itself.
    const __m256i low = kSmallWeights ? x.half[i] : _mm256_and_si256(x.half[i], _mm256_set1_epi8(0x7f));
    __m256i products = _mm256_madd_epi16(_mm256_maddubs_epi16(low, four), ones);
    if (!kSmallWeights) {
      const __m256i top = _mm256_and_si256(x.half[i], _mm256_set1_epi8(-128));
      products = _mm256_add_epi32(products, _mm256_madd_epi16(_mm256_maddubs_epi16(top, four), ones));
    }
    sum.half[i] = _mm256_add_epi32(sum.half[i], products);
  }
  return sum.whole;
#else
  const U32 wide = (U32)w;
  for (int byte = 0; byte < 4; ++byte) {
    const I32 value = (I32)((wide >> (8 * byte)) & 0xff);
    acc = acc + value * splat(static_cast<int32_t>(static_cast<int8_t>(a >> (8 * byte))));
  }
  return acc;
#endif
}

// Lane i: acc + w[2i] * a[0] + w[2i + 1] * a[1], all bfloat16.
DL_INLINE F32 dot_bf16(F32 acc, U32 w, uint32_t a) {
#if defined(DRAFTLINE_BF16)
  return (F32)_mm512_dpbf16_ps((__m512)acc, (__m512bh)w, (__m512bh)_mm512_set1_epi32(a));
#else
  union Bits { uint32_t bits; float value; } low{a << 16}, high{a & 0xffff0000u};
  acc = fma((F32)(w << 16), splat(low.value), acc);
  return fma((F32)(w & 0xffff0000u), splat(high.value), acc);
#endif
}

DL_INLINE U32 load_words(const void* p) { return *reinterpret_cast<const U32U*>(p); }

}  // namespace DRAFTLINE_ISA
}  // namespace draftline
