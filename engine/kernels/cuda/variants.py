"""Variants: the forms in which the server uses each kernel, compiled ahead of time for a card not at hand."""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import JITFunction

WARP_SIZE = 32


class Variant(NamedTuple):
    """A kernel with its constants, as a launcher would have it compiled."""

    kernel: JITFunction[object]
    signature: Mapping[str, str]  # argument -> "*bf16", "i32", "fp32": all that are no constants
    constants: Mapping[str, object]
    options: Mapping[str, int]  # num_warps, num_stages
    divisible: frozenset[str]  # arguments that the launcher's are divisible by 16: pointers, strides

    def __str__(self) -> str:
        """Name the variant."""
        constants = ", ".join(f"{name}={value}" for name, value in self.constants.items())
        return f"{self.kernel.__name__}({constants}; {dict(self.options)})"


class Report(NamedTuple):
    """What the compiler made of a variant."""

    shared_bytes: int
    num_registers: int  # of a thread
    spill_bytes: int  # of a thread: its stack and local memory
    num_wgmma: int  # instructions for the matrix units of Hopper and later in the assembly
    num_mma: int


def compile_variant(variant: Variant, capability: int) -> Report:
    """Compile for a card of this compute capability (80, 90, 100), which need not be there.

    Triton must not interpret: TRITON_INTERPRET is unset in this process.
    """
    names = variant.kernel.arg_names
    signature = {name: variant.signature.get(name, "constexpr") for name in names}
    constants = {(names.index(name),): value for name, value in variant.constants.items()}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in sorted(variant.divisible)}
    source = ASTSource(variant.kernel, signature, constants, attributes)
    target = GPUTarget("cuda", capability, WARP_SIZE)
    compiled = triton.compile(source, target=target, options=dict(variant.options))
    ptx = compiled.asm["ptx"]
    registers, stack_bytes = _resource_usage(compiled.asm["cubin"])
    return Report(
        shared_bytes=compiled.metadata.shared,
        num_registers=registers,
        spill_bytes=stack_bytes,
        num_wgmma=len(re.findall(r"wgmma\.mma_async|tcgen05\.mma", ptx)),
        num_mma=ptx.count("mma.sync"),
    )


def _resource_usage(cubin: bytes) -> tuple[int, int]:
    """Return registers, and bytes of stack and local memory: what a thread spills lies there."""
    tool = str(triton.knobs.nvidia.cuobjdump.path)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        said = subprocess.run(  # noqa: S603 - Triton's own tool, on what it made
            [tool, "--dump-resource-usage", str(path)], capture_output=True, check=True, text=True
        ).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
    return found["REG"], found["STACK"] + found["LOCAL"]
