"""The limits that keep this code readable, and the borders between its packages."""

import ast
import importlib
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path
    for folder in ("engine", "server", "clients/python/draftline_client", "loadtest", "tools")
    for path in (ROOT / folder).rglob("*.py")
)
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50
MAX_MEDIAN_FUNCTION_LINES = 10
FORBIDDEN_IMPORTS = {
    "engine": {"fastapi", "starlette", "pydantic", "uvicorn", "server", "draftline_client"},
    "server": {"draftline_client", "tests"},
    "clients": {"engine", "server", "torch", "numpy", "pydantic", "fastapi"},
}
# Lower layers of the engine never import higher ones; modules not listed are leaves.
ENGINE_LAYERS = [
    {"errors", "grammar_spec", "outputs", "sampling_params", "stats", "info", "config", "speculation"},
    {"request", "rows", "sampled_row", "batch", "schedule", "step_output", "kv_cache", "checkpoint"}
    | {"attention_tiles", "model_input"},
    {"model", "sampling", "speculative", "kernels", "executor", "torch_executor"},
    {"scheduler"},
    {"engine"},
    {"outbox", "output_stream"},
    {"async_engine"},
    {"machine", "backend", "draft_loader", "loader"},
]


def relative(path):
    return str(path.relative_to(ROOT))


def functions(path):
    tree = ast.parse(path.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def imported_modules(path):
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
    return modules


def test_there_is_something_to_check():
    assert len(SOURCES) > 40


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_and_functions_stay_small(path):
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES
    for function in functions(path):
        length = function.end_lineno - function.lineno + 1
        assert length <= MAX_FUNCTION_LINES, f"{function.name}: {length} lines"


def test_the_median_function_is_short():
    lengths = [f.end_lineno - f.lineno + 1 for path in SOURCES for f in functions(path)]
    assert statistics.median(lengths) < MAX_MEDIAN_FUNCTION_LINES


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_packages_import_one_way_only(path):
    forbidden = FORBIDDEN_IMPORTS.get(path.relative_to(ROOT).parts[0], set())
    assert not {module.split(".")[0] for module in imported_modules(path)} & forbidden


def test_the_engine_imports_downwards_only():
    layer_of = {name: number for number, names in enumerate(ENGINE_LAYERS) for name in names}
    for path in (ROOT / "engine").rglob("*.py"):
        name = path.relative_to(ROOT / "engine").parts[0].removesuffix(".py")
        if name == "__init__":
            continue
        for module in imported_modules(path):
            if module.startswith("engine."):
                target = module.split(".")[1]
                assert layer_of[target] <= layer_of[name], f"{relative(path)} imports {module}"


@pytest.mark.parametrize("package", ["engine", "draftline_client"])
def test_public_names_exist(package):
    module = importlib.import_module(package)
    assert len(set(module.__all__)) == len(module.__all__) > 5
    for name in module.__all__:
        assert getattr(module, name) is not None
