"""Wiring: every name that these checks expect of the CUDA path, in one place.

What is not there is reported as `waiting`, so the checks run before, while and after it is written.
"""

import importlib
import importlib.util
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType, TracebackType
from typing import Any

from torch import Tensor

GRAPHS_OFF: dict[str, object] = {"enforce_eager": True}
"""EngineConfig's field that runs every step without a captured graph."""

DEBUG: dict[str, object] = {"debug_kernels": True}
"""EngineConfig's field that waits for each launch, checks it, and names the step's requests in its error."""

SAMPLING = (
    ("filters", "find_thresholds", ("thresholds",)),
    ("choose", "choose", ("results", "faults")),
)
"""Modules, functions and what they write, of the sampling chain's common signature: (logits, buffers, state,
vocab_size, num_rows, workspace)."""

QUANTISED = "quantized"
"""Module of engine/kernels/cuda that multiplies weights in GGUF blocks."""


def kernel_module(name: str) -> ModuleType | None:
    """Import engine/kernels/cuda/<name>.py, which may not exist yet; `twins.<name>` is its twin in torch."""
    full_name = f"engine.kernels.cuda.{name}"
    if importlib.util.find_spec(full_name) is None:
        return None
    return importlib.import_module(full_name)


class NotThereError(Exception):
    """A module or a setting that these checks expect, and that does not exist yet."""


def need(name: str) -> ModuleType:
    """Import a module of engine/kernels/cuda; raises NotThereError."""
    module = kernel_module(name)
    if module is None:
        raise NotThereError(f"there is no engine/kernels/cuda/{name.replace('.', '/')}.py")
    return module


def uncut_product(x: Tensor, weight: Tensor, out: Tensor) -> None:
    """Multiply x [M, K] by weight [N, K] transposed with the kernel for many rows, K in one piece."""
    layer, rooms, many_rows = need("projection_layer"), need("projection_workspace"), need("many_rows")
    names = ("bias", "norm", "activation")
    projection = layer.Projection(weight=weight, is_gated=False, out_dtype=out.dtype, **dict.fromkeys(names))
    workspace = rooms.ProjectionWorkspace(len(x), [projection], x.device)
    launch = many_rows.many_rows_launch(projection, x, out, workspace, None)
    arguments = {
        **launch.arguments,
        "piece_size": -(-x.shape[1] // layer.PIECE_MULTIPLE) * layer.PIECE_MULTIPLE,
    }
    replace(launch, arguments=arguments, constants={**launch.constants, "PIECES": 1}).run()


def captured_step(executor: Any, num_rows: int) -> Callable[[], None]:
    """Return what launches the captured decode step of so many rows, all of the null request.

    Afterwards the device knows no decode step to go on from: `executor` must begin the next one anew. Raises
    NotThereError for an executor that captures nothing.
    """
    runner = getattr(executor, "runner", None)
    if runner is None:
        raise NotThereError(f"{type(executor).__name__} captures no steps")
    shape = runner.rules.decode(num_rows)
    runner.buffers.decode_requests.fill_(runner.state.null_request)

    def launch() -> None:
        runner.run_model(shape)
        runner.choose(shape)

    return launch


class CompileCounter:
    """Counts the kernels that Triton compiles, or loads from its cache, while the block runs."""

    def __init__(self) -> None:
        self._names: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """How many there were."""
        return self._names.total()

    @property
    def detail(self) -> str:
        """Which, and how often."""
        return ", ".join(f"{name} x{number}" for name, number in self._names.most_common(8))

    def __enter__(self) -> "CompileCounter":
        """Hook into Triton, if it is there: not by its own hooks, which cannot write our constants down."""
        self._jit: Any = None
        if importlib.util.find_spec("triton") is not None:
            self._jit = importlib.import_module("triton.runtime").JITFunction
            self._compile = self._jit._do_compile
            self._jit._do_compile = self._noted(self._compile)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._jit is not None:
            self._jit._do_compile = self._compile

    def _noted(self, compile_form: Callable[..., Any]) -> Callable[..., Any]:
        def run(kernel: Any, *args: Any, **kwargs: Any) -> Any:
            self._names[kernel.__name__] += 1
            return compile_form(kernel, *args, **kwargs)

        return run


def count_compiles() -> CompileCounter:
    """Return a counter for a `with` block."""
    return CompileCounter()
