"""Compile variants of sampling kernels ahead of time; run as a program, without Triton's interpreter.

Prints a line for each kernel, target and variant: name, capability, shared bytes, registers, spilled bytes.
"""

import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_source

from engine.kernels.cuda import acceptance, adjustments, choose, filters, token_counts, top_logprobs


def compile_variant(variant, capability):
    names = variant.kernel.arg_names
    signature = {name: variant.signature.get(name, "constexpr") for name in names}
    constants = {(names.index(name),): value for name, value in variant.constants.items()}
    divisible = {(names.index(name),): [["tt.divisibility", 16]] for name in variant.divisible}
    source = ASTSource(variant.kernel, signature, constants, divisible)
    return compile_source(source, target=GPUTarget("cuda", capability, 32), options=dict(variant.options))


def usage(compiled):
    """Return the registers and the bytes of stack and local memory, into which a kernel spills."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        text = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    [registers, stack, local] = re.findall(r"(?:REG|STACK|LOCAL):(\d+)", text)
    return int(registers), int(stack) + int(local)


def variants(capability):
    """Yield those of a large vocabulary; 8.0 has no dependent launch, and one target is enough for it."""
    dependent = (True,) if capability == 90 else (False,)
    vocab_size = 151_936
    yield from filters.variants(vocab_size, vocab_size, dependent=dependent)
    yield from choose.variants(vocab_size, vocab_size, dependent=dependent)
    yield from adjustments.variants(vocab_size, vocab_size, num_rows=256)
    yield from top_logprobs.variants(vocab_size, vocab_size, tops=(20,))
    yield from acceptance.variants(num_rows=256, dependent=dependent)
    yield from token_counts.variants(num_rows=256)


def main():
    for capability in (80, 90, 100):
        for variant in variants(capability):
            if not all(value for name, value in variant.constants.items() if name.startswith("HAS_")):
                continue  # the same with less in it
            compiled = compile_variant(variant, capability)
            fields = [variant.kernel.__name__, capability, compiled.metadata.shared, *usage(compiled)]
            print(*fields, flush=True)


if __name__ == "__main__":
    main()
