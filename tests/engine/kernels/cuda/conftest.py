"""Triton kernels run in Triton's interpreter here, on the CPU; it must be told before they are defined."""

import os

os.environ["TRITON_INTERPRET"] = "1"
