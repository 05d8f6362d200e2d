"""KernelLaunch: one launch of a Triton kernel, to be run, or compiled ahead of time for some card."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from triton.runtime import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from engine.kernels.cuda.variants import Variant

Argument: TypeAlias = "Tensor | TensorDescriptor | int | float | None"

_ALIGNMENT = 16  # bytes of an address, and factor of an integer, that Triton compiles for
_MAX_INT32 = 2**31 - 1
_TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int16: "i16",
}


@dataclass(frozen=True)
class KernelLaunch:
    """A kernel, its grid and its arguments; `unspecialised` ones are compiled for any value."""

    kernel: JITFunction[object]
    grid: tuple[int, ...]
    arguments: Mapping[str, Argument]
    constants: Mapping[str, object]
    options: Mapping[str, int]
    unspecialised: frozenset[str] = frozenset()

    def run(self) -> None:
        """Launch on the current stream."""
        self.kernel[self.grid](**self.arguments, **self.constants, **self._options)

    def variant(self) -> Variant:
        """Return what Triton compiles for this launch."""
        constant = {name for name, value in self.arguments.items() if self._is_constant(name, value)}
        variable = {name: value for name, value in self.arguments.items() if name not in constant}
        return Variant(
            kernel=self.kernel,
            signature={name: _type_name(value) for name, value in variable.items()},
            constants={**{name: self.arguments[name] for name in sorted(constant)}, **self.constants},
            options=self._options,
            divisible=frozenset(name for name, value in variable.items() if self._is_divisible(name, value)),
        )

    @property
    def _options(self) -> dict[str, int]:
        """Return all options; a * b + c is fused by name alone, so that every kernel rounds it alike."""
        return {**self.options, "enable_fp_fusion": False}

    def _is_constant(self, name: str, value: Argument) -> bool:
        return value is None or (isinstance(value, int) and value == 1 and name not in self.unspecialised)

    def _is_divisible(self, name: str, value: Argument) -> bool:
        if isinstance(value, Tensor):
            return value.data_ptr() % _ALIGNMENT == 0
        return isinstance(value, int) and name not in self.unspecialised and value % _ALIGNMENT == 0


def distinct_variants(launches: Iterable[KernelLaunch]) -> Iterator[Variant]:
    """Yield each variant of some launches once."""
    seen = set()
    for launch in launches:
        variant = launch.variant()
        key = (
            variant.kernel,
            *(tuple(sorted(part.items(), key=str)) for part in variant[1:4]),
            variant.divisible,
        )
        if key not in seen:
            seen.add(key)
            yield variant


def _type_name(value: Argument) -> str:
    if isinstance(value, Tensor):
        return f"*{_TYPES[value.dtype]}"
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{_TYPES[value.base.dtype]}{list(value.block_shape)}>"
    if isinstance(value, float):
        return "fp32"
    return "i32" if value is not None and value <= _MAX_INT32 else "i64"
