"""The C interface of src/abi.h, seen through ctypes: calls leave the interpreter lock."""

import ctypes
import functools
import itertools
import os
import struct
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_uint64, c_void_p
from enum import IntEnum
from pathlib import Path

from engine.interface.errors import ConfigError

ABI_VERSION = 10
MAX_THREADS = 255


class MatrixKind(IntEnum):
    """How the kernels hold a matrix."""

    Q4 = 0
    Q8 = 1
    BF16 = 2
    F32 = 3


class RowsFormat(IntEnum):
    """How rows are stored that the kernels can pack."""

    Q4_0 = 0
    Q4_1 = 1
    Q8_0 = 2
    BF16 = 3
    F32 = 4


class KVKind(IntEnum):
    """How keys and values are held."""

    BF16 = 0
    F32 = 1
    INT8 = 2


class NormKind(IntEnum):
    """Which norm stands before each block."""

    RMS_NORM = 0
    LAYER_NORM = 1


class ActivationKind(IntEnum):
    """Which non-linearity the feed-forward layers have."""

    SILU = 0
    GELU = 1
    GELU_TANH = 2


class Matrix(ctypes.Structure):
    """struct Matrix."""

    _fields_ = [
        ("data", c_void_p),
        ("bias", c_void_p),
        ("kind", c_int32),
        ("num_columns", c_int32),
        ("num_tiles", c_int32),
        ("num_units", c_int32),
        ("tile_bytes", c_int64),
    ]


class Layer(ctypes.Structure):
    """struct Layer."""

    _fields_ = [
        ("qkv", Matrix),
        ("o", Matrix),
        ("gate_up", Matrix),
        ("down", Matrix),
        ("attn_norm_weight", c_void_p),
        ("attn_norm_bias", c_void_p),
        ("mlp_norm_weight", c_void_p),
        ("mlp_norm_bias", c_void_p),
        ("q_norm_weight", c_void_p),
        ("k_norm_weight", c_void_p),
    ]


class Model(ctypes.Structure):
    """struct Model."""

    _fields_ = [
        ("layers", POINTER(Layer)),
        ("embed", Matrix),
        ("head", Matrix),
        ("embed_positions", c_void_p),
        ("rope_cos", c_void_p),
        ("rope_sin", c_void_p),
        ("norm_weight", c_void_p),
        ("norm_bias", c_void_p),
        ("num_layers", c_int32),
        ("hidden_size", c_int32),
        ("inner_size", c_int32),
        ("num_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("vocab_size", c_int32),
        ("norm_kind", c_int32),
        ("activation", c_int32),
        ("is_gated", c_int32),
        ("norm_eps", c_float),
        ("attention_scale", c_float),
    ]


class KVTiles(ctypes.Structure):
    """struct KVTiles."""

    _fields_ = [
        ("base", c_void_p),
        ("tile_stride", c_int64),
        ("layer_stride", c_int64),
        ("head_stride", c_int64),
        ("kind", c_int32),
        ("tiles_per_block", c_int32),
    ]


class StepTimes(ctypes.Structure):
    """struct StepTimes."""

    _fields_ = [
        ("step_nanoseconds", c_uint64),
        ("barrier_nanoseconds", c_uint64),
        ("num_steps", c_uint64),
        ("num_barriers", c_uint64),
    ]


class Span(ctypes.Structure):
    """struct Span."""

    _fields_ = [(name, c_int32) for name in ("first_row", "num_tokens", "first_position", "table_offset")]


ROW_SAMPLING = struct.Struct("=fffiII")
"""struct RowSampling."""

_STRUCT_BYTES = (
    *map(ctypes.sizeof, (Matrix, Layer, Model, KVTiles, Span)),
    ROW_SAMPLING.size,
    ctypes.sizeof(StepTimes),
)


def _check_status(status: int) -> None:
    """Raise what went wrong in a call of the kernels."""
    if status == 1:
        raise MemoryError("the CPU kernels ran out of memory for a step")
    if status:
        raise RuntimeError("the CPU kernels failed")


_STATUS = _check_status  # as ctypes calls it with what the function returned
_TOKENS_AND_SPANS = (c_void_p, c_int32, c_void_p, c_int32, c_void_p)
_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "draftline_abi_version": (c_int32, []),
    "draftline_instruction_set": (c_char_p, [c_char_p]),
    "draftline_context_new": (c_void_p, [c_int32, c_char_p]),
    "draftline_context_free": (None, [c_void_p]),
    "draftline_kv_tile_bytes": (c_int64, [c_int32, c_int32]),
    "draftline_pack": (None, [c_int32, c_void_p, c_int32, c_int32, c_int64, c_void_p]),
    "draftline_forward": (
        _STATUS,
        [
            c_void_p,
            POINTER(Model),
            POINTER(KVTiles),
            *_TOKENS_AND_SPANS,
            c_void_p,
            c_void_p,
        ],
    ),
    "draftline_compute_logits": (_STATUS, [c_void_p, POINTER(Model), c_void_p, c_int32, c_void_p]),
    "draftline_sample": (
        _STATUS,
        [c_void_p, c_void_p, c_int64, c_int32, c_int32, c_void_p, c_void_p, c_void_p],
    ),
    "draftline_step": (
        _STATUS,
        [
            c_void_p,
            POINTER(Model),
            POINTER(KVTiles),
            *_TOKENS_AND_SPANS,
            c_void_p,
            c_int32,
            c_void_p,
            c_int32,
            c_void_p,
            c_void_p,
            c_void_p,
        ],
    ),
    "draftline_draft": (
        _STATUS,
        [
            c_void_p,
            POINTER(Model),
            POINTER(KVTiles),
            *_TOKENS_AND_SPANS,
            c_int32,
            c_int32,
            c_void_p,
            c_int32,
            c_void_p,
        ],
    ),
    "draftline_mask": (None, [c_void_p, c_void_p, c_int32]),
    "draftline_set_timing": (None, [c_void_p, c_int32]),
    "draftline_take_times": (None, [c_void_p, POINTER(StepTimes)]),
    "draftline_allocate": (c_void_p, [c_int64]),
    "draftline_free": (None, [c_void_p, c_int64]),
}


def library_path() -> Path | None:
    """Return the file that `pip install` built, if it did."""
    return next(iter(sorted(Path(__file__).parent.glob("_kernels*.so"))), None)


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """Return the library, or None where it was not built."""
    path = library_path()
    if path is None:
        return None
    try:
        library = ctypes.CDLL(str(path))
    except OSError:  # built for another system
        return None
    check_layout(library, path)
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def check_layout(library: ctypes.CDLL, path: Path) -> None:
    """Raise ConfigError for a library whose structs or functions are not the ones of this file."""
    if library.draftline_abi_version() == ABI_VERSION:
        library.draftline_struct_bytes.restype = POINTER(c_int64)
        sizes = library.draftline_struct_bytes()
        if tuple(itertools.takewhile(bool, (sizes[i] for i in range(100)))) == _STRUCT_BYTES:
            return
    raise ConfigError(f"{path} is of another version of draftline; install it again (`pip install -e .`)")


def require_library() -> ctypes.CDLL:
    """Return the library; raises ConfigError where it was not built."""
    library = load_library()
    if library is None:
        raise ConfigError("the CPU kernels were not built: install a C++ compiler and draftline again")
    return library


INSTRUCTION_SETS = ("avx512_bf16", "avx512", "avx2", "portable")
"""Best first."""


def available_instruction_sets(highest: str | None = None) -> tuple[str, ...]:
    """Return those of this processor, best first, from `highest` on; raises ConfigError for an unknown one.

    None is what the environment variable DRAFTLINE_MAX_CPU_ISA says, or the best.
    """
    highest = highest or os.environ.get("DRAFTLINE_MAX_CPU_ISA") or INSTRUCTION_SETS[0]
    if highest not in INSTRUCTION_SETS:
        raise ConfigError(
            f"DRAFTLINE_MAX_CPU_ISA must be one of {', '.join(INSTRUCTION_SETS)}, not {highest!r}"
        )
    library, allowed = require_library(), INSTRUCTION_SETS[INSTRUCTION_SETS.index(highest) :]
    return tuple(name for name in allowed if library.draftline_instruction_set(name.encode()) is not None)


class KernelContext:
    """The kernels' threads and working memory; runs one step at a time.

    `instruction_set` is one of INSTRUCTION_SETS; None is the best that is available.
    """

    def __init__(self, *, num_threads: int, instruction_set: str | None = None) -> None:
        self.library = require_library()
        self.instruction_set = instruction_set or available_instruction_sets()[0]
        if self.instruction_set not in available_instruction_sets(INSTRUCTION_SETS[0]):
            raise ConfigError(f"instruction set {instruction_set!r} is not there on this processor")
        self.num_threads = min(num_threads, MAX_THREADS)
        name = self.instruction_set.encode()
        self.handle = c_void_p(self.library.draftline_context_new(self.num_threads, name))
        if not self.handle:
            raise MemoryError(f"the CPU kernels could not start {self.num_threads} threads")

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.library.draftline_context_free(self.handle)

    def set_timing(self, is_on: bool) -> None:
        """Count, or stop counting, the time spent at barriers."""
        self.library.draftline_set_timing(self.handle, int(is_on))

    def take_times(self) -> StepTimes:
        """Return the times since the last call."""
        times = StepTimes()
        self.library.draftline_take_times(self.handle, ctypes.byref(times))
        return times
