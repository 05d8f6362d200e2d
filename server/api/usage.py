"""Usage: the token counts of one request."""

from dataclasses import dataclass, field

from server.api.speculation import SpeculationTally


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Token counts of a request; a prompt counts once however many answers it gets."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int = 0
    cache: object = None  # the explanation of each prompt, of one alone by itself; None: nobody asked
    speculation: SpeculationTally = field(default_factory=SpeculationTally)

    def to_json(self) -> dict[str, object]:
        """Return OpenAI's `usage` object, and ours in it."""
        num_accepted = self.speculation.num_accepted_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {
                "reasoning_tokens": self.reasoning_tokens,
                "accepted_prediction_tokens": num_accepted,
                "rejected_prediction_tokens": self.speculation.num_draft_tokens - num_accepted,
            },
            "draftline": {"speculation": self.speculation.to_json(), **self.cache_to_json()},
        }

    def cache_to_json(self) -> dict[str, object]:
        """Return the member `cache`, or nothing when nobody asked for it."""
        return {} if self.cache is None else {"cache": self.cache}
