"""A streamed response: its last event has all of it, what came before is kept for errors."""

from __future__ import annotations

from draftline_client._accumulate.base import Accumulator
from draftline_client.errors import ProtocolError, Received
from draftline_client.types import (
    Response,
    ResponseDeltaEvent,
    ResponseEvent,
    ResponseStatusEvent,
    ResponseUsage,
)

_LAST_EVENTS = frozenset({"response.completed", "response.incomplete"})


class ResponseAccumulator(Accumulator[ResponseEvent]):
    """Takes the events of a response."""

    def __init__(self) -> None:
        super().__init__()
        self._texts: list[str] = []
        self.response: Response | None = None  # as it was last seen

    def add(self, chunk: ResponseEvent) -> bool:
        """Take an event; return whether the reader of the stream is to see it, which is always so."""
        self.num_chunks += 1
        self._texts.append(self.text_of(chunk))
        if isinstance(chunk, ResponseStatusEvent):
            self.response = chunk.response
            self.is_complete = chunk.type in _LAST_EVENTS
        return True

    def text_of(self, chunk: ResponseEvent) -> str:
        """Return what an event adds to the text."""
        if isinstance(chunk, ResponseDeltaEvent) and chunk.type == "response.output_text.delta":
            return chunk.delta
        return ""

    @property
    def text(self) -> str:
        """The text up to now."""
        return "".join(self._texts)

    @property
    def usage(self) -> ResponseUsage | None:
        """The usage of the last event."""
        return None if self.response is None else self.response.usage

    def received(self, request_id: str | None) -> Received:
        """Return what has come up to now, for an error."""
        return Received(
            text=self.text,
            texts=(self.text,),
            num_chunks=self.num_chunks,
            request_id=request_id,
            usage=self.usage,
            finish_reasons=(None,),
        )

    def final_response(self) -> Response:
        """Return the response of the last event; raises ProtocolError where there was none."""
        if self.response is None or not self.is_complete:
            raise ProtocolError("the stream had no response.completed or response.incomplete")
        return self.response
