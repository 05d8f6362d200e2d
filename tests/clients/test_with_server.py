"""Both clients against the real server around a scripted engine: leaving, cancelling, limits, deadlines."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from draftline_client import (
    APIStatusError,
    InternalServerError,
    NotFoundError,
    RateLimit,
    RateLimitError,
    ServiceUnavailableError,
    StreamError,
)

from server.api_keys import ApiKey, KeyLimits, hash_key
from tests.fakes import FakeEngine, say
from tests.server.harness import RunningServer, serving

Build = Callable[..., Any]
KEY = "a-key-of-enough-characters"


@pytest.fixture
def held() -> Iterator[RunningServer]:
    """A server whose engine steps only when it is told to."""
    engine = FakeEngine(lambda _: say("x" * 1000))
    engine.hold()
    with serving(engine) as server:
        yield server


def wait_until_idle(client: Any) -> None:
    """Wait until no request is under way, or else for the time limit of the test."""
    while len(client.requests.list()):
        pass


def open_stream(client: Any, engine: FakeEngine, **options: Any) -> Any:
    """Begin a stream and read the chunk of its first step."""
    engine.when_open(1, engine.step)
    stream = client.completions.create(prompt="p", stream=True, max_tokens=1000, **options)
    assert next(stream).choices[0].text == "x"
    return stream


@pytest.mark.parametrize("leave", ["close", "block"])
def test_leaving_a_stream_frees_its_blocks_without_another_step(
    build: Build, held: RunningServer, leave: str
) -> None:
    client, engine = build(base_url=held.url), held.engine
    stream = open_stream(client, engine)
    [request] = client.requests.list()
    assert (request.id, request.state, request.endpoint) == (stream.request_id, "running", "/v1/completions")
    assert (request.completion_tokens, request.position) == (1, None)
    assert engine.stats().num_free_kv_blocks == 99
    if leave == "close":
        stream.close()
    else:
        with stream:
            pass
    engine.wait_until(lambda: engine.num_open == 0)
    assert (engine.num_delivered_steps, engine.num_aborted) == (1, 1)
    assert engine.stats().num_free_kv_blocks == 100
    assert "draftline_kv_cache_usage_perc" in held.client.get("/metrics").text


def test_a_stream_that_is_left_early_is_gone_from_the_list(build: Build, held: RunningServer) -> None:
    client = build(base_url=held.url)
    open_stream(client, held.engine).close()
    held.engine.wait_until(lambda: held.engine.num_open == 0)
    wait_until_idle(client)


def test_a_cancelled_request_ends_with_an_error_that_says_what_had_come(
    build: Build, held: RunningServer
) -> None:
    client = build(base_url=held.url)
    stream = open_stream(client, held.engine, extra_headers={"X-Request-Id": "mine-1"})
    assert stream.request_id == "mine-1"
    client.requests.cancel("mine-1")
    with pytest.raises(StreamError, match="the request was cancelled") as caught:
        list(stream)
    assert (caught.value.code, caught.value.received.text) == ("request_cancelled", "x")
    wait_until_idle(client)
    with pytest.raises(NotFoundError, match="mine-1"):
        client.requests.cancel("mine-1")


def test_a_cancelled_call_is_a_status(build: Build, held: RunningServer, sleeps: list[float]) -> None:
    def cancel() -> None:
        with httpx.Client(base_url=held.url) as http:
            http.delete("/v1/requests/mine-2")

    held.engine.when_open(1, cancel)
    with pytest.raises(APIStatusError) as caught:
        build(base_url=held.url).completions.create(prompt="p", extra_headers={"X-Request-Id": "mine-2"})
    assert (caught.value.status_code, caught.value.code) == (499, "request_cancelled")
    assert sleeps == []


def test_a_deadline_that_passes(build: Build, held: RunningServer, sleeps: list[float]) -> None:
    with pytest.raises(InternalServerError) as caught:
        build(base_url=held.url).completions.create(prompt="p", deadline_ms=1)
    assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")
    assert sleeps == []


def test_a_key_over_its_limit_comes_back_when_it_is_told_to(build: Build, sleeps: list[float]) -> None:
    key = ApiKey(sha256=hash_key(KEY.encode()), limits=KeyLimits(max_concurrent=1))
    engine = FakeEngine(lambda _: say("hello"))
    engine.hold()
    left = threading.Event()

    def leave() -> None:
        left.set()
        engine.wait_until(lambda: engine.num_aborted == 1)
        engine.release()

    with serving(engine, keys=[key]) as server:
        holder = threading.Thread(target=hold_place, args=(server.url, engine, left))
        holder.start()
        engine.wait_until(lambda: engine.num_open == 1)
        client = build(base_url=server.url, api_key=KEY, max_retries=50, on_sleep=leave)
        assert client.completions.create(prompt="p", max_tokens=5).text == "hello"
        holder.join()
    assert set(sleeps) == {1.0}


def hold_place(url: str, engine: FakeEngine, left: threading.Event) -> None:
    """Keep a stream open until it is told to leave."""
    body = {"prompt": "p", "stream": True}
    headers = {"Authorization": f"Bearer {KEY}"}
    engine.when_open(1, engine.step)
    with httpx.Client() as http, http.stream("POST", f"{url}/v1/completions", json=body, headers=headers):
        left.wait(20)


def test_what_a_key_has_left_is_said_in_replies_streams_and_errors(build: Build, sleeps: list[float]) -> None:
    limits = KeyLimits(requests_per_minute=2, tokens_per_minute=1000)
    key = ApiKey(sha256=hash_key(KEY.encode()), limits=limits)
    with serving(FakeEngine(lambda _: say("hello")), keys=[key]) as server:
        client = build(base_url=server.url, api_key=KEY, max_retries=1)
        reply = client.completions.create(prompt="p", max_tokens=5)
        assert reply.rate_limits.requests.limit == 2
        assert reply.rate_limits.requests.remaining == 1
        assert 0 < reply.rate_limits.requests.reset <= 60
        assert reply.rate_limits.tokens.limit == 1000
        with client.completions.create(prompt="p", max_tokens=5, stream=True) as stream:
            assert stream.rate_limits.requests.remaining == 0
            assert next(stream).rate_limits == stream.rate_limits
            stream.get_final_completion()
        with pytest.raises(RateLimitError, match="2 requests a minute") as caught:
            client.completions.create(prompt="p")
    error = caught.value
    assert isinstance(error.rate_limits.requests, RateLimit)  # type: ignore[union-attr]
    assert error.retry_after is not None
    assert len(sleeps) == 1
    assert all(1 <= seconds <= 60 for seconds in (*sleeps, error.retry_after))


def test_a_server_that_loads_is_tried_again_when_it_says(build: Build, sleeps: list[float]) -> None:
    with serving(FakeEngine(), is_loading=True) as server:
        client = build(base_url=server.url)
        assert (client.health(), client.ready()) == (True, False)
        with pytest.raises(ServiceUnavailableError, match="loading") as caught:
            client.completions.create(prompt="p")
    assert (sleeps, caught.value.retry_after) == ([5.0, 5.0], 5.0)


def test_an_answer_goes_on_from_what_had_come(build: Build) -> None:
    engine = FakeEngine(lambda _: say("and so on"))
    with serving(engine) as server:
        client = build(base_url=server.url)
        messages: list[dict[str, str]] = [{"role": "user", "content": "Tell me."}]
        client.chat.create(
            messages=[*messages, {"role": "assistant", "content": "Once"}],
            continue_final_message=True,
            max_tokens=4,
        )
    prompt = bytes(token for token in engine.requests[0].prompt_token_ids if token < 256)
    assert prompt.endswith(b"assistant\nOnce")
