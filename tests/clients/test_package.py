"""The package as others see it: names, types, dependencies."""

import asyncio
import inspect
import re
import subprocess
import sys
import types
from pathlib import Path

import draftline_client
import httpx
import pytest
from draftline_client import AsyncClient, Client, async_client, client, errors, options
from draftline_client import types as records

ROOT = Path(__file__).parents[2] / "clients" / "python"

TYPED_USE = """
import httpx
from typing_extensions import assert_type
from draftline_client import (
    NOT_GIVEN, AsyncClient, AsyncStream, ChatCompletion, ChatCompletionChunk, Client, Completion,
    CompletionChunk, CompletionOptions, Model, Stream, Tokenization,
)

def sync(client: Client, flag: bool, ids: list[int]) -> None:
    assert_type(client.completions.create(prompt="p"), Completion)
    assert_type(client.completions.create(prompt=[[1], [2]], stream=False), Completion)
    assert_type(client.completions.create(prompt=ids, stream=True), Stream[CompletionChunk])
    assert_type(client.completions.create(prompt=["a"], stream=flag), Completion | Stream[CompletionChunk])
    messages = [{"role": "user", "content": "Hi"}]
    answer = client.chat.create(messages=messages, seed=None, temperature=NOT_GIVEN, stop=["a"])
    assert_type(answer, ChatCompletion)
    follow_up = client.chat.create(messages=[*messages, answer.choices[0].message], stream=True)
    assert_type(follow_up, Stream[ChatCompletionChunk])
    with follow_up as stream:
        for chunk in stream:
            assert_type(chunk.choices[0].delta.content, str | None)
    assert_type([model for model in client.models.list()], list[Model])
    assert_type(client.tokenize(text="t"), Tokenization)
    options: CompletionOptions = {"max_tokens": 3, "speculation": {"mode": "ngram", "k": 2}}
    assert_type(client.completions.create(prompt="p", **options), Completion)
    client.completions.create(prompt="p", timeout=httpx.Timeout(5), extra_body={"a": 1})

async def asynchronous(client: AsyncClient, flag: bool) -> None:
    assert_type(await client.completions.create(prompt="p"), Completion)
    assert_type(await client.completions.create(prompt="p", stream=True), AsyncStream[CompletionChunk])
    messages = [{"role": "user", "content": "Hi"}]
    assert_type(await client.chat.create(messages=messages), ChatCompletion)
    stream = await client.chat.create(messages=messages, stream=True)
    assert_type(stream, AsyncStream[ChatCompletionChunk])
    assert_type([chunk.id async for chunk in stream], list[str])
    assert_type(
        await client.chat.create(messages=messages, stream=flag),
        ChatCompletion | AsyncStream[ChatCompletionChunk],
    )

def wrong(client: Client) -> None:
    client.completions.create(prompt="p", temprature=1.0)  # type: ignore[call-overload]
    client.completions.create(prompt="p", temperature="hot")  # type: ignore[call-overload]
    client.completions.create("p")  # type: ignore[call-overload]
    client.completions.create(prompt=3)  # type: ignore[call-overload]
    client.completions.create(prompt="p", speculation={"k": 2})  # type: ignore[call-overload]
    client.chat.create(messages=[], echo=True)  # type: ignore[call-overload]
    client.completions.create(prompt="p").choices[0].text = "x"  # type: ignore[misc]
"""


def test_the_types_are_those_promised(tmp_path: Path) -> None:
    (tmp_path / "use.py").write_text(TYPED_USE)
    command = ["-m", "mypy", "--strict", "--config-file=", "--python-version=3.10", "--warn-unused-ignores"]
    command += ["--cache-dir", str(ROOT.parents[1] / ".mypy_cache" / "clients"), "--no-error-summary"]
    result = subprocess.run(
        [sys.executable, *command, str(ROOT / "draftline_client"), str(tmp_path / "use.py")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (result.stdout, result.returncode) == ("", 0)


def test_all_is_sorted_and_complete() -> None:
    exported = draftline_client.__all__
    public = {
        name
        for name, value in vars(draftline_client).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert set(exported) == public | {"__version__"}
    assert len(exported) == len(set(exported))
    constants, others = exported[:1], exported[1:]
    assert constants == ["NOT_GIVEN"]
    assert others == sorted(others)


@pytest.mark.parametrize("module", [errors, records])
def test_every_record_and_error_is_exported(module: types.ModuleType) -> None:
    defined = {
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__ and not name.startswith("_")
    }
    assert defined <= set(draftline_client.__all__)


def test_the_drawing_of_the_error_tree_is_the_tree() -> None:
    drawn = set(re.findall(r"\w+Error", errors.__doc__ or ""))
    defined = {name for name, value in vars(errors).items() if isinstance(value, type) and name[0] != "_"}
    assert drawn == defined - {"ErrorDetail"} - {"Any"}


def parameters(function: object) -> list[tuple[str, str, object]]:
    found = inspect.signature(function).parameters.values()  # type: ignore[arg-type]  # a method
    return [(parameter.name, str(parameter.kind), parameter.annotation) for parameter in found]


@pytest.mark.parametrize(
    ("sync", "asynchronous"),
    [
        (Client, AsyncClient),
        (client.Completions, async_client.AsyncCompletions),
        (client.Chat, async_client.AsyncChat),
        (client.Models, async_client.AsyncModels),
        (client.Stream, async_client.AsyncStream),
    ],
)
def test_the_two_clients_have_the_same_methods(sync: type, asynchronous: type) -> None:
    def methods(cls: type) -> dict[str, object]:
        public = {name: value for name, value in vars(cls).items() if not name.startswith("_")}
        return {"close" if name == "aclose" else name: value for name, value in public.items()}

    ours, theirs = methods(sync), methods(asynchronous)
    assert ours.keys() == theirs.keys()
    for name, method in ours.items():
        if inspect.isfunction(method):
            assert parameters(method) == parameters(theirs[name])
            assert method.__doc__ == theirs[name].__doc__
            assert inspect.iscoroutinefunction(theirs[name])


def test_the_package_imports_only_httpx_and_the_standard_library() -> None:
    code = (
        "import sys, httpx; old = set(sys.modules); import draftline_client; print(*sys.modules.keys() - old)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    tops = {name.partition(".")[0] for name in result.stdout.split()}
    assert tops - sys.stdlib_module_names == {"draftline_client"}


def test_the_distribution_says_what_it_needs() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert re.search(r'^name = "draftline-client"$', text, re.MULTILINE)
    assert re.findall(r"^dependencies = (.*)$", text, re.MULTILINE) == ['["httpx>=0.27"]']
    assert (ROOT / "draftline_client" / "py.typed").exists()


def test_importing_does_not_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFTLINE_BASE_URL", "http://h:1/v1")
    with Client() as made:
        assert repr(made) == "Client(base_url=URL('http://h:1/'))"


def test_not_given_is_falsy_and_shows_its_name() -> None:
    assert (bool(options.NOT_GIVEN), repr(options.NOT_GIVEN)) == (False, "NOT_GIVEN")


def test_a_http_client_of_your_own_stays_open() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"version": request.url.path + request.headers["X-Own"]})

    with httpx.Client(transport=httpx.MockTransport(answer), headers={"X-Own": "yes"}) as http:
        with Client(http_client=http, base_url="http://h") as made:
            assert made.version() == "/versionyes"
        assert not http.is_closed


def test_an_asynchronous_http_client_of_your_own_stays_open() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"version": request.url.path})

    async def main() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
            async with AsyncClient(http_client=http, base_url="http://h/a") as made:
                assert await made.version() == "/a/version"
            assert not http.is_closed

    asyncio.run(main())


def test_a_http_client_of_the_other_kind_is_refused() -> None:
    with httpx.Client() as http, pytest.raises(TypeError, match=r"must be an httpx\.AsyncClient, got Client"):
        AsyncClient(http_client=http)  # type: ignore[arg-type]  # the point of the test
    with pytest.raises(TypeError, match=r"must be an httpx\.Client, got AsyncClient"):
        Client(http_client=httpx.AsyncClient())  # type: ignore[arg-type]  # the point of the test
