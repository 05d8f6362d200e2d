"""Chunks of a stream from templates: everything but the text is rendered once a request."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from engine.interface.outputs import FinishReason, TokenLogprobs
from server.answers import AnswerPart, ReasoningDelta
from server.api.encoding import encode_string, to_json, to_json_in_parts
from server.api.errors import ApiError
from server.api.text_delta import TextDelta, scores_size
from server.api.token_scores import ScoredToken
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
    return b"data: " + to_json_in_parts(data) + b"\n\n"


def _no_logprobs(_tokens: Sequence[ScoredToken]) -> None:
    return None


def message_deltas(part: AnswerPart) -> list[Mapping[str, object]]:
    """Return OpenAI's deltas of a message for a part of an answer; a call begins without arguments."""
    if isinstance(part, str):
        return [{"content": part}]
    if isinstance(part, ReasoningDelta):
        return [{"reasoning_content": part.text}]
    deltas: list[Mapping[str, object]] = []
    if part.id is not None:
        function = {"name": part.name, "arguments": ""}
        call = {"index": part.index, "id": part.id, "type": "function", "function": function}
        deltas.append({"tool_calls": [call]})
    if part.arguments:
        deltas.append({"tool_calls": [{"index": part.index, "function": {"arguments": part.arguments}}]})
    return deltas


class ChunkWriter:
    """Writes the events of one stream.

    `members` are the top-level members of every chunk, `opening` the events before any text, `seeds`
    those of the choices; a choice reports its seed as it ends. `logprobs` turns scores into the member of
    that name, `prompt_event` a choice and its prompt's scores into an event before its text.
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
        logprobs: Callable[[Sequence[ScoredToken]], object] = _no_logprobs,
        prompt_event: Callable[[int, Sequence[TokenLogprobs]], bytes] | None = None,
    ) -> None:
        self.opening = opening
        self._members = members
        self._seeds = seeds
        self._with_usage = with_usage
        self._with_token_ids = with_token_ids
        self._logprobs = logprobs
        self._prompt_event = prompt_event
        head = "data: " + to_json(members).decode()[:-1] + ',"choices":[{"index":'
        before_text = f",{shape.before_text}"
        self._heads = [f"{head}{index}" for index in range(len(seeds))]
        self._before_text = [f"{head}{index}{before_text}" for index in range(len(seeds))]
        self._before_logprobs = f'{shape.after_text},"logprobs":'
        self._after_text = f'{self._before_logprobs}null,"finish_reason":null'
        self._before_end = [f"{head}{index},{shape.empty}" for index in range(len(seeds))]

    def delta(self, delta: TextDelta) -> bytes:
        """Return the events of one delta, none if it has nothing to say."""
        extras = ""
        if self._with_token_ids and delta.token_ids:
            extras = f',"token_ids":{list(delta.token_ids)}'
        if delta.provenance:
            sources = to_json([token.to_json() for token in delta.provenance]).decode()
            extras += f',"provenance":{sources}'
        chunks = ""
        if delta.parts is not None:
            chunks = self._parts(delta, delta.parts, extras)
        elif delta.text or extras or delta.logprobs:
            text = encode_string(delta.text)
            after_text = self._scored(delta) if delta.logprobs else self._after_text
            chunks = f"{self._before_text[delta.index]}{text}{after_text}{extras}}}]}}\n\n"
        if delta.finish_reason is not None:
            chunks += self._end(delta.index, delta.finish_reason)
        if delta.prompt_logprobs is not None and self._prompt_event is not None:
            return self._prompt_event(delta.index, delta.prompt_logprobs) + chunks.encode()
        return chunks.encode()

    def deltas(self, deltas: Sequence[TextDelta]) -> bytes:
        """Return the events of several deltas."""
        return b"".join([self.delta(delta) for delta in deltas])

    def size(self, deltas: Sequence[TextDelta]) -> int:
        """Return about how many bytes the scores take, 0 without any."""
        return sum([scores_size(delta.logprobs, delta.prompt_logprobs or ()) for delta in deltas])

    closing_size = 0

    def closing(self, usage: Usage) -> bytes:
        """Return the events after the last choice has finished."""
        if not self._with_usage:
            return DONE
        return event({**self._members, "choices": [], "usage": usage.to_json()}) + DONE

    def error(self, error: ApiError) -> bytes:
        """Return the event that ends a stream which failed."""
        return b"event: error\ndata: " + error.body() + b"\n\n"

    def _parts(self, delta: TextDelta, parts: Sequence[AnswerPart], extras: str) -> str:
        """Return a chunk for each part; what belongs to the tokens comes with the first."""
        messages: list[Mapping[str, object]] = [message for part in parts for message in message_deltas(part)]
        if not messages and (extras or delta.logprobs):
            messages = [{}]
        chunks = ""
        for number, message in enumerate(messages):
            is_first = number == 0
            logprobs = (
                to_json(self._logprobs(delta.logprobs)).decode() if is_first and delta.logprobs else "null"
            )
            members = f'"delta":{to_json(message).decode()},"logprobs":{logprobs},"finish_reason":null'
            chunks += f"{self._heads[delta.index]},{members}{extras if is_first else ''}}}]}}\n\n"
        return chunks

    def _scored(self, delta: TextDelta) -> str:
        logprobs = to_json(self._logprobs(delta.logprobs)).decode()
        return f'{self._before_logprobs}{logprobs},"finish_reason":null'

    def _end(self, index: int, reason: FinishReason) -> str:
        # Apart from the last text: some clients drop the text of a chunk that has a finish reason.
        finish = f'"logprobs":null,"finish_reason":"{reason.value}","seed":{self._seeds[index]}'
        return f"{self._before_end[index]},{finish}}}]}}\n\n"
