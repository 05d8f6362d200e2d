// AVX-512 with VNNI: Cascade Lake, Ice Lake.
#include "layout.h"
#include "target.h"

#if defined(__x86_64__)
#define DRAFTLINE_ISA avx512
#define DRAFTLINE_AVX512
DRAFTLINE_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512cd,avx512vnni,avx2,fma,f16c")
#include "kernels.h"
DRAFTLINE_TARGET_END
#endif

namespace draftline {

const Kernels* avx512_kernels() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw")) return &avx512::table;
#endif
  return nullptr;
}

}  // namespace draftline
