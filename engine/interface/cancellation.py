"""Cancellation: tells work on another thread that nobody wants its result any more."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Cancellation:
    """One word from the thread that waits to the one that works; safe to share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_cancelled = False
        self._callbacks: list[Callable[[], None]] = []

    @property
    def is_cancelled(self) -> bool:
        """True once cancel() was called."""
        return self._is_cancelled

    def cancel(self) -> None:
        """End the work, as soon as it can be ended."""
        with self._lock:
            self._is_cancelled = True
            callbacks = list(self._callbacks)
        for callback in callbacks:
            callback()

    @contextmanager
    def calling(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call `callback` if the work is cancelled while the block runs, or was before."""
        with self._lock:
            self._callbacks.append(callback)
            is_cancelled = self._is_cancelled
        try:
            if is_cancelled:
                callback()
            yield
        finally:
            with self._lock:
                self._callbacks.remove(callback)
