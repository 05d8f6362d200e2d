"""SamplingParams: how the tokens of one request are chosen and when it ends."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from engine.interface.errors import RequestError
from engine.interface.grammar_spec import GrammarSpec
from engine.interface.pooling import Pooling

MAX_SEED = 2**63 - 1
MIN_SEED = -(2**63)
MAX_LOGPROBS = 100


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Parameters of one request, checked when built.

    The chain, in order: repetition_penalty (prompt and answer), frequency_penalty and presence_penalty
    (answer), logit_bias, allowed_token_ids, bans (stop tokens before min_tokens, banned_sequences),
    grammar, temperature, top_k, top_p, min_p, typical_p. Each filter sees the renormalised survivors of the
    one before. Temperature 0 is greedy: the filters after it change nothing.

    A request without a seed gets a random one at the door, so that every answer is a pure function of
    parameters. Raises RequestError naming the field, its value and the limit.
    """

    max_tokens: int = 16  # 0 only with prompt_logprobs or pooling: read the prompt and generate nothing
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0  # 0 or -1: off
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: frozenset[int] | None = None
    banned_sequences: frozenset[tuple[int, ...]] = frozenset()  # none may appear in the answer
    grammar: GrammarSpec | None = None
    seed: int | None = None
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    logprobs: int | None = None  # how many of the likeliest tokens to report beside the chosen one
    all_logprobs: bool = False  # report that of every token too, beside logprobs; of one token only
    prompt_logprobs: int | None = None  # the same for every prompt token
    processed_logprobs: bool = False  # after the chain instead of the model's own distribution
    pooling: Pooling | None = None  # of the prompt's hidden states; max_tokens is 0 then

    def __post_init__(self) -> None:
        """Check every field against its range."""
        reads_only = self.prompt_logprobs is not None or self.pooling is not None
        _check_int("max_tokens", self.max_tokens, 0 if reads_only else 1, None if self.pooling is None else 0)
        _check_int("min_tokens", self.min_tokens, 0, self.max_tokens)
        _check_real("temperature", self.temperature, 0.0, 2.0)
        _check_int("top_k", self.top_k, -1, None)
        _check_share("top_p", self.top_p)
        _check_real("min_p", self.min_p, 0.0, 1.0)
        _check_share("typical_p", self.typical_p)
        _check_real("repetition_penalty", self.repetition_penalty, 0.01, 10.0)
        _check_real("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_real("presence_penalty", self.presence_penalty, -2.0, 2.0)
        for token_id, bias in self.logit_bias.items():
            _check_real(f"logit_bias of token {token_id}", bias, -100.0, 100.0, param="logit_bias")
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise RequestError("allowed_token_ids must name at least one token", param="allowed_token_ids")
        if self.seed is not None:
            _check_int("seed", self.seed, MIN_SEED, MAX_SEED)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _check_int(name, getattr(self, name), 0, MAX_LOGPROBS)

        if self.all_logprobs and (self.logprobs is None or self.max_tokens != 1):
            raise RequestError("all_logprobs needs logprobs, and max_tokens 1", param="all_logprobs")

    @property
    def is_greedy(self) -> bool:
        """True when the most likely token is taken at every position."""
        return self.temperature < MIN_TEMPERATURE

    @cached_property
    def has_penalties(self) -> bool:
        """True when the tokens so far change the logits."""
        return self.repetition_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0

    @cached_property
    def looks_back(self) -> bool:
        """True when choosing a token may need the tokens before it."""
        return self.has_penalties or bool(self.banned_sequences) or self.min_tokens > 0

    @cached_property
    def is_plain(self) -> bool:
        """True when nobody changes the logits but temperature, top-k, top-p and min-p."""
        is_typical = not self.is_greedy and self.typical_p < 1.0
        return not (is_typical or self.logit_bias or self.allowed_token_ids is not None)


MIN_TEMPERATURE = 1e-5
"""Below this a temperature means greedy: dividing logits by less overflows float32."""


def _check_int(name: str, value: int, low: int, high: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"{name} must be an integer, got {type(value).__name__}", param=name)
    if value < low or (high is not None and value > high):
        limit = f"at least {low}" if high is None else f"between {low} and {high}"
        raise RequestError(f"{name} must be {limit}, got {value}", param=name)


def _check_real(name: str, value: float, low: float, high: float, *, param: str | None = None) -> None:
    param = param or name
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"{name} must be a number, got {type(value).__name__}", param=param)
    if not math.isfinite(value) or not low <= value <= high:
        raise RequestError(f"{name} must be between {low:g} and {high:g}, got {value}", param=param)


def _check_share(name: str, value: float) -> None:
    _check_real(name, value, 0.0, 1.0)
    if value == 0.0:
        raise RequestError(f"{name} must be greater than 0, got 0", param=name)
