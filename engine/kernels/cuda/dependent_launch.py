"""Programmatic dependent launch: a kernel's programs start while the kernel before it is ending."""

import triton
import triton.language as tl


@triton.jit
def wait_for_inputs(PDL: tl.constexpr):
    """Let the next kernel's programs start, and wait until the kernel before has written everything."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
