"""How many tokens an answer may have: what was asked for, and what fits."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.interface.errors import RequestError
from server.api.errors import describe
from server.api.limits import MAX_LOGPROB_ENTRIES
from server.api.logprobs import LogprobOptions, check_num_entries
from server.api.schemas import GenerationBody
from server.serving import ServedModel

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default of max_tokens for /v1/completions; chat has none."""


@dataclass(frozen=True, kw_only=True)
class TokenBudget:
    """The bounds on max_tokens of one request."""

    requested: int | None
    default: int | None  # None: all that fits
    max_model_len: int
    prompt_field: str = "prompt"
    max_scored: int | None = None  # by MAX_LOGPROB_ENTRIES; None: no bound

    def max_tokens(self, num_prompt_tokens: int) -> int:
        """Return max_tokens after a prompt of this length; raises RequestError for what does not fit."""
        room = self.max_model_len - num_prompt_tokens
        least = 1 if self.requested is None else self.requested
        if room < least:
            wanted = "at least 1 more" if self.requested is None else f"{least} more"
            raise RequestError(
                f"this model's maximum context length is {self.max_model_len} tokens; the prompt has "
                f"{num_prompt_tokens} and {wanted} were requested: reduce either",
                param=self.prompt_field if room < min(1, least) else "max_tokens",
                code="context_length_exceeded",
            )
        if self.max_scored is not None and least > self.max_scored:
            raise RequestError(
                f"logprobs: a reply holds {MAX_LOGPROB_ENTRIES} of them, here {self.max_scored} tokens for "
                f"each choice, and {least} were requested: ask for fewer, or stream",
                param="logprobs",
            )
        if self.requested is not None:
            return self.requested
        return min(bound for bound in (room, self.default, self.max_scored) if bound is not None)


def check_room(token_ids: Sequence[int], model: ServedModel, *, prompt_field: str) -> None:
    """Raise RequestError for a prompt behind which not even one token fits."""
    limit = model.engine.limits.max_model_len
    budget = TokenBudget(requested=1, default=None, max_model_len=limit, prompt_field=prompt_field)
    budget.max_tokens(len(token_ids))


def requested_max_tokens(body: GenerationBody, *, may_be_zero: bool) -> int | None:
    """Return what either name of max_tokens says; raises RequestError."""
    requested = body.max_tokens
    if body.max_completion_tokens is not None:
        if requested not in (None, body.max_completion_tokens):
            raise RequestError(
                f"max_tokens ({describe(requested)}) and max_completion_tokens "
                f"({describe(body.max_completion_tokens)}) differ; give one of them",
                param="max_completion_tokens",
            )
        requested = body.max_completion_tokens
    if requested == -1:  # as null, for clients of other servers
        return None
    if requested is not None and requested < (0 if may_be_zero else 1):
        raise RequestError(
            f"max_tokens must be at least 1, or 0 to score a prompt with echo or prompt_logprobs, "
            f"got {describe(requested)}",
            param="max_tokens" if body.max_completion_tokens is None else "max_completion_tokens",
        )
    return requested


def max_scored_tokens(
    body: GenerationBody, logprobs: LogprobOptions, prompt_lengths: Sequence[int], n: int
) -> int | None:
    """Return how many tokens of each of `n` answers a prompt a reply can hold the logprobs of, None: all.

    Raises RequestError when those of the prompts alone are too many.
    """
    num_entries = body.n * sum(logprobs.num_prompt_entries(length) for length in prompt_lengths)
    check_num_entries(num_entries, "logprobs" if logprobs.prompt is None else "prompt_logprobs")
    if logprobs.answer is None or body.stream:
        return None
    num_left = MAX_LOGPROB_ENTRIES - num_entries
    return max(1, num_left // (n * len(prompt_lengths) * (1 + logprobs.answer)))
