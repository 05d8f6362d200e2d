"""API keys, and the cache salt that keeps their owners' prefixes apart."""

import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

from server.api_keys import ApiKey, hash_key
from server.quota import Quota

PLAYGROUND_PATH = "/"
DOCS_PATH = "/docs"
STATIC_PATH = "/static"
_PAGES = frozenset({PLAYGROUND_PATH, DOCS_PATH})

PROBES = frozenset({"/health", "/ready"})
"""An orchestrator's probes, which have no key."""


def needs_key(path: str) -> bool:
    """Tell whether a path is behind the keys: not the probes, nor pages, which say nothing by themselves."""
    return not (path in PROBES or path in _PAGES or path.startswith(f"{STATIC_PATH}/"))


_SALT_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Whom a request is from."""

    tenant: bytes = b""  # the cache salt of its key, also what its turns and its requests are counted by
    name: str | None = None  # of the key
    weight: float = 1.0
    quota: Quota | None = None


ANYBODY = Caller()
"""Who calls a server without keys."""


class KeyRing:
    """The keys that open the server; with none, everybody may enter. All on one event loop."""

    def __init__(self, keys: Iterable[ApiKey] = (), *, secret: bytes | None = None) -> None:
        self._secret = secrets.token_bytes(32) if secret is None else secret
        self._callers: dict[bytes, Caller] = {}
        self.replace(keys)

    @property
    def is_open(self) -> bool:
        """True when no key is needed."""
        return not self._callers

    def replace(self, keys: Iterable[ApiKey]) -> None:
        """Take other keys; one that stays with its limits keeps what it has used of them."""
        self._callers = {key.sha256: self._caller(key) for key in keys}

    def find(self, authorization: bytes) -> Caller | None:
        """Return whose key is in an Authorization header, None when the key is unknown.

        Takes the same time whichever key matches, or none.
        """
        scheme, _, presented = authorization.partition(b" ")
        digest = hash_key(presented.strip())
        matches = [caller for known, caller in self._callers.items() if hmac.compare_digest(digest, known)]
        return matches[0] if matches and scheme.lower() == b"bearer" else None

    def _caller(self, key: ApiKey) -> Caller:
        before = self._callers.get(key.sha256)
        quota = Quota(key.limits) if key.limits.are_set else None
        if before is not None and before.quota is not None and before.quota.limits == key.limits:
            quota = before.quota
        tenant = blake2b(key.sha256, digest_size=_SALT_BYTES, key=self._secret, person=b"tenant").digest()
        return Caller(tenant=tenant, name=key.name, weight=key.weight, quota=quota)


def cache_salt(tenant: bytes, client_salt: str | None) -> bytes:
    """Return the salt of a request: the tenant's, made narrower by the client's own if it sent one."""
    if client_salt is None:
        return tenant
    return blake2b(client_salt.encode(), digest_size=_SALT_BYTES, key=tenant, person=b"client").digest()
