"""Clients that share connections and differ in options."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from draftline_client import APITimeoutError, ClosedError, InternalServerError, RateLimit, RateLimits
from draftline_client._rate_limits import parse_duration, parse_rate_limits


def test_what_is_given_differs_and_the_rest_stays(server: Any, connect: Callable[..., Any]) -> None:
    server.then(*[server.json({"version": "1"})] * 5)
    client = connect(api_key="first")
    other = client.with_options(api_key="second", extra_headers={"X-Team": "search"})
    third = other.with_options(extra_headers={"X-Team": "chat", "X-More": "1"})
    for each in (client, other, third, third.with_options(api_key=""), client):
        each.version()
    seen = [
        (r.headers.get("authorization"), r.headers.get("x-team"), r.headers.get("x-more"))
        for r in server.requests
    ]
    assert seen == [
        ("Bearer first", None, None),
        ("Bearer second", "search", None),
        ("Bearer second", "chat", "1"),
        (None, "chat", "1"),
        ("Bearer first", None, None),
    ]
    assert server.num_connections == 1
    assert type(getattr(other, "_target", other)) is type(getattr(client, "_target", client))


def test_options_of_a_call_come_before_those_of_the_client(server: Any, client: Any) -> None:
    server.then(server.json({"version": "1"}))
    client.with_options(extra_headers={"X-A": "1", "X-B": "1"}).version(extra_headers={"X-A": "2"})
    (request,) = server.requests
    assert (request.headers["x-a"], request.headers["x-b"]) == ("2", "1")


def test_retries_and_timeouts_differ(server: Any, client: Any, sleeps: list[float]) -> None:
    server.then(*[server.error(502)] * 5, lambda exchange: exchange.wait_for_release())
    with pytest.raises(InternalServerError):
        client.with_options(max_retries=0).version()
    assert len(sleeps) == 0
    with pytest.raises(InternalServerError):
        client.with_options(max_retries=3).with_options(timeout=5.0).version()
    assert len(sleeps) == 3
    with pytest.raises(APITimeoutError):
        client.with_options(timeout=0.05, max_retries=0).version()


def test_the_one_that_owns_the_connections_closes_all(server: Any, connect: Callable[..., Any]) -> None:
    server.then(server.json({"version": "1"}), server.json({"version": "2"}))
    client = connect()
    with client.with_options(timeout=3.0) as other:
        assert other.version() == "1"
    with pytest.raises(ClosedError):
        other.version()
    third = client.with_options().with_options()
    assert client.version() == "2"
    client.close()
    with pytest.raises(ClosedError):
        third.version()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_retries": -1}, "max_retries"),
        ({"max_retries": True}, "max_retries"),
        ({"api_key": "a b"}, "api_key"),
        ({"extra_headers": {"X": "a\nb"}}, "extra_headers"),
    ],
)
def test_what_no_client_can_have_is_refused(client: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        client.with_options(**options)


def test_the_key_of_a_derived_client_is_not_shown(client: Any) -> None:
    derived = client.with_options(api_key="hunter2")
    inner = getattr(derived, "_target", derived)
    shown = [repr(derived), repr(vars(inner)), repr(vars(inner._sender)), repr(inner._sender.endpoint)]
    assert not [text for text in shown if "hunter2" in text]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0.0),
        ("20ms", 0.02),
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("1h2m3.5s", 3723.5),
        ("2m", 120.0),
        ("1m5ms", 60.005),
        ("", None),
        ("5", None),
        ("-1s", None),
        ("1s2m", None),
        ("s", None),
    ],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


def headers(name: str, *values: str) -> dict[str, str]:
    return {
        f"X-RateLimit-{what}-{name}": value
        for what, value in zip(("Limit", "Remaining", "Reset"), values, strict=True)
    }


def test_limits_of_a_key() -> None:
    both = httpx.Headers({**headers("Requests", "60", "59", "1s"), **headers("Tokens", "1000", "0", "6m0s")})
    assert parse_rate_limits(both) == RateLimits(
        requests=RateLimit(limit=60, remaining=59, reset=1.0),
        tokens=RateLimit(limit=1000, remaining=0, reset=360.0),
    )
    assert parse_rate_limits(httpx.Headers()) is None
    for broken in (("x", "1", "1s"), ("1", "-1", "1s"), ("1", "1", "soon"), ("1", "²", "1s")):
        assert parse_rate_limits(httpx.Headers(headers("Tokens", *broken), encoding="utf-8")) is None
