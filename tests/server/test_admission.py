"""A full queue is refused quickly, with the time to come back, and hurts nobody."""

import contextlib
import socket
import threading
import time
from dataclasses import replace

import httpx
import pytest

from engine.interface.stats import EngineStats
from server.admission import Admission, BodyBudget, ServiceRate
from server.api.errors import ApiError
from server.serving import RequestLimits
from server.text import Tokenizer
from tests.fakes import Clock, FakeEngine, byte_tokenizer_data, say
from tests.server.harness import serving


def test_the_engines_refusal_is_a_429_with_its_estimate() -> None:
    engine = FakeEngine(max_open=2)
    with serving(engine) as server:
        response = server.client.post("/v1/completions", json={"prompt": "x", "n": 3})
        assert response.status_code == 429
        assert response.headers["retry-after"] == "5"
        assert response.json()["error"] == {
            "message": "the queue is full: 0 are open",
            "type": "rate_limit_error",
            "param": None,
            "code": "rate_limit_exceeded",
        }
        assert server.client.post("/v1/completions", json={"prompt": "x", "n": 2}).status_code == 200


def test_a_full_queue_refuses_before_the_body_and_running_streams_go_on() -> None:
    engine = FakeEngine(lambda _: say("hello"))
    engine.hold()
    with serving(engine, max_open=1) as server:
        engine.when_open(1, engine.step)
        url = "/v1/completions"
        with server.client.stream("POST", url, json={"prompt": "x", "stream": True}) as response:
            refused = server.client.post(url, content=b"not even JSON")
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            engine.release()
            assert response.read().endswith(b"[DONE]\n\n")
        assert server.client.post(url, json={"prompt": "x"}).status_code == 200


def test_the_number_of_choices_is_bounded_by_what_could_ever_be_queued() -> None:
    with serving(FakeEngine(), limits=RequestLimits(max_choices=4)) as server:
        refused = server.client.post("/v1/completions", json={"prompt": ["x"] * 3, "n": 2})
        assert refused.status_code == 400
        assert "at most 4" in refused.json()["error"]["message"]


def test_the_service_rate_is_that_of_the_last_choices() -> None:
    clock = Clock()
    rate = ServiceRate(window=4, clock=clock)
    assert rate.seconds_for(1000) == 5.0  # nothing measured
    rate.begin(11)
    for _ in range(10):
        rate.finish()
        clock.now += 2.0
    assert rate.seconds_for(3) == pytest.approx(3 * 8 / 3)
    assert rate.seconds_for(0.1) == 1.0
    clock.now += 1e6
    assert rate.seconds_for(1) == 60.0, "one is open, and does not end"


def test_hours_without_work_say_nothing_of_the_rate() -> None:
    clock = Clock()
    rate = ServiceRate(clock=clock)
    for pause in (3600.0, 86400.0, 0.0):
        rate.begin(2)
        clock.now += 1.0
        rate.finish()
        rate.abandon(1)
        clock.now += pause
    assert rate.seconds_for(2) == pytest.approx(2.0)
    rate.begin(1)
    clock.now += 4.0
    assert rate.seconds_for(1) == pytest.approx(3.0), "what runs now counts"


def test_one_estimate_for_every_refusal() -> None:
    clock = Clock()
    admission = Admission(max_open=10, rate=ServiceRate(clock=clock))
    admission.rate.begin(100)
    for _ in range(21):
        admission.rate.finish()
        clock.now += 1.0
    clock.now -= 1.0
    full = EngineStats(num_requests_running=4, num_requests_waiting=6)
    assert admission.refusal("full", full).headers["retry-after"] == "5", "half of the queue"
    assert admission.refusal("full", full, num_choices=8).headers["retry-after"] == "8", "room for this one"
    with pytest.raises(ApiError) as refused:
        admission.check(full)
    assert refused.value.headers["retry-after"] == "5"


def test_large_bodies_together_are_bounded_and_small_ones_are_not() -> None:
    budget = BodyBudget(100_000)
    with budget.holding() as first, budget.holding() as second, budget.holding() as third:
        first.grow_to(65_536 + 60_000)
        with pytest.raises(ApiError) as refused:
            second.grow_to(65_536 + 60_000)
        assert refused.value.status == 429
        second.grow_to(65_536 + 40_000)
        third.grow_to(65_536)
        with pytest.raises(ApiError):
            third.grow_to(65_537)
    with budget.holding() as again:
        again.grow_to(65_536 + 100_000)


def test_a_slow_sender_holds_no_place() -> None:
    """Eight of them filled a queue of eight before."""
    engine = FakeEngine(max_open=8)
    with serving(engine, max_open=8) as server, contextlib.ExitStack() as stack:
        host, port = server.url.removeprefix("http://").split(":")
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        for _ in range(20):
            sender = stack.enter_context(socket.create_connection((host, int(port))))
            sender.sendall(head + b"content-length: 100\r\n\r\n{")
        for path, body in (("/v1/completions", {"prompt": "x"}), ("/v1/embeddings", {"input": "x"})):
            assert server.client.post(path, json=body).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/embeddings", {"input": "x"}),
        ("/v1/distribution", {"prompt": "x"}),
        ("/v1/cache/lookup", {"prompt": "x"}),
        ("/tokenize", {"prompt": "x"}),
        ("/detokenize", {"tokens": [1]}),
        ("/v1/chat/completions/render", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "x"}]}),
    ],
)
def test_what_bodies_hold_is_counted_and_given_back(path: str, body: dict[str, object]) -> None:
    with serving(FakeEngine()) as server:
        large = {**body, "user" if path.startswith("/v1") else "padding": "y" * 1000, "more": "z" * 100_000}
        assert server.client.post(path, json=large).status_code == 200
        assert server.client.post(path, json={**large, "model": "other"}).status_code == 404
        server.state.bodies.take(16 * server.state.limits.max_body_size)  # as if others held it all
        refused = server.client.post(path, json=large)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert server.client.post(path, json=body).status_code == 200, "small ones find room"


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize"])
def test_a_hostile_pattern_of_a_tokenizer_holds_up_nobody_else(path: str) -> None:
    """A short text keeps it busy until its time is up: on a thread, which lets others run."""
    data = replace(byte_tokenizer_data(), pre_tokenizer="regex:(?:(a|aa)+)+$")
    tokenizer = Tokenizer(data)
    tokenizer._encoder._pre_tokenizer._timeout_seconds = 1.0
    with serving(FakeEngine(), tokenizer=tokenizer) as server:
        replies: list[httpx.Response] = []

        def ask() -> None:
            with httpx.Client(base_url=server.url, timeout=60) as client:
                replies.append(client.post(path, json={"prompt": "a" * 60 + "b"}))

        thread = threading.Thread(target=ask)
        thread.start()
        num_answers = 0
        while thread.is_alive():
            assert server.client.get("/health").status_code == 200
            num_answers += 1
        assert num_answers > 20
        assert replies[0].status_code == 400
        assert "did not split the text within 1 s" in replies[0].json()["error"]["message"]


def test_token_strings_of_a_long_text_hold_up_nobody() -> None:
    """They took 10 s of the event loop for 800 kB."""
    with serving(FakeEngine(max_model_len=2**20)) as server:
        replies: list[httpx.Response] = []

        def ask() -> None:
            body = {"prompt": "ab " * 150_000, "return_token_strs": True}
            with httpx.Client(base_url=server.url, timeout=60) as client:
                replies.append(client.post("/tokenize", json=body))

        thread = threading.Thread(target=ask)
        thread.start()
        longest = 0.0
        while thread.is_alive():
            started = time.monotonic()
            assert server.client.get("/health").status_code == 200
            longest = max(longest, time.monotonic() - started)
        assert len(replies[0].json()["token_strs"]) == 450_000
        print(f"longest wait for /health: {longest:.3f} s")


def test_bodies_on_their_way_take_places_too() -> None:
    admission = Admission(max_open=2)
    idle = EngineStats()
    with admission.preparing(idle):
        with admission.preparing(idle), pytest.raises(ApiError) as refused, admission.preparing(idle):
            pass
        assert refused.value.status == 429
        with pytest.raises(ApiError), admission.preparing(EngineStats(num_requests_waiting=1)):
            pass
    with admission.preparing(EngineStats(num_requests_running=1)):
        pass
