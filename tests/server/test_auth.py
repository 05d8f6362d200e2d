"""Every path but the probes' needs a key, and keys are seen nowhere; salts."""

import logging
from collections.abc import Sequence
from typing import Any

import pytest

from server.admission import Admission
from server.api_keys import ApiKey
from server.app import create_app
from server.auth import KeyRing, cache_salt
from server.http_server import DrainingServer
from server.metrics import ServerMetrics
from server.serving import RequestLimits, ServerState
from server.settings import ServeSettings
from tests.fakes import FakeEngine
from tests.server.harness import running, served_model, serving

KEYS = ["key-of-alice", "key-of-bob"]


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def ring_of(keys: Sequence[str], **options: bytes) -> KeyRing:
    return KeyRing([ApiKey.of(key) for key in keys], **options)


def tenant_of(ring: KeyRing, key: str) -> bytes:
    caller = ring.find(b"Bearer " + key.encode())
    assert caller is not None
    return caller.tenant


def test_every_path_but_probes_and_pages_needs_a_key(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(FakeEngine(), keys=KEYS) as server:
        paths = [route.path for route in server.server.config.app.routes]
        assert "/metrics" in paths
        for path in (
            *paths,
            "/nowhere",
            "/health/x",
            "/READY",
            "/x//health",
            "//health",
            "/docs/x",
            "/staticx",
        ):
            for method in ("GET", "POST", "OPTIONS"):
                response = server.client.request(method, server.url + path)
                if path in ("/", "/health", "/ready", "/docs"):
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
    assert ring_of(KEYS).find(header.encode()) is None


def test_the_scheme_has_no_case_and_bytes_are_bytes() -> None:
    ring = ring_of(KEYS)
    assert ring.find(b"bearer key-of-alice") == ring.find(b"BEARER  key-of-alice")
    assert ring.find(b"Bearer \xff\xfe") is None


def test_tenants_have_salts_of_their_own_that_do_not_tell_the_key() -> None:
    ring = ring_of(KEYS, secret=b"s" * 32)
    alice, bob = (tenant_of(ring, key) for key in KEYS)
    assert alice != bob
    assert len(alice) == 16
    assert tenant_of(ring_of(KEYS, secret=b"t" * 32), KEYS[0]) != alice
    assert tenant_of(ring_of(KEYS, secret=b"s" * 32), KEYS[0]) == alice


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


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LocalHost:8000", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8000", 200),
        ("[::1]", 200),
        ("evil.example", 403),
        ("evil.example:8000", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
    ],
)
def test_a_foreign_name_that_leads_here_is_refused(host: str, status: int) -> None:
    """What a page of evil.example may ask its own host must not be us."""
    state = ServerState(admission=Admission(max_open=9), metrics=ServerMetrics(), limits=RequestLimits())
    state.publish(served_model(FakeEngine()))
    app = create_app(state, keys=KeyRing(), allowed_hosts=ServeSettings().allowed_hosts())
    with running(DrainingServer(app, state, shutdown_timeout=5)) as (_, client, _loop):
        for path in ("/health", "/v1/models"):
            reply = client.get(path, headers={"host": host})
            assert reply.status_code == status
            if status == 403:
                assert reply.json()["error"]["code"] == "host_not_allowed"
                assert "x-request-id" in reply.headers


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"localhost", "127.0.0.1", "[::1]"}),
        ({"host": "localhost"}, {"localhost", "127.0.0.1", "[::1]"}),
        ({"host": "::1"}, {"localhost", "127.0.0.1", "[::1]"}),
        ({"host": "127.0.0.2"}, {"127.0.0.2", "localhost", "127.0.0.1", "[::1]"}),
        ({"allowed_host": ["llm.example"]}, {"llm.example", "localhost", "127.0.0.1", "[::1]"}),
        ({"allowed_host": ["*"]}, set()),
        ({"host": "0.0.0.0"}, set()),
        ({"host": "0.0.0.0", "allowed_host": ["llm.example"]}, {"llm.example"}),
    ],
)
def test_which_hosts_are_ours(settings: dict[str, Any], expected: set[str]) -> None:
    assert set(ServeSettings(**settings).allowed_hosts()) == expected
