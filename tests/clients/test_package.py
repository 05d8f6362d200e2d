"""The package as others see it: names, types, dependencies."""

import asyncio
import re
import subprocess
import sys
import types
from pathlib import Path

import draftline_client
import httpx
import pytest
from draftline_client import AsyncClient, Client, errors, options
from draftline_client import types as records

ROOT = Path(__file__).parents[2] / "clients" / "python"

TYPED_USE = """
import httpx
from collections.abc import Sequence
from typing_extensions import assert_type
from draftline_client import (
    NOT_GIVEN, Attention, AsyncChatStream, AsyncClient, AsyncCompletionStream, AsyncResponseStream,
    CacheExplanation, CacheLookup, ChatCompletion, ChatCompletionChunk, ChatStream, Client, Completion,
    CompletionChunk, CompletionOptions, CompletionStream, Distribution, EmbeddingList, FunctionTool, Model,
    OpenRequest, ProvenanceSummary, RateLimits, Received, RenderedPrompt, Response, ResponseEvent,
    ResponseFunctionCall, ResponseStream, ResponseUsage, SpeculationOptions, SpeculationUsage, Stream,
    StreamBrokenError, Tokenization, Usage,
)

MESSAGES = [{"role": "user", "content": "Hi"}]
TOOL: FunctionTool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}

def completions(client: Client, flag: bool, ids: list[int]) -> None:
    assert_type(client.completions.create(prompt="p"), Completion)
    assert_type(client.completions.create(prompt=[[1], [2]], stream=False), Completion)
    assert_type(client.completions.create(prompt=ids, stream=True), CompletionStream)
    assert_type(client.completions.create(prompt=["a"], stream=flag), Completion | CompletionStream)
    stream: Stream[CompletionChunk] = client.completions.create(prompt="p", stream=True)
    options: CompletionOptions = {"max_tokens": 3, "speculation": {"mode": "ngram", "k": 2}}
    assert_type(client.completions.create(prompt="p", **options), Completion)
    client.completions.create(prompt="p", timeout=httpx.Timeout(5), extra_body={"a": 1}, max_queue_ms=5)
    reply = client.completions.create(prompt="p", seed=None)
    assert_type(reply.seed, int | None)
    assert_type(reply.text, str)
    assert_type(reply.usage.speculation, SpeculationUsage | None)
    assert_type(reply.usage.cache, tuple[CacheExplanation, ...])
    assert_type(reply.rate_limits, RateLimits | None)
    assert_type(ProvenanceSummary.of(reply.choices[0].provenance).counts["draft"], int)

def chat(client: Client) -> None:
    answer = client.chat.create(
        messages=MESSAGES, seed=None, temperature=NOT_GIVEN, stop=["a"], tools=[TOOL], tool_choice="required"
    )
    assert_type(answer, ChatCompletion)
    follow_up = client.chat.create(messages=[*MESSAGES, answer.choices[0].message], stream=True)
    assert_type(follow_up, ChatStream)
    with follow_up as stream:
        for chunk in stream:
            assert_type(chunk, ChatCompletionChunk)
            assert_type(chunk.choices[0].delta.content, str | None)
        for text in stream.text_deltas():
            assert_type(text, str)
        assert_type(stream.text, str)
        assert_type(stream.usage, Usage | None)
        assert_type(stream.get_final_completion(), ChatCompletion)
    assert_type(client.chat.render(messages=MESSAGES), RenderedPrompt)
    try:
        list(follow_up)
    except StreamBrokenError as error:
        assert_type(error.received, Received)

def others(client: Client) -> None:
    response = client.responses.create(input="p", max_output_tokens=3)
    assert_type(response, Response)
    assert_type(response.function_calls, tuple[ResponseFunctionCall, ...])
    client.responses.create(input=[*MESSAGES, *response.output])
    stream = client.responses.create(input=MESSAGES, stream=True)
    assert_type(stream, ResponseStream)
    assert_type(next(stream), ResponseEvent)
    assert_type(stream.usage, ResponseUsage | None)
    assert_type(stream.get_final_response(), Response)
    assert_type(client.responses.retrieve("id"), Response)
    embeddings = client.embeddings.create(input=["a"], dimensions=3)
    assert_type(embeddings, EmbeddingList)
    assert_type(embeddings.data[0].embedding, Sequence[float])
    assert_type(client.cache.lookup(prompt=[1, 2], cache_salt="s"), CacheLookup)
    assert_type(client.cache.lookup(messages=MESSAGES, tools=[TOOL]), CacheLookup)
    assert_type([request for request in client.requests.list()], list[OpenRequest])
    client.requests.cancel("id")
    assert_type(client.distribution(prompt="p"), Distribution)
    assert_type(client.distribution(prompt=[1]).top(3), tuple[tuple[int, float], ...])
    assert_type(client.attention(prompt="p", layer=2), Attention)
    assert_type([model for model in client.models.list()], list[Model])
    assert_type(client.tokenize(text="t"), Tokenization)
    assert_type(client.with_options(timeout=1.0, max_retries=0, api_key="k"), Client)

async def asynchronous(client: AsyncClient, flag: bool) -> None:
    assert_type(await client.completions.create(prompt="p"), Completion)
    assert_type(await client.completions.create(prompt="p", stream=True), AsyncCompletionStream)
    assert_type(await client.chat.create(messages=MESSAGES), ChatCompletion)
    stream = await client.chat.create(messages=MESSAGES, stream=True)
    assert_type(stream, AsyncChatStream)
    async for text in stream.text_deltas():
        assert_type(text, str)
    assert_type(await stream.get_final_completion(), ChatCompletion)
    assert_type(
        await client.chat.create(messages=MESSAGES, stream=flag),
        ChatCompletion | AsyncChatStream,
    )
    assert_type(await client.responses.create(input="p"), Response)
    assert_type(await client.responses.create(input="p", stream=True), AsyncResponseStream)
    assert_type(await client.with_options(max_retries=1).distribution(prompt="p"), Distribution)

def wrong(client: Client) -> None:
    client.completions.create(prompt="p", temprature=1.0)  # type: ignore[call-overload]
    client.completions.create(prompt="p", temperature="hot")  # type: ignore[call-overload]
    client.completions.create("p")  # type: ignore[call-overload]
    client.completions.create(prompt=3)  # type: ignore[call-overload]
    client.completions.create(prompt="p", speculation={"k": 2})  # type: ignore[call-overload]
    client.chat.create(messages=[], echo=True)  # type: ignore[call-overload]
    client.chat.create(messages=[], tool_choice="always")  # type: ignore[call-overload]
    client.chat.create(messages=[], tools=[{"type": "function"}])  # type: ignore[typeddict-item]
    client.completions.create(prompt="p").choices[0].text = "x"  # type: ignore[misc]
    client.cache.lookup(prompt="p", temperature=1.0)  # type: ignore[call-arg]
    client.attention(prompt="p", layer="first")  # type: ignore[arg-type]
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


def test_every_error_record_and_option_is_exported() -> None:
    for module in (errors, options):
        defined = {
            name
            for name, value in vars(module).items()
            if isinstance(value, type) and value.__module__ == module.__name__ and not name.startswith("_")
        }
        assert defined <= set(draftline_client.__all__)
    assert set(records.__all__) <= set(draftline_client.__all__)
    hidden = {"Record", "Delivered", "Reply"}  # bases: what they have is in those that derive from them
    for path in (ROOT / "draftline_client" / "types").glob("*.py"):
        names = set(re.findall(r"^class (\w+)", path.read_text(), re.MULTILINE))
        assert names - hidden <= set(records.__all__)


def test_the_drawing_of_the_error_tree_is_the_tree() -> None:
    drawn = set(re.findall(r"\w+Error", errors.__doc__ or ""))
    defined = {name for name, value in vars(errors).items() if isinstance(value, type) and name[0] != "_"}
    assert drawn == {name for name in defined if name.endswith("Error")}


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
