"""The real openai SDK against a real server: objects parse, streams iterate, errors are its own classes."""

import asyncio
from collections.abc import Iterator

import openai
import pytest

from tests.fakes import FakeEngine, say
from tests.server.harness import RunningServer, serving

KEY = "a-key-for-the-sdk"
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving(FakeEngine(), keys=[KEY]) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def test_completions(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="fake", prompt="x", seed=7, n=3, max_tokens=4)
    assert [choice.text for choice in reply.choices] == ["c0s7", "c1s7", "c2s7"]
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 12
    assert reply.usage.prompt_tokens_details is not None
    assert reply.usage.prompt_tokens_details.cached_tokens == 0


def test_completions_streamed(client: openai.OpenAI) -> None:
    options = {"include_usage": True}
    stream = client.completions.create(
        model="fake", prompt="x", seed=7, stream=True, stream_options=options, max_tokens=4
    )
    *chunks, usage = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "c0s7"
    assert chunks[-1].choices[0].finish_reason == "length"
    assert usage.usage is not None
    assert usage.usage.total_tokens == 5


def test_chat(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="fake", messages=HELLO, seed=7, n=3, max_tokens=4)
    assert [choice.message.content for choice in reply.choices] == ["c0s7", "c1s7", "c2s7"]
    assert reply.choices[2].message.role == "assistant"
    assert reply.system_fingerprint == "fp_fake"


def test_chat_streamed(client: openai.OpenAI) -> None:
    texts = ["", "", ""]
    reasons: list[str | None] = [None] * 3
    for chunk in client.chat.completions.create(
        model="fake", messages=HELLO, seed=7, n=3, max_completion_tokens=4, stream=True
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == ["c0s7", "c1s7", "c2s7"]
    assert reasons == ["length"] * 3


def test_chat_with_the_sdks_stream_helper() -> None:
    engine = FakeEngine(lambda _: say("hello", eos=True))
    with serving(engine) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
        with client.chat.completions.stream(model="fake", messages=HELLO) as stream:
            assert [event.delta for event in stream if event.type == "content.delta"] == ["", *"hello"]
        completion = stream.get_final_completion()
    assert completion.choices[0].message.content == "hello"
    assert completion.choices[0].finish_reason == "stop"


def test_async_chat_streamed(server: RunningServer) -> None:
    async def main() -> str:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
            stream = await client.chat.completions.create(
                model="fake", messages=HELLO, seed=7, max_tokens=4, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(main()) == "c0s7"


def test_async_completions_side_by_side(server: RunningServer) -> None:
    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
            replies = await asyncio.gather(
                *(
                    client.completions.create(model="fake", prompt="x", seed=i, max_tokens=5)
                    for i in range(20)
                )
            )
            return [reply.choices[0].text for reply in replies]

    assert asyncio.run(main()) == [f"c0s{i}."[:5] for i in range(20)]


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").owned_by == "draftline"


def test_errors_are_the_sdks_own(server: RunningServer, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model="fake", prompt="x", temperature=9)
    assert bad.value.param == "temperature"
    assert bad.value.request_id is not None
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="other", prompt="x")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    server.engine.max_open = 0
    try:
        with pytest.raises(openai.RateLimitError) as full:
            client.completions.create(model="fake", prompt="x")
        assert int(full.value.response.headers["retry-after"]) >= 1
    finally:
        server.engine.max_open = 1000


def test_a_stream_that_breaks_raises(server: RunningServer) -> None:
    engine = FakeEngine()
    engine.hold()
    with serving(engine) as broken, openai.OpenAI(base_url=f"{broken.url}/v1", api_key="x") as client:
        engine.when_open(1, engine.step)
        stream = client.completions.create(model="fake", prompt="x", stream=True)
        assert next(stream).choices[0].text == "c"
        engine.die()
        with pytest.raises(openai.APIError, match="engine has failed"):
            list(stream)


def test_closing_a_stream_frees_the_request() -> None:
    engine = FakeEngine()
    engine.hold()
    with serving(engine) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
        engine.when_open(1, engine.step)
        stream = client.chat.completions.create(model="fake", messages=HELLO, stream=True)
        next(stream)
        stream.close()
        engine.wait_until(lambda: engine.num_open == 0)
    assert engine.num_aborted == 1
