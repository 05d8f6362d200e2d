"""Compile variants of sampling kernels ahead of time; run as a program, without Triton's interpreter.

python compile_sampling.py MODULE ... prints a line for each kernel, target and variant: name, capability,
shared bytes, registers, spilled bytes.
"""

import importlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_source


def ptxas():
    return str(Path(triton.__file__).parent / "backends/nvidia/bin/ptxas")


def compile_variant(variant, capability):
    names = variant.kernel.arg_names
    signature = {name: variant.signature.get(name, "constexpr") for name in names}
    constants = {(names.index(name),): value for name, value in variant.constants.items()}
    divisible = {(names.index(name),): [["tt.divisibility", 16]] for name in variant.divisible}
    source = ASTSource(variant.kernel, signature, constants, divisible)
    return compile_source(source, target=GPUTarget("cuda", capability, 32), options=dict(variant.options))


def usage(compiled, capability):
    """Ask the assembler for registers and spilled bytes."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        tool = Path(ptxas()).with_name("cuobjdump")
        text = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    [registers] = re.findall(r"REG:(\d+)", text)
    [stack] = re.findall(r"STACK:(\d+)", text)
    [local] = re.findall(r"LOCAL:(\d+)", text)
    return int(registers), int(stack) + int(local)


def main(modules, capabilities=(80, 90, 100)):
    for module in modules:
        for variant in importlib.import_module(module).variants():
            for capability in capabilities:
                if variant.constants.get("PDL") and capability < 90:
                    continue  # no such instructions
                compiled = compile_variant(variant, capability)
                registers, spilled = usage(compiled, capability)
                fields = [variant.kernel.__name__, capability, compiled.metadata.shared, registers, spilled]
                print(*fields, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
