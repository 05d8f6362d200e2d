"""SamplingParams: how the tokens of one request are chosen and when it ends."""

import math
from dataclasses import dataclass

from engine.errors import RequestError

MAX_SEED = 2**63 - 1
MIN_SEED = -(2**63)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Parameters of one request, checked when built.

    Temperature 0 is greedy decoding. `top_k` 0 or -1, `top_p` 1 and `min_p` 0 switch a filter off; the
    filters apply in that order, each to the renormalised survivors of the one before. A request without
    a seed gets a random one at the door, so that every request is a pure function of its parameters.

    Raises RequestError naming the field, its value and the limit.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        """Check every field against its range."""
        _check_int("max_tokens", self.max_tokens, 1, None)
        _check_int("min_tokens", self.min_tokens, 0, self.max_tokens)
        _check_real("temperature", self.temperature, 0.0, 2.0)
        _check_int("top_k", self.top_k, -1, None)
        _check_real("top_p", self.top_p, 0.0, 1.0)
        _check_real("min_p", self.min_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise RequestError("top_p must be greater than 0, got 0", param="top_p")
        if self.seed is not None:
            _check_int("seed", self.seed, MIN_SEED, MAX_SEED)

    @property
    def is_greedy(self) -> bool:
        """True when the most likely token is taken at every position."""
        return self.temperature < MIN_TEMPERATURE


MIN_TEMPERATURE = 1e-5
"""Below this a temperature means greedy: dividing logits by less overflows float32."""


def _check_int(name: str, value: int, low: int, high: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"{name} must be an integer, got {type(value).__name__}", param=name)
    if value < low or (high is not None and value > high):
        limit = f"at least {low}" if high is None else f"between {low} and {high}"
        raise RequestError(f"{name} must be {limit}, got {value}", param=name)


def _check_real(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"{name} must be a number, got {type(value).__name__}", param=name)
    if not math.isfinite(value) or not low <= value <= high:
        raise RequestError(f"{name} must be between {low:g} and {high:g}, got {value}", param=name)
