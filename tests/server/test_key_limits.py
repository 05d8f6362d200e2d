"""What a key may use: the file that says so, the refusals, the headers, and who pays for what."""

import hashlib
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import generate_latest

from engine.interface.errors import ConfigError, RequestError
from server.api.errors import ApiError
from server.api_keys import ApiKey, KeyLimits, hash_key, read_key_file
from server.auth import KeyRing
from server.metrics import ServerMetrics
from server.quota import Quota
from tests.fakes import Clock, FakeEngine, say
from tests.server.harness import RunningServer, serving

ROOT = Path(__file__).parents[2]
SHA256 = hashlib.sha256(b"key-of-batch").hexdigest()
FILE = f"""
[[key]]
name = "chat"
key = "key-of-chat"
weight = 4

[[key]]
name = "batch"
sha256 = "{SHA256}"
max_concurrent = 2
requests_per_minute = 60
tokens_per_minute = 1000
"""


def limited(name: str, **limits: int) -> ApiKey:
    return ApiKey(sha256=hash_key(f"key-of-{name}".encode()), name=name, limits=KeyLimits(**limits))


def post(server: RunningServer, name: str, **body: Any) -> httpx.Response:
    body = {"prompt": "abcd", "max_tokens": 3, **body}
    return server.client.post("/v1/completions", json=body, headers={"x-api-key": f"key-of-{name}"})


def test_a_file_names_keys_and_says_what_they_may_use(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(FILE)
    chat, batch = read_key_file(path)
    assert chat == ApiKey(sha256=hash_key(b"key-of-chat"), name="chat", weight=4.0)
    assert not chat.limits.are_set
    assert batch.sha256 == hash_key(b"key-of-batch")
    assert batch.limits == KeyLimits(max_concurrent=2, requests_per_minute=60, tokens_per_minute=1000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it has no key in it"),
        ("[[key]", "it is not TOML"),
        ('secret = "key-of-nobody', "it is not TOML"),
        ('key = "key-of-nobody"', "must have tables"),
        ('[limits]\n[[key]]\nname="a"\nkey="key-of-a"', "must have tables"),
        ('[[key]]\nkey = "key-of-nobody"', "key 1 must have a name"),
        ('[[key]]\nname = "two words"\nkey = "key-of-nobody"', "key 1 must have a name"),
        ('[[key]]\nname = "a"', "a must have either sha256 or key"),
        (f'[[key]]\nname = "a"\nkey = "key-of-nobody"\nsha256 = "{SHA256}"', "either sha256 or key"),
        ('[[key]]\nname = "a"\nsha256 = "abc"', "a: sha256 must be 64 hexadecimal digits"),
        ('[[key]]\nname = "a"\nkey = "short"', "at least 8 characters"),
        ('[[key]]\nname = "a"\nkey = 12345678', "a: key must be a string"),
        ('[[key]]\nname = "a"\nkey = "key-of-nobody"\nspeed = 3', "key 1 has the unknown entry speed"),
        (
            '[[key]]\nname = "a"\nkey = "key-of-nobody"\nmax_concurrent = 0',
            "a: max_concurrent must be an int",
        ),
        ('[[key]]\nname = "a"\nkey = "key-of-nobody"\ntokens_per_minute = 1.5', "must be an integer above 0"),
        ('[[key]]\nname = "a"\nkey = "key-of-nobody"\nweight = true', "a: weight must be a number above 0"),
        ('[[key]]\nname = "a"\nkey = "key-of-nobody"\nweight = inf', "a: weight must be a number above 0"),
        (FILE + FILE, "the same key twice"),
        (FILE + '[[key]]\nname = "chat"\nkey = "key-of-other"', "two keys named chat"),
    ],
)
def test_what_a_file_of_keys_may_not_say(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_key_file(path)
    assert str(path) in str(error.value)
    assert "nobody" not in str(error.value), "no key is shown"


def test_a_file_that_is_none_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_key_file(tmp_path / "nowhere.toml")
    (tmp_path / "keys.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        read_key_file(tmp_path / "keys.toml")
    (tmp_path / "keys").write_text("# nothing\n" * 500_000)
    with pytest.raises(ConfigError, match="more than 4194304 bytes"):
        read_key_file(tmp_path / "keys")


def test_requests_are_counted_by_the_minute() -> None:
    clock = Clock()
    quota = Quota(KeyLimits(requests_per_minute=2), clock=clock)
    for _ in range(2):
        quota.begin().end(0)
    with pytest.raises(ApiError, match="2 requests a minute, come back in 30s") as error:
        quota.begin()
    assert error.value.status == 429
    assert error.value.headers["retry-after"] == "30"
    clock.now += 30
    quota.begin().end(0)


def test_tokens_of_prompts_and_answers_are_counted_and_a_debt_is_paid_first() -> None:
    clock = Clock()
    quota = Quota(KeyLimits(tokens_per_minute=60), clock=clock)
    lease = quota.begin()
    lease.start(num_choices=1, num_prompt_tokens=40)
    assert dict(quota.headers())[b"x-ratelimit-remaining-tokens"] == b"20"
    lease.end(50)
    headers = dict(quota.headers())
    assert headers[b"x-ratelimit-limit-tokens"] == b"60"
    assert headers[b"x-ratelimit-remaining-tokens"] == b"0"
    assert headers[b"x-ratelimit-reset-tokens"] == b"1m30s"
    with pytest.raises(ApiError, match="60 tokens a minute, come back in 31s"):
        quota.begin()
    clock.now += 31
    lease = quota.begin()
    with pytest.raises(ApiError, match="come back in 9s"):
        lease.start(num_choices=1, num_prompt_tokens=10)
    lease.end(0)
    clock.now += 59
    lease = quota.begin()
    lease.start(num_choices=1, num_prompt_tokens=1000)  # would never fit: a full minute is what it waits for
    lease.end(0)


def test_answers_that_are_open_are_counted_by_choice() -> None:
    quota = Quota(KeyLimits(max_concurrent=3))
    first = quota.begin()
    first.start(num_choices=2, num_prompt_tokens=5)
    second = quota.begin()
    with pytest.raises(ApiError, match="has 3 answers open, the limit is 3"):
        quota.begin()
    with pytest.raises(ApiError, match="has 3 answers open"):
        second.start(num_choices=2, num_prompt_tokens=5)
    with pytest.raises(RequestError, match="asks for 4 answers, this key may have 3"):
        second.start(num_choices=4, num_prompt_tokens=5)
    second.end(0)
    first.end(0)
    quota.begin().start(num_choices=3, num_prompt_tokens=5)


def test_a_key_that_stays_keeps_what_it_has_used() -> None:
    ring = KeyRing([limited("a", requests_per_minute=1), limited("b", requests_per_minute=1)])

    def quota_of(name: str) -> Quota:
        caller = ring.find(f"Bearer key-of-{name}".encode())
        assert caller is not None
        assert caller.quota is not None
        return caller.quota

    used, changed = quota_of("a"), quota_of("b")
    tenant = ring.find(b"Bearer key-of-a")
    ring.replace([limited("a", requests_per_minute=1), limited("b", requests_per_minute=5)])
    assert quota_of("a") is used
    assert quota_of("b") is not changed
    assert ring.find(b"Bearer key-of-a") == tenant, "its cached prefixes stay its own"
    ring.replace([limited("b", requests_per_minute=5)])
    assert ring.find(b"Bearer key-of-a") is None


def test_limits_over_http() -> None:
    keys = [
        limited("batch", max_concurrent=2, requests_per_minute=600, tokens_per_minute=6000),
        limited("chat"),
    ]
    engine = FakeEngine(lambda _: say("abc"))
    with serving(engine, keys=keys) as server, ThreadPoolExecutor(4) as pool:
        answer = post(server, "batch")
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-limit-requests"] == "600"
        assert answer.headers["x-ratelimit-limit-tokens"] == "6000"
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) in range(5996, 6001)
        assert "x-ratelimit-limit-tokens" not in post(server, "chat").headers
        assert post(server, "batch", n=3).json()["error"]["param"] == "n"
        engine.hold()
        waiting = [pool.submit(post, server, "batch") for _ in range(2)]
        engine.wait_until(lambda: engine.num_open == 2)
        refused = post(server, "batch")
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["x-ratelimit-remaining-requests"]
        seen = server.client.get("/v1/models", headers={"x-api-key": "key-of-batch"})
        assert seen.status_code == 200, "looking costs nothing"
        other = pool.submit(post, server, "chat")
        engine.wait_until(lambda: engine.num_open == 3)
        engine.release()
        assert [future.result().status_code for future in (*waiting, other)] == [200] * 3
        assert post(server, "batch").status_code == 200, "ended ones give their places back"
        large = {"prompt": "x" * 3500, "max_tokens": 3}
        headers = {"x-api-key": "key-of-batch"}
        statuses = [
            server.client.post("/v1/completions", json=large, headers=headers).status_code for _ in range(3)
        ]
        assert statuses == [200, 429, 429]
        embedding = server.client.post("/tokenize", json={"prompt": "x"}, headers=headers)
        assert embedding.headers["x-ratelimit-limit-tokens"] == "6000"


def test_tokens_are_counted_by_the_names_of_keys_and_these_are_bounded() -> None:
    metrics = ServerMetrics(with_key_names=True)
    for number in range(300):
        metrics.count_tokens(f"key-{number}", prompt=2, completion=3)
    metrics.count_tokens("key-0", prompt=1, completion=1)
    text = generate_latest(metrics.registry).decode()
    assert 'draftline_key_tokens_total{key_name="key-0",kind="prompt"} 3.0' in text
    assert 'draftline_key_tokens_total{key_name="other",kind="completion"} 132.0' in text
    assert text.count("draftline_key_tokens_total{") == 2 * 257
    without = ServerMetrics()
    without.count_tokens("key-0", prompt=1, completion=1)
    assert "key-0" not in generate_latest(without.registry).decode()


def test_requests_carry_their_tenant_and_weight_to_the_scheduler() -> None:
    keys = [ApiKey(sha256=hash_key(b"key-of-a"), name="a", weight=3.0), limited("b")]
    with serving(FakeEngine(), keys=keys) as server:
        for name in "aab":
            assert post(server, name, cache_salt=name).status_code == 200
        first, second, other = server.engine.requests
        assert first.tenant == second.tenant != other.tenant
        assert (first.weight, other.weight) == (3.0, 1.0)
        assert post(server, "a", priority=-7, max_queue_ms=1500).status_code == 200
        assert server.engine.requests[-1].priority == -7
        assert server.engine.requests[-1].max_queue_seconds == 1.5


def test_keys_are_read_again_on_a_hangup_and_stay_where_that_fails(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(FILE)
    command = [sys.executable, "-m", "server", "serve", "--port", "0", "--api-key-file", str(path)]
    pair = str(ROOT / "tests/assets/pair/target")
    with subprocess.Popen(
        [*command, "--model", pair], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            found = (re.search(r"http://[^/]+", line) for line in process.stdout)
            url = next(match[0] for match in found if match)

            def status(key: str) -> int:
                return httpx.get(f"{url}/v1/models", headers={"x-api-key": key}, timeout=30).status_code

            def read_again() -> str:
                os.kill(process.pid, signal.SIGHUP)
                assert process.stderr is not None
                return next(line for line in process.stderr if "keys" in line)

            assert status("key-of-chat") != 401
            assert status("key-of-new") == 401
            path.write_text('[[key]]\nname = "new"\nkey = "key-of-new"\n')
            assert "the keys were read again" in read_again()
            assert status("key-of-new") != 401
            assert status("key-of-chat") == 401
            path.write_text("[[key]]\nname = 3")
            assert "the keys stay as they are" in read_again()
            assert status("key-of-new") != 401
        finally:
            process.kill()
