"""Where a row of logits lies: as the model gave it, or adjusted by its request's history and wishes."""

import triton
import triton.language as tl


@triton.jit
def row_pointer(logits, stride, adjusted, adjusted_stride, is_adjusted, row, HAS_ADJUSTED: tl.constexpr):
    """Return the address of the logits that the row's token is chosen by."""
    pointer = logits + row.to(tl.int64) * stride
    if HAS_ADJUSTED:
        if tl.load(is_adjusted + row) != 0:
            pointer = adjusted + row.to(tl.int64) * adjusted_stride
    return pointer


@triton.jit
def state_float(state, column):
    """Return a number of the request's row that is kept as the bits of float32."""
    return tl.load(state + column).to(tl.float32, bitcast=True)
