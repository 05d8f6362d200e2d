"""API keys, and the cache salt that keeps their owners' prefixes apart."""

import hmac
import secrets
from collections.abc import Iterable
from hashlib import blake2b

DOCS_PATH = "/docs"
STATIC_PATH = "/static"

PROBES = frozenset({"/health", "/ready"})
"""An orchestrator's probes, which have no key."""


def needs_key(path: str) -> bool:
    """Tell whether a path is behind the keys: not the probes, nor pages, which say nothing by themselves."""
    return not (path in PROBES or path == DOCS_PATH or path.startswith(f"{STATIC_PATH}/"))


_SALT_BYTES = 16


class KeyRing:
    """The keys that open the server; with none, everybody may enter."""

    def __init__(self, keys: Iterable[str] = (), *, secret: bytes | None = None) -> None:
        # Digests have one length, so that comparing them says nothing about a key's.
        self._secret = secrets.token_bytes(32) if secret is None else secret
        self._digests = tuple(self._digest(key.encode()) for key in keys)

    @property
    def is_open(self) -> bool:
        """True when no key is needed."""
        return not self._digests

    def find_tenant(self, authorization: bytes) -> bytes | None:
        """Return the salt of the key in an Authorization header, None when the key is unknown.

        Takes the same time whichever key matches, or none.
        """
        scheme, _, presented = authorization.partition(b" ")
        digest = self._digest(presented.strip())
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != b"bearer" or not any(matches):
            return None
        return blake2b(
            presented.strip(), digest_size=_SALT_BYTES, key=self._secret, person=b"tenant"
        ).digest()

    def _digest(self, key: bytes) -> bytes:
        return blake2b(key, digest_size=32, key=self._secret, person=b"api-key").digest()


def cache_salt(tenant: bytes, client_salt: str | None) -> bytes:
    """Return the salt of a request: the tenant's, made narrower by the client's own if it sent one."""
    if client_salt is None:
        return tenant
    return blake2b(client_salt.encode(), digest_size=_SALT_BYTES, key=tenant, person=b"client").digest()
