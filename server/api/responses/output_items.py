"""OutputItems: an answer as the items of a response, and the events in which they grow."""

import secrets
from collections.abc import Sequence

from server.answers import AnswerPart, CallDelta, ReasoningDelta
from server.api.json_object import Json


class OutputItems:
    """Takes the parts of one answer, and says what each changes."""

    def __init__(self) -> None:
        self.items: list[Json] = []  # the last may still grow
        self._is_open = False
        self._text: list[str] = []  # of the open item
        self._logprobs: list[object] = []

    def push_all(self, parts: Sequence[AnswerPart], logprobs: Sequence[object]) -> list[Json]:
        """Add parts, of which the first text has the logprobs; return the events."""
        events: list[Json] = []
        for part in parts:
            events += self.push(part, logprobs if isinstance(part, str) else ())
            logprobs = () if isinstance(part, str) else logprobs
        return events

    def push(self, part: AnswerPart, logprobs: Sequence[object] = ()) -> list[Json]:
        """Add a part, with the logprobs of a text; return the events."""
        if isinstance(part, CallDelta):
            events = self._begin_call(part) if part.id is not None else []
            return events + (self._grow("arguments", part.arguments) if part.arguments else [])
        if isinstance(part, ReasoningDelta):
            return self._begin("reasoning") + self._grow("reasoning", part.text)
        events = self._begin("message")
        self._logprobs += logprobs
        return events + self._grow("message", part, logprobs)

    def finish(self, status: str) -> list[Json]:
        """End the answer; one that says nothing has an empty message."""
        events = [] if self.items else self._begin("message")
        return events + self._end(status)

    def _begin(self, kind: str) -> list[Json]:
        if self._is_open and self.items[-1]["type"] == kind:
            return []
        events = self._end("completed")
        item: Json = {
            "id": _new_id("msg" if kind == "message" else "rs"),
            "type": kind,
            "status": "in_progress",
        }
        item |= {"role": "assistant", "content": []} if kind == "message" else {"summary": [], "content": []}
        events.append(self._add(item))
        part = _empty_part(kind)
        item["content"] = [part]
        return [*events, self._event("content_part.added", content_index=0, part={**part})]

    def _begin_call(self, call: CallDelta) -> list[Json]:
        events = self._end("completed")
        item: Json = {
            "id": _new_id("fc"),
            "type": "function_call",
            "status": "in_progress",
            "call_id": call.id,
            "name": call.name,
            "arguments": "",
        }
        return [*events, self._add(item)]

    def _add(self, item: Json) -> Json:
        self.items.append(item)
        self._is_open, self._text, self._logprobs = True, [], []
        return {"type": "response.output_item.added", "output_index": len(self.items) - 1, "item": {**item}}

    def _grow(self, kind: str, text: str, logprobs: Sequence[object] = ()) -> list[Json]:
        self._text.append(text)
        if kind == "arguments":
            return [self._event("function_call_arguments.delta", delta=text)]
        if kind == "reasoning":
            return [self._event("reasoning_text.delta", content_index=0, delta=text)]
        return [self._event("output_text.delta", content_index=0, delta=text, logprobs=list(logprobs))]

    def _end(self, status: str) -> list[Json]:
        """End the open item, if there is one."""
        if not self._is_open:
            return []
        self._is_open = False
        item, text = self.items[-1], "".join(self._text)
        item["status"] = status
        if item["type"] == "function_call":
            item["arguments"] = text
            done = [self._event("function_call_arguments.done", name=item["name"], arguments=text)]
        else:
            part = item["content"][0]
            part["text"] = text
            done = [self._event("reasoning_text.done", content_index=0, text=text)]
            if item["type"] == "message":
                part["logprobs"] = self._logprobs
                done = [self._event("output_text.done", content_index=0, text=text, logprobs=self._logprobs)]
            done.append(self._event("content_part.done", content_index=0, part=part))
        end = {"type": "response.output_item.done", "output_index": len(self.items) - 1, "item": item}
        return [*done, end]

    def _event(self, kind: str, **members: object) -> Json:
        place = {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}
        return {"type": f"response.{kind}", **place, **members}


def _empty_part(kind: str) -> Json:
    if kind == "message":
        return {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    return {"type": "reasoning_text", "text": ""}


def _new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(16)}"
