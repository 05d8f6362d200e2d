"""TextDelta: what one step, or a few, added to one choice."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.interface.outputs import FinishReason, TokenLogprobs
from server.answers import AnswerPart, merge
from server.api.speculation import TokenProvenance
from server.api.token_scores import ScoredToken


@dataclass(slots=True, kw_only=True)
class TextDelta:
    """What was added to one choice; `finish_reason` is set once, on its last delta."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    logprobs: Sequence[ScoredToken] = ()  # of the tokens whose text is complete now
    provenance: Sequence[TokenProvenance] = ()  # of token_ids, if asked for
    prompt_logprobs: Sequence[TokenLogprobs] | None = None  # on the choice's first delta, if asked for
    all_logprobs: bytes | None = None  # of a request that asks for one token and all that it could be
    parts: list[AnswerPart] | None = None  # of the text, where a parser reads it
    stop: str | None = None  # the stop string that ended the choice

    def extend(self, later: "TextDelta") -> None:
        """Take in the choice's next delta, so that both go out as one chunk."""
        self.text += later.text
        self.token_ids += later.token_ids
        self.finish_reason, self.stop = later.finish_reason, later.stop
        self.logprobs = (*self.logprobs, *later.logprobs)
        self.provenance = (*self.provenance, *later.provenance)
        if self.parts is not None and later.parts is not None:
            self.parts = merge(self.parts + later.parts)


_BYTES_PER_SCORE = 32  # written about as fast as so many bytes of other JSON


def scores_size(*scores: Sequence[ScoredToken | TokenLogprobs]) -> int:
    """Return about how many bytes of JSON scores make, 0 for none."""
    return _BYTES_PER_SCORE * sum([1 + len(score.top) for some in scores for score in some])


class PromptScores:
    """Holds the deltas of a prompt's `n` choices until its logprobs, computed with the first, are here."""

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
