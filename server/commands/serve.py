"""`draftline serve`: an HTTP server that listens at once and loads its model meanwhile."""

import atexit
import gc
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from server.commands.banner import Address, print_banner
from server.commands.model_check import check_models
from server.settings import ServeSettings, parse_settings

if TYPE_CHECKING:
    from server.serving import ServedModel, ServerState
    from server.tracing import Tracing


def serve(arguments: Sequence[str]) -> int:
    """Load a model and serve it until a signal."""
    settings = parse_settings(ServeSettings, arguments, program="draftline serve")
    check_models(settings)
    keys, tls = settings.all_keys(), settings.tls()
    gc.disable()  # until the model is there: nothing that loading makes is garbage
    from server.app import create_app
    from server.auth import KeyRing
    from server.http_protocol import ConnectionLimits
    from server.http_server import run_server
    from server.listeners import listen, listen_unix
    from server.logs import configure_logging

    configure_logging(settings.log_format)
    state, key_ring = _new_state(settings), KeyRing(keys, secret=_tenants_secret(settings))
    tracing = _open_tracing(settings)
    app = create_app(
        state,
        keys=key_ring,
        cors_origins=settings.cors_origin,
        allowed_hosts=settings.allowed_hosts(),
        tracing=tracing,
    )
    listener = listen(settings.host, settings.port) if settings.uds is None else listen_unix(settings.uds)
    run_server(
        app,
        state,
        listener,
        shutdown_timeout=settings.shutdown_timeout,
        load=_loader(settings, _address(settings, listener, needs_key=bool(keys))),
        reload=None if settings.api_key_file is None else lambda: key_ring.replace(settings.all_keys()),
        connections=ConnectionLimits(max_connections=settings.max_connections),
        tls=tls,
    )
    if state.model is None:
        # The loader thread is inside torch still, which a normal exit would tear down under it.
        sys.stdout.flush()
        os._exit(0)
    return 0


def _loader(settings: ServeSettings, address: Address) -> "Callable[[], ServedModel]":
    """Say that the model is being loaded, and return what loads it and says that it is there."""
    console = Console(highlight=False)
    console.print(f"loading {escape(settings.model)}, until {address.url}/ready is 200")

    def load() -> "ServedModel":
        from server.loading import load_served_model

        model = load_served_model(settings)
        gc.freeze()  # a collection over a vocabulary, modules and all would stop every request for 0.1 s
        gc.enable()
        print_banner(console, model, address)
        return model

    return load


def _open_tracing(settings: ServeSettings) -> "Tracing | None":
    if settings.otlp_traces_endpoint is None:
        return None
    from server.tracing import open_tracing

    tracing = open_tracing(settings.otlp_traces_endpoint)
    atexit.register(tracing.close)
    return tracing


def _tenants_secret(settings: ServeSettings) -> bytes | None:
    """Return what tenants are told apart by: the same after a restart where their prefixes are kept."""
    if settings.kv_cache_dir is None:
        return None
    from engine.loading.secret_file import read_or_create_secret

    return read_or_create_secret(settings.kv_cache_dir / "tenants")


def _new_state(settings: ServeSettings) -> "ServerState":
    from server.admission import Admission
    from server.api.limits import MAX_CHOICES
    from server.api.responses.store import ResponseStore
    from server.metrics import ServerMetrics
    from server.serving import RequestLimits, ServerState

    max_open = settings.max_num_seqs + settings.max_queue
    return ServerState(
        admission=Admission(max_open=max_open),
        metrics=ServerMetrics(with_key_names=settings.metrics_key_names),
        limits=RequestLimits(max_body_size=settings.max_body_size, max_choices=min(MAX_CHOICES, max_open)),
        responses=ResponseStore(settings.response_store),
    )


def _address(settings: ServeSettings, listener: socket.socket, *, needs_key: bool) -> Address:
    scheme = "http" if settings.ssl_certfile is None else "https"
    if settings.uds is not None:
        curl = f"curl --unix-socket {settings.uds}"
        return Address(url=f"{scheme}://localhost", curl=curl, needs_key=needs_key)
    host = settings.host
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return Address(url=f"{scheme}://{shown}:{listener.getsockname()[1]}", needs_key=needs_key)
