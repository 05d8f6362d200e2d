"""Every example of the client's README and docstrings runs against the real server with a tiny model.

What that server cannot do yet runs against one that speaks the contract.
"""

import asyncio
import base64
import doctest
import importlib
import inspect
import pkgutil
import re
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import draftline_client
import pytest
from draftline_client import AsyncClient, Client, NotFoundError

from tests.clients.real import RealServer
from tests.clients.test_public_surface import CLASSES

README = Path(__file__).parents[2] / "clients" / "python" / "README.md"
TEXT = README.read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^## (.*?)\n|^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)

USAGE = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
CACHE = {
    "prompt_tokens": 8,
    "cached_tokens": 5,
    "block_size": 16,
    "end": {
        "reason": "different_token",
        "position": 5,
        "cached": {"token_id": 1, "text": " mat"},
        "prompt": {"token_id": 2, "text": " dog"},
    },
}
CHOICE = {"index": 0, "text": " blue", "finish_reason": "length"}
CONTRACT: Mapping[str, Mapping[str, Any]] = {
    "/v1/completions": {
        "id": "c",
        "created": 5,
        "model": "m",
        "choices": [CHOICE],
        "usage": {**USAGE, "draftline": {"cache": CACHE}},
    },
    "/v1/cache/lookup": {"object": "draftline.cache_lookup", "model": "m", **CACHE},
    "/v1/distribution": {
        "model": "m",
        "vocab_size": 5,
        "logprobs": base64.b64encode(struct.pack("<5f", -1, -2, -3, -4, -5)).decode(),
        "usage": USAGE,
    },
    "/v1/attention": {
        "model": "m",
        "num_layers": 2,
        "num_heads": 1,
        "layer": 1,
        "tokens": [{"token_id": 1, "text": "The"}, {"token_id": 2, "text": " cat"}],
        "attention": [[[1.0], [0.5, 0.5]]],
    },
    "/detokenize": {"prompt": "x"},
}
NEEDS = {
    "cache_explain": "/v1/cache/lookup",
    ".cache.lookup(": "/v1/cache/lookup",
    ".distribution(": "/v1/distribution",
    ".attention(": "/v1/attention",
}
"""What an example has in it, and the endpoint that a server has which can run it."""


def readme_examples() -> Iterator[Any]:
    section = ""
    for heading, example in EXAMPLES:
        section = heading or section
        if example:
            yield pytest.param(example, id=section)


@pytest.fixture
def where(server: Any, real: RealServer, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """The URL of a server that can run an example, in the environment, too."""
    server.otherwise = lambda exchange: server.json(CONTRACT[server.requests[-1].path])(exchange)

    def choose(example: str) -> str:
        missing = {path for word, path in NEEDS.items() if word in example} - real.paths
        url: str = server.url if missing else real.url
        monkeypatch.setenv("DRAFTLINE_BASE_URL", url)
        return url

    return choose


def run(example: str, names: dict[str, Any]) -> None:
    """Run code, where it waits in a coroutine."""
    if re.search(r"\bawait\b|\basync (with|for)\b", example) and "asyncio.run" not in example:
        example = f"async def main():\n{textwrap.indent(example, '    ')}"
        exec(compile(example, "example", "exec"), names)
        asyncio.run(names["main"]())
    else:
        exec(compile(example, "example", "exec"), names)


@pytest.mark.parametrize("example", list(readme_examples()))
def test_an_example_of_the_readme_runs(
    where: Callable[[str], str], capsys: pytest.CaptureFixture[str], example: str
) -> None:
    where(example)
    try:
        run(example, {"__name__": "readme"})
    except NotFoundError as error:
        if "--enable-attention" not in error.message:  # else this server does not show it
            raise
    else:
        assert capsys.readouterr().out.strip()


def test_the_examples_of_the_readme_are_typed(tmp_path: Path) -> None:
    for number, (_, example) in enumerate(EXAMPLES):
        (tmp_path / f"example_{number}.py").write_text(example)
    command = ["-m", "mypy", "--strict", "--config-file=", "--python-version=3.10", "--no-error-summary"]
    command += ["--cache-dir", str(README.parents[2] / ".mypy_cache" / "clients"), str(tmp_path)]
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=README.parent)
    assert (result.stdout, result.returncode) == ("", 0)


def test_the_readme_shows_every_resource_and_method() -> None:
    code = "".join(example for _, example in EXAMPLES)
    paths = ["tokenize", "detokenize", "distribution", "attention", "version", "ready", "with_options"]
    paths += ["completions.create", "chat.create", "chat.render", "responses.create", "embeddings.create"]
    paths += ["cache.lookup", "requests.list", "requests.cancel", "models.list"]
    assert [path for path in paths if f"client.{path}(" not in code] == []
    for path in paths:
        assert callable(getattr(Client, path)) if "." not in path else hasattr(Client, path.split(".")[0])


def docstring_examples() -> Iterator[Any]:
    """The indented blocks below `Example:` in the docstrings of public classes and their methods."""
    for cls in CLASSES:
        for name, member in [("", cls), *vars(cls).items()]:
            if name.startswith("_") or not (inspect.isfunction(member) or inspect.isclass(member)):
                continue
            for block in re.findall(r"Example:\n+((?:    .*\n?|\n)+)", inspect.getdoc(member) or ""):
                yield pytest.param(textwrap.dedent(block), id=f"{cls.__name__}.{name}".rstrip("."))


@pytest.mark.parametrize("example", list(docstring_examples()))
def test_an_example_of_a_docstring_runs(
    where: Callable[[str], str], capsys: pytest.CaptureFixture[str], example: str
) -> None:
    url = where(example)
    names = {**vars(draftline_client)}
    try:
        if "await" not in example:
            with Client(base_url=url) as names["client"]:
                run(example, names)
        else:
            names["url"] = url
            body = textwrap.indent(example, "    ")
            run(f"async with AsyncClient(base_url=url) as client:\n{body}", names)
    except NotFoundError as error:
        if "--enable-attention" not in error.message:
            raise
    else:
        assert capsys.readouterr().out.strip()


def test_there_are_examples_of_both_clients() -> None:
    found = [param.id or "" for param in docstring_examples()]
    assert sorted(name.removeprefix("Async") for name in found if name.startswith("Async")) == sorted(
        name for name in found if not name.startswith("Async")
    )
    assert len(found) >= 16
    assert {Client.__name__, AsyncClient.__name__} <= set(found)


def test_the_sessions_in_docstrings_are_true() -> None:
    num_tested = 0
    for module in pkgutil.walk_packages(draftline_client.__path__, "draftline_client."):
        result = doctest.testmod(importlib.import_module(module.name))
        assert result.failed == 0
        num_tested += result.attempted
    assert num_tested > 1
