"""ContentBlocks: an answer as the blocks of a message, and the events in which they grow."""

import json
from collections.abc import Sequence

from server.answers import AnswerPart, CallDelta, ReasoningDelta
from server.api.json_object import Json


class ContentBlocks:
    """Takes the parts of one answer, and says what each changes."""

    def __init__(self) -> None:
        self.blocks: list[Json] = []  # the last may still grow
        self._is_open = False
        self._texts: list[str] = []  # of the open block

    def push(self, parts: Sequence[AnswerPart]) -> list[Json]:
        """Add parts; return the events."""
        events: list[Json] = []
        for part in parts:
            events += self._push(part)
        return events

    def finish(self) -> list[Json]:
        """End the answer; return the events."""
        if not self._is_open:
            return []
        self._is_open = False
        block, text = self.blocks[-1], "".join(self._texts)
        if block["type"] == "tool_use":
            block.update(_input(text))
        else:
            block[block["type"]] = text  # a block of text has `text`, of thinking `thinking`
        return [{"type": "content_block_stop", "index": len(self.blocks) - 1}]

    def _push(self, part: AnswerPart) -> list[Json]:
        if isinstance(part, CallDelta):
            return self._push_call(part)
        if isinstance(part, ReasoningDelta):
            events = self._begin({"type": "thinking", "thinking": "", "signature": ""})
            return events + self._grow("thinking", "thinking", part.text)
        return self._begin({"type": "text", "text": "", "citations": None}) + self._grow("text", "text", part)

    def _push_call(self, part: CallDelta) -> list[Json]:
        events: list[Json] = []
        if part.id is not None:
            block: Json = {"type": "tool_use", "id": part.id, "name": part.name, "input": {}}
            events += self._begin(block, always=True)
        if part.arguments:
            events += self._grow("input_json", "partial_json", part.arguments)
        return events

    def _begin(self, block: Json, *, always: bool = False) -> list[Json]:
        """Begin a block, unless one of its type is open."""
        if self._is_open and self.blocks[-1]["type"] == block["type"] and not always:
            return []
        events = self.finish()
        self.blocks.append(block)
        self._is_open, self._texts = True, []
        start = {"type": "content_block_start", "index": len(self.blocks) - 1, "content_block": {**block}}
        return [*events, start]

    def _grow(self, kind: str, member: str, text: str) -> list[Json]:
        self._texts.append(text)
        delta = {"type": f"{kind}_delta", member: text}
        return [{"type": "content_block_delta", "index": len(self.blocks) - 1, "delta": delta}]


def _input(text: str) -> Json:
    """Return the input of a call; of one that was cut short its text, for no object is in it."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        value = None
    return {"input": value} if isinstance(value, dict) else {"input": {}, "partial_json": text}
