"""What every record of a reply has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

JsonObject: TypeAlias = Mapping[str, Any]
"""A JSON object whose members are free: a schema, or fields newer than this library."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A reply object; `extra` holds its unknown fields."""

    extra: JsonObject = field(default_factory=dict, hash=False, repr=False)  # fields that have no other place


@dataclass(frozen=True, kw_only=True)
class ReplyWarning(Record):
    """A field that the server understood differently than asked, or not at all."""

    message: str  # what happened, in words
    param: str | None = None  # the field
    type: str | None = None  # the kind of warning, where there are several


@dataclass(frozen=True, kw_only=True)
class RateLimit:
    """What one limit of an API key leaves, from the x-ratelimit headers."""

    limit: int  # a minute
    remaining: int  # now
    reset: float  # seconds until all of it is there again


@dataclass(frozen=True, kw_only=True)
class RateLimits:
    """The limits of an API key; None where the key has no such limit."""

    requests: RateLimit | None = None  # requests a minute
    tokens: RateLimit | None = None  # tokens of prompts and answers a minute


@dataclass(frozen=True, kw_only=True)
class Delivered(Record):
    """What a reply's headers and warnings say."""

    warnings: tuple[ReplyWarning, ...] = ()  # about fields of the request
    request_id: str | None = field(default=None, compare=False)  # the X-Request-Id header
    rate_limits: RateLimits | None = field(default=None, compare=False)  # of keys that have limits


@dataclass(frozen=True, kw_only=True)
class Reply(Delivered):
    """What every generation's reply and chunk begins with."""

    id: str  # of this reply; `request_id` is what the server's log and `requests` call it
    created: int  # seconds since 1970
    model: str  # that answered
    system_fingerprint: str | None = None  # equal fingerprints and seeds give equal answers
