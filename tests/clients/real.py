"""The real server over a tiny real model, for tests of the clients: random weights, bytes as tokens."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from engine.bridge.async_engine import AsyncEngine
from engine.interface.config import EngineConfig
from engine.interface.pooling import Pooling
from engine.loading.attention import load_attention_model
from engine.loading.loader import load_engine
from server.admission import Admission
from server.api.responses.store import ResponseStore
from server.app import create_app
from server.auth import KeyRing
from server.http_server import DrainingServer
from server.metrics import ServerMetrics
from server.serving import EmbeddingModel, RequestLimits, ServedModel, ServerState
from server.text import ChatTemplate, Tokenizer
from tests.drafters import byte_checkpoint, noisy_copy
from tests.server.harness import running
from tests.tiny import LLAMA

TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@dataclass(frozen=True)
class RealServer:
    """A server with a model, in a thread of its own."""

    url: str
    engine: AsyncEngine
    paths: frozenset[str]  # of its endpoints


@contextlib.contextmanager
def real_server() -> Iterator[RealServer]:
    """Serve a tiny model on a free port of 127.0.0.1 while the block runs."""
    checkpoint = byte_checkpoint(replace(LLAMA, max_position_embeddings=2048))
    config = EngineConfig(device="cpu", dtype="float32", kv_cache_memory=2**24, speculation="auto")
    engine = load_engine(checkpoint, config, noisy_copy(checkpoint, 0.02))
    model = ServedModel(
        name="tiny",
        engine=engine,
        tokenizer=Tokenizer(checkpoint.tokenizer),
        chat_template=ChatTemplate(TEMPLATE, bos_token="", eos_token=""),
        max_token_bytes=5,
        embedding=EmbeddingModel(pooling=Pooling.LAST, hidden_size=checkpoint.config.hidden_size),
        attention=load_attention_model(checkpoint),
    )
    state = ServerState(
        admission=Admission(max_open=1000),
        metrics=ServerMetrics(),
        limits=RequestLimits(),
        responses=ResponseStore(8),
    )
    state.publish(model)
    app = create_app(state, keys=KeyRing(()))
    server = DrainingServer(app, state, shutdown_timeout=10.0)
    try:
        with running(server) as (url, _, _):
            yield RealServer(url=url, engine=engine, paths=frozenset(app.openapi()["paths"]))
    finally:
        engine.close()
