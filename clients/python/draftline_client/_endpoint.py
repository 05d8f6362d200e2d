"""Where the server is, and what every request to it carries."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import httpx

from draftline_client._call import Call
from draftline_client._version import __version__
from draftline_client.options import NotGiven, Timeout

DEFAULT_BASE_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT = httpx.Timeout(connect=5.0, read=600.0, write=60.0, pool=600.0)
# A connection is dropped before servers and proxies drop idle ones (after 5 s and more), so that a request is
# rarely sent into one that is just being closed: such a generation could not be retried safely.
LIMITS = httpx.Limits(max_connections=1000, max_keepalive_connections=100, keepalive_expiry=4.0)
# A proxy from the environment cannot reach this machine's own loopback addresses.
UNPROXIED: Mapping[str, None] = {"all://localhost": None, "all://127.0.0.1": None, "all://[::1]": None}

_NOT_IN_HEADER = re.compile(r"[^\t\x20-\x7e]")
_NOT_IN_KEY = re.compile(r"[^\x21-\x7e]")


class Lifetime:
    """Whether a client, or the one whose connections it shares, is closed."""

    def __init__(self, parent: Lifetime | None = None) -> None:
        self._parent = parent
        self._has_ended = False

    def end(self) -> None:
        """Close the client."""
        self._has_ended = True

    @property
    def is_over(self) -> bool:
        """True once it is closed."""
        return self._has_ended or (self._parent is not None and self._parent.is_over)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Builds requests; its repr and its errors never show the API key."""

    base_url: httpx.URL
    timeout: Timeout
    headers: httpx.Headers = field(repr=False)

    @classmethod
    def of(cls, *, base_url: str | None, api_key: str | None, timeout: Timeout) -> Endpoint:
        """Return the endpoint at a URL.

        None for `base_url` or `api_key` reads DRAFTLINE_BASE_URL or DRAFTLINE_API_KEY; an empty key sends
        none. Raises ValueError for a URL or key that cannot be used.
        """
        if base_url is None:
            base_url = os.environ.get("DRAFTLINE_BASE_URL") or DEFAULT_BASE_URL
        if api_key is None:
            api_key = os.environ.get("DRAFTLINE_API_KEY", "")
        agent = f"draftline-client/{__version__} python/{platform.python_version()}"
        headers = httpx.Headers({"Accept": "application/json", "User-Agent": agent})
        return cls(base_url=_checked_base_url(base_url), timeout=timeout, headers=_with_key(headers, api_key))

    def with_options(
        self,
        *,
        timeout: Timeout | NotGiven,
        api_key: str | NotGiven,
        extra_headers: Mapping[str, str] | NotGiven,
    ) -> Endpoint:
        """Return this endpoint with what is given; raises ValueError for what no header can hold."""
        headers = self.headers.copy()
        if not isinstance(api_key, NotGiven):
            headers = _with_key(headers, api_key)
        if not isinstance(extra_headers, NotGiven):
            headers.update(_checked_headers(extra_headers))
        return replace(
            self, headers=headers, timeout=self.timeout if isinstance(timeout, NotGiven) else timeout
        )

    def build_request(self, http: httpx.Client | httpx.AsyncClient, call: Call[object]) -> httpx.Request:
        """Build the request of `call` with the defaults of the HTTP client."""
        headers = self.headers.copy()
        if call.is_stream:
            # A compressing proxy would hold events back to fill its window.
            headers.update({"Accept": "text/event-stream", "Accept-Encoding": "identity"})
        if call.content is not None:
            headers["Content-Type"] = "application/json"
        headers.update(_checked_headers(call.extra_headers))
        return http.build_request(
            call.method,
            self._url(call.path),
            content=call.content,
            headers=headers,
            timeout=self.timeout if isinstance(call.timeout, NotGiven) else call.timeout,
        )

    def _url(self, path: str) -> httpx.URL:
        return self.base_url.copy_with(raw_path=self.base_url.raw_path.rstrip(b"/") + path.encode())


def _checked_base_url(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ValueError(f"base_url is not a URL: {error}") from None
    if url.scheme not in {"http", "https"} or not url.host:
        raise ValueError(f"base_url must begin with http:// or https:// and a host, got {url!r}")
    if url.query or url.fragment:
        raise ValueError(f"base_url must have neither query nor fragment, got {url!r}")
    # The paths of the API bring their own version; other clients want it in the URL, so it is often there.
    return url.copy_with(path=url.path.rstrip("/").removesuffix("/v1") or "/")


def _with_key(headers: httpx.Headers, api_key: str) -> httpx.Headers:
    """Return the headers with a key, or without any where it is empty."""
    if match := _NOT_IN_KEY.search(api_key):
        raise ValueError(
            f"api_key holds a character that cannot stand in a header, at position {match.start()}; "
            "is it a line end from the file the key was read from?"
        )
    keyed = headers.copy()
    keyed.pop("Authorization", None)
    if api_key:
        keyed["Authorization"] = f"Bearer {api_key}"
    return keyed


def _checked_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    for name, value in headers.items():
        if _NOT_IN_HEADER.search(value):  # said here without the value, which may be a key
            raise ValueError(f"extra_headers: the value of {name!r} holds a character no header may hold")
    return headers
