"""How Triton calls the types of a model's numbers."""

import torch

TRITON_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
