"""A real server on a real socket around a fake engine, and how to read its streams."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from engine.interface.pooling import Pooling
from server.admission import Admission
from server.api_keys import ApiKey
from server.app import create_app
from server.auth import KeyRing
from server.http_protocol import ConnectionLimits
from server.http_server import DrainingServer
from server.listeners import listen
from server.metrics import ServerMetrics
from server.serving import EmbeddingModel, RequestLimits, ServedModel, ServerState
from server.text import ChatTemplate, ContentGuard, Tokenizer
from tests.fakes import CHAT_TEMPLATE, FakeEngine, byte_tokenizer_data


@dataclass(frozen=True)
class RunningServer:
    """A real server on a real socket, in a thread of its own."""

    url: str
    client: httpx.Client
    engine: FakeEngine
    state: ServerState
    server: DrainingServer
    loop: asyncio.AbstractEventLoop

    def stop(self) -> None:
        """Begin to drain, as a signal would."""
        self.loop.call_soon_threadsafe(self.server.stop)


def served_model(
    engine: FakeEngine,
    *,
    name: str = "fake",
    chat_template: str | None = CHAT_TEMPLATE,
    tokenizer: Tokenizer | None = None,
    embedding: EmbeddingModel | None = None,
) -> ServedModel:
    """A model of the byte vocabulary behind a fake engine."""
    return ServedModel(
        name=name,
        engine=engine,
        tokenizer=tokenizer or Tokenizer(byte_tokenizer_data()),
        chat_template=None
        if chat_template is None
        else ChatTemplate(chat_template, bos_token="", eos_token=""),
        content_guard=ContentGuard(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
        max_token_bytes=13,
        embedding=embedding or EmbeddingModel(pooling=Pooling.LAST, hidden_size=4),
        system_fingerprint="fp_fake",
    )


@contextlib.contextmanager
def serving(
    engine: FakeEngine,
    *,
    keys: Sequence[str | ApiKey] = (),
    max_open: int = 1000,
    limits: RequestLimits | None = None,
    shutdown_timeout: float = 10.0,
    cors_origins: Sequence[str] = (),
    chat_template: str | None = CHAT_TEMPLATE,
    tokenizer: Tokenizer | None = None,
    embedding: EmbeddingModel | None = None,
    is_loading: bool = False,
    loop: Literal["auto", "uvloop", "asyncio"] = "auto",
    connections: ConnectionLimits | None = None,
) -> Iterator[RunningServer]:
    """Serve `engine` on a free port of 127.0.0.1 while the block runs."""
    state = ServerState(
        admission=Admission(max_open=max_open), metrics=ServerMetrics(), limits=limits or RequestLimits()
    )
    if not is_loading:
        model = served_model(engine, chat_template=chat_template, tokenizer=tokenizer, embedding=embedding)
        state.publish(model)
    ring = KeyRing([key if isinstance(key, ApiKey) else ApiKey.of(key) for key in keys])
    app = create_app(state, keys=ring, cors_origins=cors_origins)
    server = DrainingServer(app, state, shutdown_timeout=shutdown_timeout, connections=connections)
    server.config.loop = loop
    with running(server) as (url, client, running_loop):
        try:
            yield RunningServer(
                url=url, client=client, engine=engine, state=state, server=server, loop=running_loop
            )
        finally:
            engine.release()


@contextlib.contextmanager
def serving_model(model: ServedModel, *, keys: Sequence[str] = ()) -> Iterator[httpx.Client]:
    """Serve a real model on a free port of 127.0.0.1 while the block runs; its engine stays open."""
    state = ServerState(admission=Admission(max_open=1000), metrics=ServerMetrics(), limits=RequestLimits())
    state.publish(model)
    app = create_app(state, keys=KeyRing(map(ApiKey.of, keys)))
    server = DrainingServer(app, state, shutdown_timeout=10.0)
    with running(server) as (_, client, _):
        yield client


@contextlib.contextmanager
def running(server: DrainingServer) -> Iterator[tuple[str, httpx.Client, asyncio.AbstractEventLoop]]:
    """Run a server in a thread while the block runs, then drain it."""
    listener = listen("127.0.0.1", 0)
    loop = (server.config.get_loop_factory() or asyncio.new_event_loop)()  # the one of run_server
    thread = threading.Thread(target=loop.run_until_complete, args=(server.serve(sockets=[listener]),))
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    client = httpx.Client(base_url=url, verify=False, timeout=30)  # its own certificates cost 20 ms
    try:
        with client:
            yield url, client, loop
    finally:
        if thread.is_alive():
            loop.call_soon_threadsafe(server.stop)
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"
        loop.close()


def sse_data(text: str) -> list[dict[str, Any]]:
    """Return the JSON of the events of a stream that ended well: [DONE] is last and nothing follows it."""
    *events, done, rest = text.split("\n\n")
    assert done == "data: [DONE]"
    assert rest == ""
    assert all(event.startswith("data: ") for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]
