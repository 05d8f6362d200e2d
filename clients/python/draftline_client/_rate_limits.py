"""The x-ratelimit headers, as OpenAI's API has them."""

from __future__ import annotations

import re

import httpx

from draftline_client.types import RateLimit, RateLimits

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?(?:(\d+)ms)?", re.ASCII)


def parse_rate_limits(headers: httpx.Headers) -> RateLimits | None:
    """Return what the headers say of a key's limits; None where they say nothing that can be read."""
    requests, tokens = _limit(headers, "requests"), _limit(headers, "tokens")
    return None if requests is None and tokens is None else RateLimits(requests=requests, tokens=tokens)


def _limit(headers: httpx.Headers, name: str) -> RateLimit | None:
    limit, remaining = (headers.get(f"x-ratelimit-{what}-{name}", "") for what in ("limit", "remaining"))
    reset = parse_duration(headers.get(f"x-ratelimit-reset-{name}", ""))
    if reset is None or not (limit.isdecimal() and remaining.isdecimal()):
        return None
    return RateLimit(limit=int(limit[:19]), remaining=int(remaining[:19]), reset=reset)


def parse_duration(text: str) -> float | None:
    """Return the seconds of a time such as 20ms, 1s, 6m0s or 1h2m3.5s; None for anything else."""
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        return None
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000
