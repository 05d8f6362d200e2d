"""Answers over HTTP: from our own server, and from foreign ones that say less, or wrong things."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from engine.interface.errors import ConfigError
from server.settings import parse_settings
from server.terminal.backend import AnswerError, AnswerStats, Message, TextPiece
from server.terminal.http_backend import HttpBackend, open_http_backend
from server.terminal.settings import AnswerParams, ChatSettings
from tests.fakes import FakeEngine, say
from tests.server.harness import serving

HELLO = [Message(role="user", content="hello")]


class ForeignServer(ThreadingHTTPServer):
    """Answers every POST as a test says, and lists one model."""

    daemon_threads = True

    def __init__(self, answer: Callable[["Handler", dict[str, Any]], None]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.models: object = {"data": [{"id": "foreign"}]}
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: ForeignServer

    def do_GET(self) -> None:
        self.send(200, json.dumps(self.server.models).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        self.server.headers.append(dict(self.headers))
        self.server.answer(self, body)

    def send(self, status: int, content: bytes, content_type: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def stream(self, *chunks: object, is_complete: bool = True) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for chunk in chunks:
            self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        if is_complete:
            self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_arguments: object) -> None:
        pass


@contextmanager
def foreign(answer: Callable[[Handler, dict[str, Any]], None]) -> Iterator[ForeignServer]:
    with ForeignServer(answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def delta(text: str, finish_reason: str | None = None) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}]}


def ask(
    url: str,
    *,
    params: AnswerParams | None = None,
    model: str | None = None,
    api_key: str | None = None,
    prompt: str | None = None,
) -> tuple[list[TextPiece], AnswerStats, HttpBackend]:
    async def run() -> tuple[list[TextPiece], AnswerStats, HttpBackend]:
        backend = await open_http_backend(url, model=model, api_key=api_key)
        pieces, stats = list[TextPiece](), AnswerStats()
        try:
            how = params or AnswerParams()
            events = backend.chat(HELLO, how) if prompt is None else backend.complete(prompt, how)
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, TextPiece):
                        pieces.append(event)
                    else:
                        stats = event
        finally:
            await backend.close()
        return pieces, stats, backend

    return asyncio.run(run())


def text_of(pieces: list[TextPiece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_our_own_server_says_everything() -> None:
    engine = FakeEngine(lambda _: say("hello", tokens_per_step=3, cached=8, eos=True, num_drafted=3))
    with serving(engine) as server:
        pieces, stats, backend = ask(f"{server.url}/v1", params=AnswerParams(temperature=0.5, top_k=7))
    assert text_of(pieces) == "hello"
    assert backend.name == "fake"
    request = engine.requests[0]
    assert (request.params.temperature, request.params.top_k) == (0.5, 7)
    assert stats == AnswerStats(
        prompt_tokens=len(request.prompt_token_ids),
        completion_tokens=6,
        cached_tokens=8,
        drafted_tokens=6,
        accepted_tokens=4,
        seed=request.params.seed,
        finish_reason="stop",
    )


def test_an_answer_that_is_stopped_ends_at_the_server_too() -> None:
    engine = FakeEngine(lambda _: say("hello"))
    engine.hold()

    async def run(url: str) -> None:
        backend = await open_http_backend(url, model=None, api_key=None)
        events = backend.chat(HELLO, AnswerParams())
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.to_thread(engine.wait_until, lambda: engine.num_open == 1)
        waiting.cancel()
        await asyncio.wait({waiting})
        await events.aclose()
        await backend.close()

    with serving(engine) as server:
        asyncio.run(run(f"{server.url}/v1"))
        engine.wait_until(lambda: engine.num_aborted == 1)


def test_a_completion_from_our_own_server() -> None:
    engine = FakeEngine(lambda _: say("hello", eos=True))
    with serving(engine) as server:
        pieces, stats, _ = ask(f"{server.url}/v1", prompt="say hello", params=AnswerParams(seed=9))
    assert text_of(pieces) == "hello"
    assert bytes(engine.requests[0].prompt_token_ids) == b"say hello"
    assert stats.seed == 9


def test_the_key_is_sent_and_a_wrong_one_is_one_line() -> None:
    with serving(FakeEngine(lambda _: say("hello", eos=True)), keys=["the-right-key"]) as server:
        assert text_of(ask(f"{server.url}/v1", api_key="the-right-key")[0]) == "hello"
        with pytest.raises(AnswerError, match="answered 401") as raised:
            ask(f"{server.url}/v1", api_key="a-wrong-key")
    assert "\n" not in str(raised.value)
    assert "a-wrong-key" not in str(raised.value)


def test_a_foreign_server_that_says_nothing_but_text() -> None:
    with foreign(lambda handler, _: handler.stream(delta("a"), delta("b", "stop"))) as server:
        pieces, stats, backend = ask(server.url)
    assert text_of(pieces) == "ab"
    assert stats == AnswerStats(finish_reason="stop")
    assert backend.name == "foreign"
    assert server.bodies[0] == {
        "model": "foreign",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert "Authorization" not in server.headers[0]


def test_a_server_that_does_not_know_stream_options() -> None:
    def answer(handler: Handler, body: dict[str, Any]) -> None:
        if "stream_options" in body:
            handler.send(400, b'{"error": {"message": "unknown field stream_options"}}')
        else:
            handler.stream(delta("ok", "stop"))

    with foreign(answer) as server:
        assert text_of(ask(server.url)[0]) == "ok"
        assert len(server.bodies) == 2


def test_a_server_that_does_not_stream() -> None:
    whole = {"choices": [{"message": {"content": "all of it"}, "finish_reason": "stop"}]}
    with foreign(lambda handler, _: handler.send(200, json.dumps(whole).encode())) as server:
        assert text_of(ask(server.url)[0]) == "all of it"


def test_thoughts_are_told_apart() -> None:
    thought = {"choices": [{"delta": {"reasoning_content": "hm"}}]}
    with foreign(lambda handler, _: handler.stream(thought, delta("yes", "stop"))) as server:
        assert ask(server.url)[0] == [TextPiece("hm", is_reasoning=True), TextPiece("yes")]


EVIL = "evil\x1b[2J\x9b31m\nname"
CLEAN = "evil [2J 31m name"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps({"error": {"message": EVIL}}), CLEAN),
        (json.dumps({"error": EVIL}), CLEAN),
        (json.dumps({"detail": EVIL}), CLEAN),
        ("[" * 10_000, "no reason given"),
        ("<html>Bad Gateway</html>", "no reason given"),
        ("x" * 100_000, "no reason given"),
    ],
    ids=["openai", "text", "detail", "deep", "html", "long"],
)
def test_a_foreign_error_is_one_clean_line(content: str, message: str) -> None:
    with (
        foreign(lambda handler, _: handler.send(500, content.encode())) as server,
        pytest.raises(AnswerError) as raised,
    ):
        ask(server.url)
    assert str(raised.value).endswith(f"answered 500 Internal Server Error: {message}")
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([delta("a")], "the connection ended before the answer did"),
        ([delta("a"), {"error": {"message": EVIL}}], CLEAN),
        ([delta("a"), {"error": {}}], "ended the answer with an error"),
    ],
    ids=["broken", "error", "error without a message"],
)
def test_an_answer_that_breaks_is_an_error(chunks: list[object], message: str) -> None:
    with (
        foreign(lambda handler, _: handler.stream(*chunks, is_complete=False)) as server,
        pytest.raises(AnswerError) as raised,
    ):
        ask(server.url)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "chunk",
    [
        1,
        None,
        [],
        {"choices": 5},
        {"choices": [3]},
        {"choices": [{"delta": "x"}]},
        {"usage": {"prompt_tokens": "x"}},
    ],
    ids=str,
)
def test_chunks_of_any_shape_are_survived(chunk: object) -> None:
    with foreign(lambda handler, _: handler.stream(chunk, delta("ok", "stop"))) as server:
        pieces, stats, _ = ask(server.url)
    assert text_of(pieces) == "ok"
    assert stats == AnswerStats(finish_reason="stop")


def test_what_is_no_json_is_one_line() -> None:
    def answer(handler: Handler, _body: dict[str, Any]) -> None:
        handler.send(200, b"data: {\x1b[2J\n\n", "text/event-stream")

    with foreign(answer) as server, pytest.raises(AnswerError, match="no JSON") as raised:
        ask(server.url)
    assert str(raised.value).isprintable()


def test_a_server_that_lists_no_models() -> None:
    with foreign(lambda handler, _: handler.stream(delta("ok", "stop"))) as server:
        server.models = {"data": []}
        with pytest.raises(AnswerError, match="name one with --model"):
            ask(server.url)
        assert text_of(ask(server.url, model="mine")[0]) == "ok"
        assert server.bodies[0]["model"] == "mine"
        server.models = {"data": [{"id": EVIL}]}
        assert ask(server.url)[2].name == CLEAN
        assert server.bodies[1]["model"] == EVIL, "the server is told its own name for it"


def test_nobody_there_is_one_line() -> None:
    with pytest.raises(AnswerError, match=r"http://127.0.0.1:1/v1 cannot be reached") as raised:
        ask("http://127.0.0.1:1/v1")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "complete"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
        ("https://host/openai/v1", "https://host/openai/v1"),
    ],
)
def test_urls_with_and_without_a_path(url: str, complete: str) -> None:
    assert parse_settings(ChatSettings, ["--url", url], program="draftline chat").url == complete


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://host", "http://", "http://host:99999", "http://host?x"]
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="--url"):
        parse_settings(ChatSettings, ["--url", url], program="draftline chat")
