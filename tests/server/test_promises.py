"""What the server promises and single faults once broke unseen."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import generate_latest

from engine.interface.errors import CheckpointError
from engine.interface.outputs import FinishReason, RequestOutput
from server.admission import ServiceRate
from server.api.generation import Generation
from server.api.preparation import TextOptions
from server.api.scheduling import Deadline
from server.loading import load_served_model
from server.metrics import ServerMetrics
from server.middleware import RequestMiddleware
from server.settings import ServeSettings
from server.text import ChatTemplate, Tokenizer
from tests.fakes import IM_START, FakeEngine, byte_tokenizer_data, echo_seed, say
from tests.server.harness import RunningServer, served_model, serving, sse_data


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving(FakeEngine(echo_seed)) as running:
        yield running


def test_every_choice_of_a_stream_reports_its_own_seed(server: RunningServer) -> None:
    body = {"prompt": ["a", "b", "c"], "max_tokens": 20, "stream": True}
    seeds: dict[int, int] = {}
    texts: dict[int, str] = {}
    for chunk in sse_data(server.client.post("/v1/completions", json=body).text):
        for choice in chunk["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
            if "seed" in choice:
                seeds[choice["index"]] = choice["seed"]
    assert len(set(seeds.values())) == 3
    assert texts == {index: f"c0s{seed}." for index, seed in seeds.items()}


def test_a_stream_that_crashes_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = Generation.next_deltas, []

    async def crash_later(self: Generation) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise ZeroDivisionError
        return await original(self)

    monkeypatch.setattr(Generation, "next_deltas", crash_later)
    engine = FakeEngine(lambda _: say("x" * 50))
    engine.hold()
    with serving(engine) as server, ThreadPoolExecutor(1) as pool:
        body = {"prompt": "x", "max_tokens": 50, "stream": True}
        answer = pool.submit(server.client.post, "/v1/completions", json=body)
        engine.wait_until(lambda: engine.num_open == 1)
        engine.step(1)
        text = answer.result(timeout=20).text
        engine.wait_until(lambda: engine.num_open == 0)
    assert "[DONE]" not in text
    assert text.rstrip().split("\n\n")[-1].startswith("event: error\ndata: ")


def test_a_crash_after_the_response_began_reaches_the_server() -> None:
    """Which then cuts the connection; swallowed, the answer would end in good order and seem whole."""

    async def crash(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ZeroDivisionError

    async def ignore(*_: Any) -> None:
        return

    middleware = RequestMiddleware(crash, metrics=ServerMetrics())
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    with pytest.raises(ZeroDivisionError):
        asyncio.run(middleware(scope, cast("Any", ignore), ignore))


class Stream:
    """Outputs at given times, on a clock that stands still between them."""

    def __init__(self, *events: tuple[float, int]) -> None:
        self.now = 0.0
        self._events = list(events)

    async def __anext__(self) -> RequestOutput:
        self.now, count = self._events.pop(0)
        return RequestOutput(
            index=0,
            new_token_ids=tuple(b"x" * count),
            num_cached_tokens=0,
            queue_seconds=0.25,
            finish_reason=None if self._events else FinishReason.LENGTH,
        )

    def get_ready(self) -> list[RequestOutput]:
        return []


def test_tokens_that_come_together_share_the_gap_before_them() -> None:
    """Counted whole for each, four tokens after 0.8 s would be 3.2 s of latency."""
    stream = Stream((1.0, 1), (1.8, 4), (2.0, 1))
    metrics = ServerMetrics(clock=lambda: stream.now)
    preparation: Any = SimpleNamespace(
        requests=[None],
        prompts=[None],
        n=1,
        options=TextOptions(),
        logprobs=SimpleNamespace(scores_prompt=False),
    )
    preparation.logprobs.answer = None
    generation = Generation(
        cast("Any", stream),
        preparation,
        tokenizer=Tokenizer(byte_tokenizer_data()),
        metrics=metrics,
        rate=ServiceRate(),
        arrived=0.5,
        deadline=Deadline(None, arrived=0.5),
    )

    async def run() -> None:
        while not generation.is_finished:
            await generation.next_deltas()

    asyncio.run(run())
    text = generate_latest(metrics.registry).decode()
    values = {line.split("{")[0]: float(line.split()[-1]) for line in text.splitlines() if "_sum{" in line}
    counts = {line.split("{")[0]: float(line.split()[-1]) for line in text.splitlines() if "_count{" in line}
    assert counts["draftline_inter_token_latency_seconds_count"] == 5
    assert values["draftline_inter_token_latency_seconds_sum"] == pytest.approx(1.0)
    assert values["draftline_time_to_first_token_seconds_sum"] == pytest.approx(0.5)
    assert values["draftline_e2e_request_latency_seconds_sum"] == pytest.approx(1.5)
    assert values["draftline_request_queue_time_seconds_sum"] == pytest.approx(0.25)


def test_a_template_with_a_begin_token_gets_no_second_one() -> None:
    """Llama 3's template writes it, and its tokenizer puts one before every text."""
    data = replace(byte_tokenizer_data(), add_bos=True, bos_token_id=IM_START)
    template = ChatTemplate(
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}", bos_token="<|im_start|>"
    )
    engine = FakeEngine()
    model = replace(served_model(engine, tokenizer=Tokenizer(data)), chat_template=template)
    with serving(engine) as server:
        server.state.publish(model)
        body = {"messages": [{"role": "user", "content": "ab"}], "max_tokens": 2}
        server.client.post("/v1/chat/completions", json=body)
        server.client.post("/v1/completions", json={"prompt": "ab", "max_tokens": 2})
    chat, completion = engine.requests
    assert chat.prompt_token_ids == (IM_START, *b"ab")
    assert completion.prompt_token_ids == (IM_START, *b"ab")


def test_a_full_queue_says_at_most_a_minute() -> None:
    now = 0.0
    rate = ServiceRate(clock=lambda: now)
    rate.begin(3)
    rate.finish()
    now = 1000.0
    rate.finish()
    assert rate.seconds_for(500) == 60.0


def test_errors_in_what_a_checkpoint_says_of_text_name_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = {
        "does not compile": replace(byte_tokenizer_data(), chat_template="{% if %}"),
        "merge 0": replace(byte_tokenizer_data(), merges=(("a", "nothing"),)),
    }
    for message, data in broken.items():
        checkpoint = SimpleNamespace(path=tmp_path / "model.gguf", tokenizer=data, name="x")
        monkeypatch.setattr("server.loading.load_checkpoint", lambda _, checkpoint=checkpoint: checkpoint)
        with pytest.raises(CheckpointError, match=rf"model\.gguf: .*{message}"):
            load_served_model(ServeSettings(model="x"))
