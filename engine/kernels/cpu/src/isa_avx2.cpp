// AVX2 with FMA: most x86-64 since 2013.
#include "layout.h"
#include "target.h"

#if defined(__x86_64__)
#define DRAFTLINE_ISA avx2
#define DRAFTLINE_AVX2
DRAFTLINE_TARGET_BEGIN("avx2,fma,f16c")
#include "kernels.h"
DRAFTLINE_TARGET_END
#endif

namespace draftline {

const Kernels* avx2_kernels() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &avx2::table;
#endif
  return nullptr;
}

}  // namespace draftline
