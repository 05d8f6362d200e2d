"""Chunks of a stream from templates: everything but the text is rendered once a request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.outputs import FinishReason
from server.api.encoding import encode_string, to_json
from server.api.generation import TextDelta
from server.api.usage import Usage

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, kw_only=True)
class ChunkShape:
    """How a choice holds its text: the JSON before and after a string, and what an ending choice has."""

    before_text: str
    after_text: str
    empty: str


COMPLETION_SHAPE = ChunkShape(before_text='"text":', after_text="", empty='"text":""')
CHAT_SHAPE = ChunkShape(before_text='"delta":{"content":', after_text="}", empty='"delta":{}')


def event(data: object) -> bytes:
    """Return one event whose data is `data` as JSON."""
    return b"data: " + to_json(data) + b"\n\n"


class ChunkWriter:
    """Writes the events of one stream.

    `members` are the top-level members of every chunk, `opening` the events before any text, `seeds`
    those of the choices; a choice reports its seed as it ends.
    """

    def __init__(
        self,
        members: Mapping[str, object],
        shape: ChunkShape,
        *,
        opening: bytes,
        seeds: Sequence[int],
        with_usage: bool,
        with_token_ids: bool,
    ) -> None:
        self.opening = opening
        self._members = members
        self._seeds = seeds
        self._with_usage = with_usage
        self._with_token_ids = with_token_ids
        head = "data: " + to_json(members).decode()[:-1] + ',"choices":[{"index":'
        before_text = f",{shape.before_text}"
        self._before_text = [f"{head}{index}{before_text}" for index in range(len(seeds))]
        self._after_text = f'{shape.after_text},"logprobs":null,"finish_reason":null'
        self._before_end = [f"{head}{index},{shape.empty}" for index in range(len(seeds))]

    def delta(self, delta: TextDelta) -> bytes:
        """Return the events of one delta, none if it has nothing to say."""
        ids = ""
        if self._with_token_ids and delta.token_ids:
            ids = f',"token_ids":{list(delta.token_ids)}'
        chunks = ""
        if delta.text or ids:
            text = encode_string(delta.text)
            chunks = f"{self._before_text[delta.index]}{text}{self._after_text}{ids}}}]}}\n\n"
        if delta.finish_reason is not None:
            chunks += self._end(delta.index, delta.finish_reason)
        return chunks.encode()

    def closing(self, usage: Usage) -> bytes:
        """Return the events after the last choice has finished."""
        if not self._with_usage:
            return DONE
        return event({**self._members, "choices": [], "usage": usage.to_json()}) + DONE

    def _end(self, index: int, reason: FinishReason) -> str:
        # Apart from the last text: some clients drop the text of a chunk that has a finish reason.
        finish = f'"logprobs":null,"finish_reason":"{reason.value}","seed":{self._seeds[index]}'
        return f"{self._before_end[index]},{finish}}}]}}\n\n"
