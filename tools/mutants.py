"""Mutation testing: plant single faults in the code and count those that the tests notice.

    make mutants ARGS="--per-module 20 --module engine/core/scheduler.py --seed 2"

Each mutant runs in a fork of a process that has imported the heavy libraries already, with the module's own
tests only. Files are never changed: the fork imports the mutated source in place of the file.
"""

import argparse
import ast
import importlib.machinery
import importlib.util
import io
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType

ROOT = Path(__file__).parents[1]
SLOWER = 4  # a mutant whose tests take so many times longer than without it, and 5 s, counts as noticed

_ENGINE = ("tests/engine/test_engine_bookkeeping.py", "tests/engine/test_promises.py")
_SAMPLING = ("tests/engine/sampling/test_sampler.py", "tests/engine/sampling/test_row_processors.py")
_SPECULATION = ("tests/engine/speculative/test_edges.py", "tests/engine/speculative/test_lookups.py")
# Not here: what only chooses draft lengths (controller.py, speculator.py), where a fault costs time and no
# answer; tests/engine/speculative/test_never_slower.py watches over that.
TARGETS: dict[str, Sequence[str]] = {
    "engine/core/scheduler.py": (
        *_ENGINE,
        "tests/engine/speculative/test_edges.py",
        "tests/engine/test_non_finite.py",
        "tests/engine/test_grammar_requests.py",
    ),
    "engine/kv_cache/kv_cache_manager.py": (*_ENGINE, "tests/engine/speculative/test_edges.py"),
    "engine/kv_cache/block_pool.py": (*_ENGINE, "tests/engine/kv_cache"),
    "engine/sampling/sampler.py": (
        *_SAMPLING,
        "tests/engine/test_logprobs.py",
        "tests/engine/test_promises.py",
    ),
    "engine/sampling/logits_processors.py": (*_SAMPLING, "tests/engine/test_promises.py"),
    "engine/sampling/row_processors.py": (*_SAMPLING, "tests/engine/test_grammar_requests.py"),
    "engine/sampling/number_bound.py": ("tests/engine/sampling/test_json_schema.py",),
    "engine/speculative/ngram.py": _SPECULATION,
    "engine/speculative/acceptance.py": ("tests/engine/speculative/test_controller.py", *_SPECULATION),
    "engine/speculative/draft_cache.py": ("tests/engine/speculative/test_draft_cache.py", *_SPECULATION),
    "engine/interface/sampled_row.py": (*_SPECULATION, *_ENGINE),
    "server/text/stop_strings.py": ("tests/server/text/test_stop_strings.py",),
    "server/text/content_guard.py": ("tests/server/text/test_content_guard.py",),
    "server/api/sse.py": ("tests/server/test_completions.py", "tests/server/test_disconnect.py"),
    "server/api/generation.py": (
        "tests/server/test_generation.py",
        "tests/server/test_promises.py",
        "tests/server/test_operations.py",
        "tests/server/test_completions.py",
    ),
    "server/metrics.py": (
        "tests/server/test_operations.py",
        "tests/server/test_promises.py",
        "tests/server/test_disconnect.py",
    ),
}

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One fault: where it is, what it does, and the code with it."""

    module: str
    line: int
    what: str
    code: CodeType


def mutants_of(module: str, source: str) -> Iterator[Mutant]:
    """Yield every mutant of a module, in the order of its lines."""
    tree = ast.parse(source)
    for number, node in enumerate(ast.walk(tree)):
        for place, (what, _) in enumerate(_changes(deepcopy(node))):
            mutated = deepcopy(tree)
            target = next(n for i, n in enumerate(ast.walk(mutated)) if i == number)
            _apply(mutated, target, list(_changes(target))[place][1])
            code = compile(ast.fix_missing_locations(mutated), str(ROOT / module), "exec")
            yield Mutant(module, getattr(node, "lineno", 0), what, code)


def _changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield what could stand in a node's place."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARISONS:
        changed = deepcopy(node)
        changed.ops[0] = _COMPARISONS[type(node.ops[0])]()
        yield f"{ast.unparse(node)} -> {ast.unparse(changed)}", changed
    elif (
        isinstance(node, ast.BinOp)
        and type(node.op) in _OPERATORS
        and not isinstance(node.right, ast.Constant | ast.JoinedStr)
    ):
        changed_op = deepcopy(node)
        changed_op.op = _OPERATORS[type(node.op)]()
        yield f"{ast.unparse(node)} -> {ast.unparse(changed_op)}", changed_op
    elif isinstance(node, ast.BoolOp):
        other = ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
        yield f"{ast.unparse(node)} -> {ast.unparse(other)}", other
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield f"{ast.unparse(node)} -> {ast.unparse(node.operand)}", node.operand
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        yield f"{node.value} -> {node.value + 1}", ast.Constant(node.value + 1)
    elif isinstance(node, ast.AugAssign | ast.Break | ast.Continue) or _is_call(node):
        yield f"without {ast.unparse(node)}", ast.Pass()


def _is_call(node: ast.AST) -> bool:
    """Tell whether a statement is a call whose result nobody reads."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)


def _apply(tree: ast.AST, target: ast.AST, replacement: ast.AST) -> None:
    class Replace(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            if node is target:
                return ast.copy_location(replacement, node)
            return self.generic_visit(node)

    Replace().visit(tree)


class _Finder(importlib.machinery.PathFinder):
    """Imports one module from a code object in place of its file."""

    def __init__(self, mutant: Mutant) -> None:
        self._name = mutant.module.removesuffix(".py").replace("/", ".")
        self._path = str(ROOT / mutant.module)
        self._code = mutant.code

    def find_spec(  # type: ignore[override]
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of the mutated module, and of no other."""
        if fullname != self._name:
            return None
        code = self._code

        class Loader(importlib.machinery.SourceFileLoader):
            def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002
                return code

        return importlib.util.spec_from_file_location(
            fullname, self._path, loader=Loader(fullname, self._path)
        )


def is_noticed(mutant: Mutant | None, tests: Sequence[str], timeout: float) -> bool:
    """Run the tests in a fork, with the mutant in place; tell whether any fails, or none ends in time."""
    child = os.fork()
    if child == 0:
        _run_tests(mutant, tests)
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) != 0
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def _run_tests(mutant: Mutant | None, tests: Sequence[str]) -> None:
    import pytest

    if mutant is not None:
        sys.meta_path.insert(0, _Finder(mutant))
    status, output = 1, io.StringIO()
    try:
        with redirect_stdout(output), redirect_stderr(output):
            status = int(
                pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=ci", *tests])
            )
    except BaseException:  # noqa: BLE001 - this process ends here, whatever it was
        output.write(traceback.format_exc())
    finally:
        if status and mutant is None:
            os.write(2, output.getvalue().encode())
        os._exit(status)


def main() -> None:
    """Sample mutants module by module and print those that no test noticed, then the shares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--module", action="append", choices=list(TARGETS), help="only this one; repeatable")
    parser.add_argument("--per-module", type=int, default=10, help="mutants of each, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.chdir(ROOT)
    import httpx  # noqa: F401 - so that forks need not
    import torch

    torch.set_num_threads(1)
    rng, total, noticed = random.Random(arguments.seed), 0, 0  # noqa: S311
    for module in arguments.module or TARGETS:
        tests = [test for test in TARGETS[module] if (ROOT / test).exists()]
        started = time.monotonic()
        if is_noticed(None, tests, timeout=600.0):
            sys.exit(f"{module}: its tests fail without any fault")
        timeout = 5.0 + SLOWER * (time.monotonic() - started)
        every = list(mutants_of(module, (ROOT / module).read_text()))
        chosen = rng.sample(every, min(arguments.per_module, len(every)))
        survivors = [mutant for mutant in chosen if not is_noticed(mutant, tests, timeout)]
        total, noticed = total + len(chosen), noticed + len(chosen) - len(survivors)
        print(f"{module}: {len(chosen) - len(survivors)} of {len(chosen)} noticed", flush=True)
        for mutant in survivors:
            print(f"  {module}:{mutant.line}: {mutant.what}", flush=True)
    print(f"{noticed} of {total} noticed, {noticed / max(1, total):.0%}")


if __name__ == "__main__":
    main()
