"""Token counts, and what speculation and the prefix cache did."""

from __future__ import annotations

from dataclasses import dataclass

from draftline_client.types._record import Record
from draftline_client.types.cache import CacheExplanation


@dataclass(frozen=True, kw_only=True)
class PromptTokensDetails(Record):
    """Where the prompt's tokens came from."""

    cached_tokens: int | None = None  # taken from the prefix cache


@dataclass(frozen=True, kw_only=True)
class CompletionTokensDetails(Record):
    """What the generated tokens were."""

    reasoning_tokens: int | None = None  # thought before the answer
    accepted_prediction_tokens: int | None = None  # drafted and right
    rejected_prediction_tokens: int | None = None  # drafted and wrong, so not in the answer


@dataclass(frozen=True, kw_only=True)
class SpeculationUsage(Record):
    """What speculation did for one request, all of its choices together."""

    drafted: int  # tokens
    accepted: int  # of them
    verification_steps: int  # in which the model looked at a draft
    mean_accepted_length: float | None = None  # tokens that a verification brought, its own one included
    source: str | None = None  # draft, ngram, grammar, or several joined by +; None without drafts
    estimated_speedup: float | None = None  # against no speculation, by the costs the server measured


@dataclass(frozen=True, kw_only=True)
class DraftlineUsage(Record):
    """What only this server counts."""

    speculation: SpeculationUsage | None = None  # of the whole request
    cache: tuple[CacheExplanation, ...] = ()  # with cache_explain, one for each prompt


@dataclass(frozen=True, kw_only=True)
class Usage(Record):
    """Token counts of one request."""

    prompt_tokens: int  # of all prompts, each counted once
    completion_tokens: int  # of all choices
    total_tokens: int  # both together
    prompt_tokens_details: PromptTokensDetails | None = None  # where they came from
    completion_tokens_details: CompletionTokensDetails | None = None  # what they were
    draftline: DraftlineUsage | None = None  # what only this server counts

    @property
    def speculation(self) -> SpeculationUsage | None:
        """What speculation did: `draftline.speculation`."""
        return None if self.draftline is None else self.draftline.speculation

    @property
    def cache(self) -> tuple[CacheExplanation, ...]:
        """What the prefix cache had of each prompt, with `cache_explain`: `draftline.cache`."""
        return () if self.draftline is None else self.draftline.cache
