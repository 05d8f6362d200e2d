"""Every path but the probes' needs a key, and keys are seen nowhere; salts."""

import logging

import pytest

from server.auth import KeyRing, cache_salt
from tests.fakes import FakeEngine
from tests.server.harness import serving

KEYS = ["key-of-alice", "key-of-bob"]


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_every_path_but_probes_and_pages_needs_a_key(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(FakeEngine(), keys=KEYS) as server:
        paths = [route.path for route in server.server.config.app.routes]
        assert "/metrics" in paths
        for path in (
            *paths,
            "/",
            "/nowhere",
            "/health/x",
            "/READY",
            "/x//health",
            "//health",
            "/docs/x",
            "/staticx",
        ):
            for method in ("GET", "POST", "OPTIONS"):
                response = server.client.request(method, path)
                if path in ("/health", "/ready", "/docs"):
                    assert response.status_code in (200, 405)
                    continue
                assert response.status_code == 401, path
                assert response.headers["www-authenticate"] == "Bearer"
                assert response.json()["error"]["code"] == "invalid_api_key"
        for key in KEYS:
            assert server.client.get("/v1/models", headers=bearer(key)).status_code == 200
        metrics = server.client.get("/metrics", headers=bearer(KEYS[0])).text
    assert not any(key in caplog.text + metrics for key in KEYS)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer key-of-alic",
        "Bearer key-of-alice2",
        "Basic key-of-alice",
        "key-of-bob",
    ],
)
def test_what_is_not_a_key(header: str) -> None:
    assert KeyRing(KEYS).find_tenant(header.encode()) is None


def test_the_scheme_has_no_case_and_bytes_are_bytes() -> None:
    ring = KeyRing(KEYS)
    assert ring.find_tenant(b"bearer key-of-alice") == ring.find_tenant(b"BEARER  key-of-alice")
    assert ring.find_tenant(b"Bearer \xff\xfe") is None


def test_tenants_have_salts_of_their_own_that_do_not_tell_the_key() -> None:
    ring = KeyRing(KEYS, secret=b"s" * 32)
    alice, bob = (ring.find_tenant(b"Bearer " + key.encode()) for key in KEYS)
    assert alice is not None
    assert bob is not None
    assert alice != bob
    assert len(alice) == 16
    assert KeyRing(KEYS, secret=b"t" * 32).find_tenant(b"Bearer key-of-alice") != alice
    assert KeyRing(KEYS, secret=b"s" * 32).find_tenant(b"Bearer key-of-alice") == alice


def test_a_clients_salt_refines_its_tenants_and_reaches_no_other() -> None:
    alice, bob = b"a" * 16, b"b" * 16
    assert cache_salt(alice, None) == alice
    assert cache_salt(alice, "x") == cache_salt(alice, "x") != cache_salt(alice, "y")
    assert len({cache_salt(tenant, salt) for tenant in (alice, bob, b"") for salt in ("x", "", None)}) == 9


def test_the_salt_reaches_the_engine() -> None:
    with serving(FakeEngine(), keys=KEYS) as server:
        for key in (*KEYS, KEYS[0]):
            for salt in (None, "mine"):
                body = {"prompt": "x", "cache_salt": salt}
                server.client.post("/v1/completions", json=body, headers=bearer(key))
        salts = [request.cache_salt for request in server.engine.requests]
    assert salts[:2] == salts[4:]
    assert len(set(salts)) == 4


def test_without_keys_everybody_enters_and_shares_the_cache() -> None:
    with serving(FakeEngine()) as server:
        assert server.client.post("/v1/completions", json={"prompt": "x"}).status_code == 200
    assert server.engine.requests[0].cache_salt == b""
