"""The `draftline` command: serve, chat, models. torch is imported only after the arguments are read."""

import argparse
import atexit
import gc
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from engine.interface.errors import DraftlineError
from engine.interface.version import installed_version
from server.settings import ChatSettings, ServeSettings, parse_settings, unknown_variables

if TYPE_CHECKING:
    from server.serving import ServedModel, ServerState
    from server.tracing import Tracing

Command = Callable[[Sequence[str]], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0, or 2 after one line about what is wrong."""
    parsed, rest = _parser().parse_known_args(arguments)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    for line in unknown_variables(os.environ):
        errors.print(f"[yellow]warning:[/yellow] {escape(line)}")
    try:
        _COMMANDS[parsed.command](rest)
    except DraftlineError as error:
        errors.print(f"[red]error:[/red] {escape(str(error))}")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="draftline",
        description="An inference server for GPT-style language models.",
        epilog="`draftline COMMAND --help` lists the flags of a command.",
    )
    parser.add_argument("--version", action="version", version=f"draftline {installed_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help_line in (
        ("serve", "serve a model over the OpenAI HTTP API"),
        ("chat", "talk to a model in the terminal"),
        ("models", "list the models that have a name"),
    ):
        commands.add_parser(name, help=help_line, add_help=False)
    return parser


def serve(arguments: Sequence[str]) -> None:
    """Load a model and serve it until a signal."""
    settings = parse_settings(ServeSettings, arguments, program="draftline serve")
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
    url, curl = _how_to_reach(settings, listener)
    console = Console(highlight=False)
    console.print(f"loading {escape(settings.model)}; {url}/ready says when it is there")

    def load() -> "ServedModel":
        from server.loading import load_served_model

        model = load_served_model(settings)
        gc.freeze()  # a collection over a vocabulary, modules and all would stop every request for 0.1 s
        gc.enable()
        print_banner(console, model, url, needs_key=bool(keys), curl=curl)
        return model

    run_server(
        app,
        state,
        listener,
        shutdown_timeout=settings.shutdown_timeout,
        load=load,
        reload=None if settings.api_key_file is None else lambda: key_ring.replace(settings.all_keys()),
        connections=ConnectionLimits(max_connections=settings.max_connections),
        tls=tls,
    )
    if state.model is None:
        # The loader thread is inside torch still, which a normal exit would tear down under it.
        sys.stdout.flush()
        os._exit(0)


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


def print_banner(
    console: Console, model: "ServedModel", url: str, *, needs_key: bool, curl: str = "curl"
) -> None:
    """Print what is served, on what, how much fits, and a line to try it."""
    console.print(f"[bold]{escape(model.name)}[/bold]  {escape(model.description)}")
    info = model.engine.info
    if info is not None:
        num_tokens = info.num_kv_blocks * info.block_size
        console.print(
            f"device    {escape(info.device)}, {info.num_threads} threads, kernels {info.kernels}; "
            f"weights {info.dtype}, {_mebibytes(info.weight_bytes)}"
        )
        console.print(
            f"KV cache  {_mebibytes(info.kv_cache_bytes)}, {info.kv_cache_dtype}: {num_tokens:,} tokens, or "
            f"{num_tokens / info.max_model_len:.1f} requests of {info.max_model_len:,} tokens at once"
        )
        with_draft = f", draft model {escape(info.draft_model)}" if info.draft_model else ""
        console.print(f"guessing  {info.speculation}{with_draft}: answers stay the same")
    if model.attention is not None:
        console.print(f"attention {_mebibytes(model.attention.num_bytes)} of weights again, to show it")
    console.print(f"serving   {url}/v1  (docs: {url}/docs)")
    key = '-H "Authorization: Bearer $KEY" ' if needs_key else ""
    console.print("\n[dim]try:[/dim]")
    console.print(
        f"{curl} -N {url}/v1/completions {key}-H 'Content-Type: application/json' "
        '-d \'{"prompt": "The capital of France is", "max_tokens": 32, "stream": true}\'\n',
        markup=False,
        soft_wrap=True,
    )


def chat(arguments: Sequence[str]) -> None:
    """Talk to a model in the terminal."""
    settings = parse_settings(ChatSettings, arguments, program="draftline chat")
    from server.loading import load_served_model
    from server.terminal_chat import TerminalChat

    console = Console()
    with console.status(f"loading {escape(settings.model)}"):
        model = load_served_model(settings)
    try:
        TerminalChat(model, settings, console).run()
    finally:
        model.engine.close()


def models(arguments: Sequence[str]) -> None:
    """Print the models that have a name, and with --verify whether their files are what they should be."""
    parser = argparse.ArgumentParser("draftline models", description="List the models that have a name.")
    parser.add_argument(
        "--verify", action="store_true", help="hash the files again that are there; 1 if one is damaged"
    )
    is_verifying = parser.parse_args(arguments).verify
    from rich.table import Table

    from engine.checkpoint import list_models, verify_models

    damaged = {name for name, is_intact in verify_models() if not is_intact} if is_verifying else set()
    table = Table("name", "size", "licence", "on disk", "what it is")
    for model in list_models():
        on_disk = str(model.path) if model.is_cached else "no: fetched when it is first used"
        if model.name in damaged:
            on_disk = f"DAMAGED, fetched again when it is next used: {model.path}"
        elif is_verifying and model.is_cached:
            on_disk = f"intact: {model.path}"
        table.add_row(model.name, _mebibytes(model.num_bytes), model.licence, on_disk, model.description)
    Console().print(table)
    if damaged:
        raise SystemExit(1)


def _how_to_reach(settings: ServeSettings, listener: socket.socket) -> tuple[str, str]:
    """Return the URL of the server, and curl with what else it needs."""
    scheme = "http" if settings.ssl_certfile is None else "https"
    if settings.uds is not None:
        return f"{scheme}://localhost", f"curl --unix-socket {settings.uds}"
    host = settings.host
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"{scheme}://{shown}:{listener.getsockname()[1]}", "curl"


def _mebibytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.0f} MiB"


_COMMANDS: Mapping[str, Command] = {"serve": serve, "chat": chat, "models": models}
