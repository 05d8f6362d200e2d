"""Compiles quantised products for cards that are not here and prints what the compiler made of each, as JSON.

python -m tests.engine.kernels.cuda.compile_quantized Q4_0 90 1
"""

import json
import re
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from engine.checkpoint.model_config import Activation
from engine.kernels.cuda.norm import NormWeights
from engine.kernels.cuda.projection_layer import Projection
from engine.kernels.cuda.projection_workspace import ProjectionWorkspace
from engine.kernels.cuda.quantized import variants
from engine.kernels.cuda.quantized_blocks import BLOCK_BYTES
from engine.kernels.cuda.quantized_matrix import pack
from engine.kernels.cuda.quantized_projection import QuantizedProjection
from engine.kernels.cuda.variants import Variant, compile_variant

_T = torch.bfloat16


def _layer(tensor_format: str) -> QuantizedProjection:
    size, num_bytes = BLOCK_BYTES[tensor_format]
    rows = torch.zeros(2 * 64, 512 // size * num_bytes, dtype=torch.uint8).numpy()
    norm = NormWeights(torch.ones(512, dtype=_T), None, 1e-5)
    return QuantizedProjection(pack(rows, tensor_format, num_parts=2), None, norm, Activation.SILU, True, _T)


def _assembly(variant: Variant, capability: int) -> tuple[str, str]:
    names = variant.kernel.arg_names
    source = ASTSource(
        variant.kernel,
        {name: variant.signature.get(name, "constexpr") for name in names},
        {(names.index(name),): value for name, value in variant.constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in sorted(variant.divisible)},
    )
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options=dict(variant.options))
    return compiled.asm["ttgir"], compiled.asm["ptx"]


def main(tensor_format: str, capability: int, row_counts: list[int]) -> None:
    """Print a line for each variant."""
    layer = _layer(tensor_format)
    plain = Projection(torch.empty(128, 512, dtype=_T), None, layer.norm, layer.activation, True, _T)
    workspace = ProjectionWorkspace(128, [plain], torch.device("cpu"))
    for variant in variants(layer, workspace, row_counts, dtype=_T):
        report = compile_variant(variant, capability)
        layouts, assembly = _assembly(variant, capability)
        copies = re.findall(r"cp\.async\.c\w\.shared\.global \[[^,]*, [^,]*, (0x\w+)", assembly)
        widths = sorted(set(re.findall(r"kWidth = (\d+)", layouts)))
        name = variant.kernel.__name__
        print(json.dumps([name, report._asdict(), widths, copies.count("0x10")]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), [int(count) for count in sys.argv[3:]])
