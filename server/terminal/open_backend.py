"""From settings to an AnswerBackend: a model that is loaded here, or a server that is asked."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from rich.status import Status
from rich.text import Text

from engine.checkpoint import locate_checkpoint
from server.terminal.backend import AnswerBackend
from server.terminal.clean import clean_line
from server.terminal.output import Output
from server.terminal.settings import AnswerSettings

_T = TypeVar("_T")


def with_backend(
    settings: AnswerSettings, output: Output, work: Callable[[AnswerBackend], Awaitable[_T]]
) -> _T:
    """Open the backend that `settings` ask for, do `work` with it on an event loop, and close it.

    Raises DraftlineError.
    """
    # Loaded outside the event loop, in which Ctrl-C would wait for the end of it.
    local = None if settings.url is not None else _load(settings, output)

    async def run() -> _T:
        backend = local or await _connect(settings, output)
        try:
            return await work(backend)
        finally:
            await backend.close()

    return asyncio.run(run())


def _load(settings: AnswerSettings, output: Output) -> AnswerBackend:
    model = clean_line(settings.model)
    with output.notes.status(Text(f"loading {model}")) as status:
        _fetch(settings.model, status)
        status.update(Text(f"loading {model}"))
        from server.loading import load_served_model
        from server.terminal.local_backend import LocalBackend

        return LocalBackend(load_served_model(settings))


def _fetch(spec: str, status: Status) -> None:
    """Fetch a named model that is not here yet, and say how far that is."""
    from engine.checkpoint.fetch import fetch_model
    from engine.checkpoint.registry import default_cache_dir

    model = locate_checkpoint(spec).named_model
    if model is None:
        return

    def show(num_done: int, num_bytes: int) -> None:
        status.update(Text(f"fetching {model.name}: {num_done / 1e6:,.0f} of {num_bytes / 1e6:,.0f} MB"))

    fetch_model(model, cache_dir=default_cache_dir(), progress=show)


async def _connect(settings: AnswerSettings, output: Output) -> AnswerBackend:
    from server.terminal.http_backend import open_http_backend

    assert settings.url is not None
    key = None if settings.api_key is None else settings.api_key.get_secret_value()
    with output.notes.status(Text(f"asking {clean_line(settings.url)}")):
        return await open_http_backend(settings.url, model=settings.remote_model, api_key=key)
