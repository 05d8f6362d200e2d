"""Graphs: launches that are repeated, each kind captured as one graph."""

from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

from engine.execution.cuda.device import Device, Work

Key = TypeVar("Key", bound=Hashable)


class Graphs(Generic[Key]):
    """Work by its key: launched kernel by kernel the first time, and as one graph from the second on.

    Those captured before serving stay; of the others the `limit` used last are kept. A graph's own memory is
    small, for all work on the same tensors, but not nothing. `is_enabled` False captures nothing.
    """

    def __init__(
        self, device: Device, work: Callable[[Key], None], *, limit: int, is_enabled: bool = True
    ) -> None:
        self._device, self._work = device, work
        self._limit, self._is_enabled = limit, is_enabled
        self._prepared: dict[Key, Work] = {}
        self._others: dict[Key, Work | None] = {}  # None: was run once; the longest unused first

    @property
    def num_captured(self) -> int:
        """How many graphs there are."""
        return len(self._prepared) + sum(graph is not None for graph in self._others.values())

    def prepare(self, keys: Iterable[Key]) -> None:
        """Run and capture these, in order, to be kept."""
        for key in keys:
            self._work(key)
            if self._is_enabled:
                self._prepared[key] = self._capture(key)

    def run(self, key: Key, *, may_capture: bool = True) -> None:
        """Launch the work of this key."""
        graph = self._prepared.get(key) or (self._find(key) if may_capture and self._is_enabled else None)
        if graph is None:
            self._work(key)
        else:
            graph()

    def _find(self, key: Key) -> Work | None:
        was_run = key in self._others
        graph = self._others.pop(key, None)
        if graph is None and was_run:
            graph = self._capture(key)
        self._others[key] = graph
        if len(self._others) > self._limit:
            del self._others[next(iter(self._others))]
        return graph

    def _capture(self, key: Key) -> Work:
        return self._device.capture(lambda: self._work(key))
