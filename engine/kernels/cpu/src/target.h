// Instruction sets beyond the baseline, for the functions between BEGIN and END only: nothing that another
// file might share (standard library templates) is ever compiled for a processor that may not be there.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define DRAFTLINE_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define DRAFTLINE_TARGET_BEGIN(features) \
  DRAFTLINE_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define DRAFTLINE_TARGET_END _Pragma("clang attribute pop")
#else
#define DRAFTLINE_TARGET_BEGIN(features) _Pragma("GCC push_options") DRAFTLINE_PRAGMA(GCC target(features))
#define DRAFTLINE_TARGET_END _Pragma("GCC pop_options")
#endif
