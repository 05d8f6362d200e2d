"""ResponseWriter: a response as OpenAI's typed events, numbered and in their order."""

from collections.abc import Callable, Sequence

from engine.interface.outputs import FinishReason
from server.answers import AnswerPart
from server.api.encoding import to_json
from server.api.errors import ApiError
from server.api.json_object import Json
from server.api.responses.output_items import OutputItems
from server.api.text_delta import TextDelta, scores_size
from server.api.token_scores import ScoredToken
from server.api.usage import Usage


class ResponseWriter:
    """Writes the events of one stream.

    `snapshot` makes the response object of a status, usage and output; `keep` is told of the last one.
    """

    def __init__(
        self,
        snapshot: Callable[[str, Usage | None, list[Json]], Json],
        *,
        logprobs: Callable[[Sequence[ScoredToken]], list[object]],
        keep: Callable[[Json], None],
    ) -> None:
        self._snapshot = snapshot
        self._logprobs = logprobs
        self._keep = keep
        self._output = OutputItems()
        self._number = 0
        self._status = "completed"
        self.closing_size = 0  # of all scores so far
        begun = snapshot("in_progress", None, [])
        self.opening = self._write(
            [
                {"type": "response.created", "response": begun},
                {"type": "response.in_progress", "response": begun},
            ]
        )

    def deltas(self, deltas: Sequence[TextDelta]) -> bytes:
        """Return the events of several deltas."""
        events: list[Json] = []
        for delta in deltas:
            text: Sequence[AnswerPart] = [delta.text] if delta.text else []
            scores = self._logprobs(delta.logprobs) if delta.logprobs else []
            events += self._output.push_all(text if delta.parts is None else delta.parts, scores)
            if delta.finish_reason is not None:
                self._status = status_of(delta.finish_reason)
                events += self._output.finish(self._status)
        return self._write(events)

    def size(self, deltas: Sequence[TextDelta]) -> int:
        """Return about how many bytes the scores take; an item that is done has all of them again."""
        num_bytes = sum([scores_size(delta.logprobs) for delta in deltas])
        self.closing_size += num_bytes
        is_done = any(delta.finish_reason is not None for delta in deltas)
        return num_bytes + self.closing_size if is_done else num_bytes

    def closing(self, usage: Usage) -> bytes:
        """Return the event after the answer has finished."""
        response = self._snapshot(self._status, usage, self._output.items)
        self._keep(response)
        return self._write([{"type": f"response.{self._status}", "response": response}])

    def error(self, error: ApiError) -> bytes:
        """Return the event that ends a stream which failed."""
        members = {"code": error.code, "message": error.message, "param": error.param}
        return self._write([{"type": "error", **members}])

    def _write(self, events: Sequence[Json]) -> bytes:
        parts = []
        for event in events:
            kind = event["type"].encode()
            parts.append(
                b"event: "
                + kind
                + b"\ndata: "
                + to_json({**event, "sequence_number": self._number})
                + b"\n\n"
            )
            self._number += 1
        return b"".join(parts)


def status_of(reason: FinishReason) -> str:
    """Return the status of a response that ended so."""
    return "incomplete" if reason is FinishReason.LENGTH else "completed"
