// AVX-512 with VNNI and bfloat16: Zen 4, Cooper Lake, Sapphire Rapids and later.
#include "layout.h"
#include "target.h"

#if defined(__x86_64__)
#define DRAFTLINE_ISA avx512_bf16
#define DRAFTLINE_AVX512
#define DRAFTLINE_BF16
DRAFTLINE_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512cd,avx512vnni,avx512bf16,avx2,fma,f16c")
#include "kernels.h"
DRAFTLINE_TARGET_END
#endif

namespace draftline {

const Kernels* avx512_bf16_kernels() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512bf16")) return &avx512_bf16::table;
#endif
  return nullptr;
}

}  // namespace draftline
