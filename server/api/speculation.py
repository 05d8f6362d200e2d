"""Speculation in requests and replies: the field, the counts in `usage`, where each token came from."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import repeat

from engine.interface.errors import RequestError
from engine.interface.outputs import RequestOutput
from engine.interface.speculation import MAX_DRAFT_TOKENS, DraftSource, SpeculationMode, SpeculationParams
from server.api.errors import describe

_MODES = tuple(mode.value for mode in SpeculationMode)
_LABELS = {
    DraftSource.DRAFT_MODEL: "draft",
    DraftSource.GRAMMAR: "grammar",
    DraftSource.NGRAM: "ngram",
    DraftSource.NGRAM_POOL: "ngram",
}


@dataclass(frozen=True, kw_only=True)
class RequestedSpeculation:
    """The field `speculation` of a body."""

    params: SpeculationParams = field(default_factory=SpeculationParams)
    unknown_keys: tuple[str, ...] = ()


def parse_speculation(value: object) -> RequestedSpeculation:
    """Read `{"mode": "ngram", "k": 4}`; raises RequestError."""
    if not isinstance(value, dict):
        raise RequestError(f"speculation must be an object, got {describe(value)}", param="speculation")
    mode, k = value.get("mode"), value.get("k")
    if mode is not None and mode not in _MODES:
        raise RequestError(
            f"speculation.mode must be one of {', '.join(_MODES)}, got {describe(mode)}",
            param="speculation.mode",
        )
    if k is not None and type(k) is not int:  # a bool is an int to isinstance
        raise RequestError(
            f"speculation.k must be an integer between 1 and {MAX_DRAFT_TOKENS}, got {describe(k)}",
            param="speculation.k",
        )
    return RequestedSpeculation(
        params=SpeculationParams(mode=None if mode is None else SpeculationMode(mode), k=k),
        unknown_keys=tuple(f"speculation.{key}" for key in value if key not in ("mode", "k")),
    )


@dataclass(frozen=True, slots=True)
class TokenProvenance:
    """Where a token of an answer came from, and the engine's step that settled it."""

    source: str  # draft, ngram, grammar (forced by it), bonus (after a draft right to its end) or target
    step: int

    def to_json(self) -> dict[str, object]:
        """Return an entry of `provenance`."""
        return {"source": self.source, "step": self.step}


@dataclass(slots=True)
class SpeculationTally:
    """What speculation did for one choice, or several, counting only tokens that the answer has."""

    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_verifications: int = 0
    sources: set[str] = field(default_factory=set)
    seconds: float = 0.0
    plain_seconds: float = 0.0

    def add(self, output: RequestOutput, num_tokens: int) -> None:
        """Take in an output, of which the answer keeps the first tokens."""
        step = output.speculation
        if step is None:
            return
        self.seconds, self.plain_seconds = step.seconds, step.plain_seconds
        if step.source is not None:
            self.sources.add(_LABELS[step.source])
            self.num_verifications += 1
            self.num_draft_tokens += step.num_draft_tokens
            self.num_accepted_tokens += min(step.num_accepted_tokens, num_tokens)

    @property
    def estimated_speedup(self) -> float:
        """Time without speculation, by the measured costs of steps, over time with it; 1 without drafts."""
        return self.plain_seconds / self.seconds if self.num_verifications and self.seconds else 1.0

    def to_json(self) -> dict[str, object]:
        """Return `usage.draftline.speculation`."""
        steps = self.num_verifications
        return {
            "drafted": self.num_draft_tokens,
            "accepted": self.num_accepted_tokens,
            "verification_steps": steps,
            "mean_accepted_length": round(1 + self.num_accepted_tokens / steps, 3) if steps else None,
            "source": "+".join(sorted(self.sources)) or None,
            "estimated_speedup": round(self.estimated_speedup, 3),
        }


def total(tallies: Iterable[SpeculationTally]) -> SpeculationTally:
    """Return what speculation did for several choices together."""
    result = SpeculationTally()
    for tally in tallies:
        result.num_draft_tokens += tally.num_draft_tokens
        result.num_accepted_tokens += tally.num_accepted_tokens
        result.num_verifications += tally.num_verifications
        result.sources |= tally.sources
        result.seconds += tally.seconds
        result.plain_seconds += tally.plain_seconds
    return result


def provenance(output: RequestOutput, num_tokens: int) -> tuple[TokenProvenance, ...]:
    """Return where the first tokens of an output came from."""
    labels: list[str] = []
    step = output.speculation
    if step is not None and step.source is not None:
        labels += repeat(_LABELS[step.source], step.num_accepted_tokens)
        if step.num_accepted_tokens == step.num_draft_tokens:
            labels.append("bonus")
    labels += repeat("target", num_tokens)
    return tuple([TokenProvenance(*pair) for pair in zip(labels, output.steps[:num_tokens], strict=False)])
