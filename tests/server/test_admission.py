"""A full queue is refused quickly, with the time to come back, and hurts nobody."""

import pytest

from engine.interface.stats import EngineStats
from server.admission import Admission, ServiceRate
from server.api.errors import ApiError
from server.serving import RequestLimits
from tests.fakes import FakeEngine, say
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


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_service_rate_is_that_of_the_last_choices() -> None:
    clock = Clock()
    rate = ServiceRate(window=4, clock=clock)
    assert rate.seconds_for(1000) == 5.0  # nothing measured
    for _ in range(10):
        rate.record()
        clock.now += 2.0
    assert rate.seconds_for(3) == pytest.approx(3 * 8 / 3)
    assert rate.seconds_for(0.1) == 1.0
    clock.now += 1e6
    assert rate.seconds_for(1) == 60.0


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
