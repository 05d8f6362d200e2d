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
# The engine's packages, lowest first: each imports from lower ones only, so that there is no cycle either.
ENGINE_LAYERS = [
    {"interface"},
    {"kv_cache", "sampling", "checkpoint"},
    {"core", "model"},
    {"kernels", "speculative"},
    {"execution", "bridge"},
    {"loading"},
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


def wrong_imports(root, layers):
    """Imports of engine packages that lead upwards, sideways or to a package that no layer names."""
    layer_of = {name: number for number, names in enumerate(layers) for name in names}
    wrong = []
    for path in sorted(root.rglob("*.py")):
        package = path.relative_to(root).parts[0]
        for module in sorted(imported_modules(path)):
            parts = module.split(".")
            if parts[0] != "engine" or len(parts) < 2 or package == "__init__.py" or parts[1] == package:
                continue
            if parts[1] not in layer_of or layer_of[parts[1]] >= layer_of.get(package, -1):
                wrong.append(f"{package} -> {module}")
    return wrong


def test_the_engines_packages_import_downwards_only():
    assert wrong_imports(ROOT / "engine", ENGINE_LAYERS) == []


def test_the_server_knows_the_engines_interface_its_files_and_one_loader():
    allowed = {"engine", "engine.interface", "engine.checkpoint", "engine.loading"}
    for path in (ROOT / "server").rglob("*.py"):
        used = {".".join(m.split(".")[:2]) for m in imported_modules(path) if m.startswith("engine")}
        assert used <= allowed, relative(path)


def test_the_engines_root_has_no_modules():
    assert [path.name for path in (ROOT / "engine").glob("*.py")] == ["__init__.py"]
    folders = {path.name for path in (ROOT / "engine").iterdir() if any(path.glob("**/*.py"))}
    assert folders == set().union(*ENGINE_LAYERS)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("from engine.core.request import Request", "kv_cache -> engine.core.request"),
        ("from engine.sampling.noise import noise_key", "kv_cache -> engine.sampling.noise"),
        ("import engine.elsewhere", "kv_cache -> engine.elsewhere"),
        ("def f():\n    from engine.loading.loader import build_engine", "kv_cache -> engine.loading.loader"),
    ],
)
def test_a_planted_upward_import_or_cycle_is_seen(line, wrong, tmp_path):
    (tmp_path / "kv_cache").mkdir()
    (tmp_path / "kv_cache/block.py").write_text("from engine.interface.errors import ConfigError\n")
    assert wrong_imports(tmp_path, ENGINE_LAYERS) == []
    (tmp_path / "kv_cache/planted.py").write_text(line)
    assert wrong_imports(tmp_path, ENGINE_LAYERS) == [wrong]


@pytest.mark.parametrize("package", ["engine", "draftline_client"])
def test_public_names_exist(package):
    module = importlib.import_module(package)
    assert len(set(module.__all__)) == len(module.__all__) > 5
    for name in module.__all__:
        assert getattr(module, name) is not None
