"""The product of many rows by cuBLASLt, made to add in the order of this engine's own kernels.

With split-K forbidden its sums over K have the bits of a Triton product that is not cut (seen on Hopper for
bfloat16 and float16, not for float32). That is no promise of its makers: engine/kernels/cuda/numerics.py
checks it at every start, and a layer that differs stays with Triton.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Product = Callable[[Tensor, Tensor, Tensor], None]
"""(x [M, K], weight [N, K], out [M, N]): out = x W^T, summed in float32, rounded once to out's dtype."""


def forbid_split_k() -> None:
    """Make torch take its products from cuBLASLt, without cutting K and adding in lower precision.

    Process-wide. cuBLASLt must be chosen first: no other backend takes the second part of the settings.
    """
    torch.backends.cuda.preferred_blas_library("cublaslt")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = (False, False)
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = (False, False)


def library_product(x: Tensor, weight: Tensor, out: Tensor) -> None:
    """Multiply by torch's library; see Product.

    Raises RuntimeError where it cannot store float32 sums of half precision factors.
    """
    if out.dtype == x.dtype:
        torch.mm(x, weight.T, out=out)
    else:
        torch.mm(x, weight.T, out_dtype=out.dtype, out=out)


class LibraryCall(NamedTuple):
    """One call of a library's product."""

    product: Product
    x: Tensor
    weight: Tensor
    out: Tensor

    def run(self) -> None:
        """Launch on the current stream."""
        self.product(self.x, self.weight, self.out)
