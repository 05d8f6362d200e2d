// Any processor: the compiler's own vectors; NEON on 64-bit ARM.
#include "layout.h"
#include "target.h"

#define DRAFTLINE_ISA portable
#include "kernels.h"

namespace draftline {

const Kernels* portable_kernels() { return &portable::table; }

}  // namespace draftline
