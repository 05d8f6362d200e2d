"""MessageWriter: a message as Anthropic's events, in their order."""

from collections.abc import Callable, Sequence

from server.answers import AnswerPart
from server.api.encoding import to_json
from server.api.errors import ApiError
from server.api.json_object import Json
from server.api.messages.content_blocks import ContentBlocks
from server.api.text_delta import TextDelta
from server.api.usage import Usage


class MessageWriter:
    """Writes the events of one stream; `usage_of` and `ending_of` make the members of a whole one."""

    def __init__(
        self,
        begun: Json,
        *,
        usage_of: Callable[[Usage], Json],
        ending_of: Callable[[TextDelta], Json],
    ) -> None:
        self._usage_of = usage_of
        self._ending_of = ending_of
        self._content = ContentBlocks()
        self._ending: Json = {}
        self.opening = _write([{"type": "message_start", "message": begun}])

    def deltas(self, deltas: Sequence[TextDelta]) -> bytes:
        """Return the events of several deltas."""
        events: list[Json] = []
        for delta in deltas:
            text: Sequence[AnswerPart] = [delta.text] if delta.text else []
            events += self._content.push(text if delta.parts is None else delta.parts)
            if delta.finish_reason is not None:
                self._ending = self._ending_of(delta)
                events += self._content.finish()
        return _write(events)

    def size(self, _deltas: Sequence[TextDelta]) -> int:
        """Return 0: a message has no scores."""
        return 0

    closing_size = 0

    def closing(self, usage: Usage) -> bytes:
        """Return the events after the answer has finished."""
        end = {"type": "message_delta", "delta": self._ending, "usage": self._usage_of(usage)}
        return _write([end, {"type": "message_stop"}])

    def error(self, error: ApiError) -> bytes:
        """Return the event that ends a stream which failed."""
        return b"event: error\ndata: " + error.anthropic_body() + b"\n\n"


def _write(events: Sequence[Json]) -> bytes:
    return b"".join(
        [b"event: " + event["type"].encode() + b"\ndata: " + to_json(event) + b"\n\n" for event in events]
    )
