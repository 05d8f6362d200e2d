"""Answer: what a client saw of one stream of server-sent events."""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Answer:
    """What came of one stream."""

    text: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # arrival of each chunk with text
    seen_tokens: int = 0  # a chunk counts as one where it does not say more
    prompt_tokens: int = 0
    answer_tokens: int = 0
    is_complete: bool = False


def read_answer(lines: Iterable[bytes], leave_after: int | None = None) -> Answer:
    """Read server-sent events until [DONE], the end, or so many chunks."""
    answer = Answer()
    for line in lines:
        if not line.startswith(b"data: "):
            continue
        if line == b"data: [DONE]":
            answer.is_complete = True  # and on to the end of the body: the connection can then be used again
            continue
        chunk = json.loads(line[6:])
        if chunk.get("usage"):
            answer.prompt_tokens = chunk["usage"]["prompt_tokens"]
            answer.answer_tokens = chunk["usage"]["completion_tokens"]
        for choice in chunk.get("choices", ()):
            piece = choice.get("text") or choice.get("delta", {}).get("content")
            if piece:
                answer.seen_tokens += len(choice.get("token_ids") or (piece,))
                answer.text.append(piece)
                answer.times.append(time.perf_counter())
        if leave_after is not None and len(answer.times) >= leave_after:
            break
    return answer
