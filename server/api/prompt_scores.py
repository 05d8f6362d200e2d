"""The logprobs of prompts: computed once, with the first choice, and put before every choice."""

from collections.abc import Sequence

from engine.interface.outputs import TokenLogprobs
from server.api.text_delta import TextDelta


class PromptScores:
    """Holds the deltas of a prompt's `n` choices until its logprobs are here."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._scores: dict[int, Sequence[TokenLogprobs]] = {}  # by prompt
        self._held: dict[int, list[TextDelta]] = {}
        self._begun: set[int] = set()  # choices

    def join(self, delta: TextDelta, scores: Sequence[TokenLogprobs] | None) -> list[TextDelta]:
        """Return the deltas that may go out, the first of each choice with its prompt's scores."""
        prompt = delta.index // self._n
        if scores is not None:
            self._scores.setdefault(prompt, scores)
        held = self._held.setdefault(prompt, [])
        held.append(delta)
        if prompt not in self._scores:
            return []
        del self._held[prompt]
        for ready in held:
            if ready.index not in self._begun:
                self._begun.add(ready.index)
                ready.prompt_logprobs = self._scores[prompt]
        return held
