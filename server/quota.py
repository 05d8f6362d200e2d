"""Quota: what one key has used of its limits, and the headers that say so."""

import math
import time
from collections.abc import Callable

from engine.interface.errors import RequestError
from server.api.errors import queue_full
from server.api_keys import KeyLimits
from server.token_bucket import TokenBucket

RATE_LIMIT_HEADERS = tuple(
    f"x-ratelimit-{what}-{unit}"
    for what in ("limit", "remaining", "reset")
    for unit in ("requests", "tokens")
)


class Quota:
    """Counts a key's open answers, requests and tokens; all on one event loop.

    Tokens are counted when they are known: a prompt's before it runs, an answer's when it ends, so that a key
    may end up in debt, by its open answers at most, and waits until that is paid.
    """

    def __init__(self, limits: KeyLimits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._num_open = 0
        self._requests = _per_minute(limits.requests_per_minute, clock)
        self._tokens = _per_minute(limits.tokens_per_minute, clock)

    def begin(self) -> "Lease":
        """Count a request that has come; raises ApiError 429 where it is one too many."""
        self._check_open(1)
        _check_level(self._requests, 1, f"{self.limits.requests_per_minute} requests a minute")
        _check_level(self._tokens, 1, f"{self.limits.tokens_per_minute} tokens a minute")
        if self._requests is not None:
            self._requests.take(1)
        self._num_open += 1
        return Lease(self)

    def open(self, num_choices: int) -> None:
        """Count further answers of a request; raises ApiError 429, RequestError if they never fit."""
        limit = self.limits.max_concurrent
        if limit is not None and num_choices >= limit:
            raise RequestError(
                f"the request asks for {num_choices + 1} answers, this key may have {limit}",
                param="n",
            )
        self._check_open(num_choices)
        self._num_open += num_choices

    def close(self, num_choices: int) -> None:
        """Count answers that ended."""
        self._num_open -= num_choices

    def check_tokens(self, num_tokens: int) -> None:
        """Raise ApiError 429 where a prompt must wait; one beyond the limit waits for all of it."""
        _check_level(self._tokens, num_tokens, f"{self.limits.tokens_per_minute} tokens a minute")

    def take_tokens(self, num_tokens: int) -> None:
        """Count tokens, even if there are none left."""
        if self._tokens is not None:
            self._tokens.take(num_tokens)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return OpenAI's x-ratelimit headers."""
        headers = []
        for name, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                values = {
                    "limit": f"{bucket.capacity:.0f}",
                    "remaining": f"{max(0, math.floor(bucket.level))}",
                    "reset": _duration(bucket.seconds_until(bucket.capacity)),
                }
                headers += [(f"x-ratelimit-{key}-{name}", value) for key, value in values.items()]
        return [(key.encode(), value.encode()) for key, value in headers]

    def _check_open(self, num_choices: int) -> None:
        limit = self.limits.max_concurrent
        if limit is not None and self._num_open + num_choices > limit:
            raise queue_full(
                f"this key has {self._num_open} answers open, the limit is {limit}", retry_after=1.0
            )


class Lease:
    """What one request holds of its key's quota, until it ends."""

    def __init__(self, quota: Quota) -> None:
        self._quota = quota
        self._num_choices = 1

    def start(self, *, num_choices: int, num_prompt_tokens: int) -> None:
        """Count a request once it is known what it asks for; raises ApiError 429, RequestError."""
        self._quota.check_tokens(num_prompt_tokens)
        if num_choices > 1:
            self._quota.open(num_choices - 1)
        self._num_choices = num_choices
        self._quota.take_tokens(num_prompt_tokens)

    def end(self, num_completion_tokens: int) -> None:
        """Give the places back and count the answers."""
        self._quota.close(self._num_choices)
        self._quota.take_tokens(num_completion_tokens)


def _per_minute(limit: int | None, clock: Callable[[], float]) -> TokenBucket | None:
    return None if limit is None else TokenBucket(capacity=limit, per_second=limit / 60.0, clock=clock)


def _check_level(bucket: TokenBucket | None, amount: float, limit: str) -> None:
    wait = 0.0 if bucket is None else bucket.seconds_until(amount)
    if wait > 0.0:
        raise queue_full(f"this key may use {limit}, come back in {_duration(wait)}", retry_after=wait)


def _duration(seconds: float) -> str:
    """Write a time as OpenAI does: 20ms, 1s, 6m0s."""
    if seconds < 1.0:
        return f"{math.ceil(seconds * 1000)}ms" if seconds else "0s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
