"""What every answer to a generation has in common, streamed or whole."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.interface.outputs import FinishReason, TokenLogprobs
from server.answers import AnswerPart
from server.api.generation import Generation
from server.api.known_fields import FieldWarning
from server.api.preparation import PreparedRequest
from server.api.speculation import TokenProvenance
from server.api.text_delta import scores_size
from server.api.token_scores import ScoredToken
from server.serving import ServedModel


@dataclass(frozen=True, kw_only=True)
class ReplyHeader:
    """The members of a reply that do not change while it is generated."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    warnings: tuple[FieldWarning, ...]

    @classmethod
    def create(cls, prefix: str, model: ServedModel, warnings: tuple[FieldWarning, ...]) -> "ReplyHeader":
        """Make the header of a new reply; its id begins with `prefix`."""
        return cls(
            id=f"{prefix}-{secrets.token_hex(16)}",
            created=int(time.time()),
            model=model.name,
            system_fingerprint=model.system_fingerprint,
            warnings=warnings,
        )

    def to_json(self, kind: str) -> dict[str, object]:
        """Return the members, in OpenAI's order; `kind` is the `object`."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
        }

    def warnings_to_json(self) -> dict[str, object]:
        """Return the member `warnings`, or nothing when there are none."""
        return warnings_to_json(self.warnings)


def warnings_to_json(warnings: Sequence[FieldWarning]) -> dict[str, object]:
    """Return the member `warnings`, or nothing when there are none."""
    if not warnings:
        return {}
    return {"warnings": [{"param": w.param, "message": w.message} for w in warnings]}


@dataclass(kw_only=True)
class WholeChoice:
    """One choice of a reply that is not streamed."""

    parts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[ScoredToken] = field(default_factory=list)
    provenance: list[TokenProvenance] = field(default_factory=list)
    prompt_logprobs: Sequence[TokenLogprobs] = ()  # from the prompt's second token on
    all_logprobs: bytes | None = None  # of its only token
    finish_reason: FinishReason | None = None
    stop: str | None = None  # the stop string that ended it
    answer: list[AnswerPart] = field(default_factory=list)  # the text again, where a parser reads it

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.parts)

    @property
    def size(self) -> int:
        """About how many bytes of JSON it makes."""
        return len(self.parts) + scores_size(self.logprobs, self.prompt_logprobs)


async def collect(generation: Generation, num_choices: int) -> Sequence[WholeChoice]:
    """Run a generation to its end and return its choices; raises EngineUnavailableError."""
    choices = [WholeChoice() for _ in range(num_choices)]
    while not generation.is_finished:
        for delta in await generation.next_deltas():
            choice = choices[delta.index]
            choice.parts.append(delta.text)
            choice.token_ids.extend(delta.token_ids)
            choice.logprobs.extend(delta.logprobs)
            choice.provenance.extend(delta.provenance)
            choice.prompt_logprobs = delta.prompt_logprobs or choice.prompt_logprobs
            choice.all_logprobs = delta.all_logprobs or choice.all_logprobs
            choice.finish_reason, choice.stop = delta.finish_reason, delta.stop
            choice.answer += delta.parts or ()
    return choices


def best_choices(
    choices: Sequence[WholeChoice], preparation: PreparedRequest, mean_logprobs: Sequence[float]
) -> Sequence[WholeChoice]:
    """Return each prompt's choices of the highest mean logprob, best first; all, as they are, if all stay."""
    n, num_returned = preparation.n, preparation.num_returned
    if n == num_returned:
        return choices
    best: list[WholeChoice] = []
    for first in range(0, len(choices), n):
        ranked = sorted(range(first, first + n), key=lambda index: -mean_logprobs[index])
        best += [choices[index] for index in ranked[:num_returned]]
    return best
