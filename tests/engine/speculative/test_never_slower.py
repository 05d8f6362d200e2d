"""Never slower than off, on a clock that the test owns: a step takes what a price list says."""

import random

import pytest

from engine.speculative.step_costs import SIZES
from tests.drafters import asking, scripted_speculator
from tests.tiny import generation, scripted_engine


class Clock:
    """Stands still but for what is added."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


def price(num_tokens, free):
    """As many tokens as `free` for little more than the price of one, then proportional."""
    return 0.01 * max(1.0 + 0.01 * num_tokens, num_tokens / free)


def seconds(monkeypatch, mode, *, rate, free, num_streams, num_tokens=150, change_at=None, fee=0.0, gap=0.0):
    """Run some streams to their end; each draft token is right with chance `rate`, later with another."""
    clock, rng = Clock(), random.Random(4)
    monkeypatch.setattr("engine.core.engine.time", clock)

    def guess(request, limit):
        late = change_at is not None and request.num_output_tokens > change_at
        chance = 1.0 - rate if late else rate
        return [
            (request.token_ids[-1] + 1 + i) % 100 if rng.random() < chance else 100 + i for i in range(limit)
        ]

    speculator = scripted_speculator(guess)
    speculator.target_costs.set_measured({size: price(size, free) for size in SIZES if size <= 64})
    engine = scripted_engine(
        speculator=speculator,
        num_blocks=2048,
        max_num_seqs=num_streams,
        max_num_batched_tokens=512,
        max_model_len=512,
    )
    launch = engine.executor.launch

    def timed(batch):
        num_drafts = batch.num_drafted
        clock.now += price(batch.num_tokens, free) * rng.uniform(0.9, 1.1) + fee * num_drafts
        return launch(batch)

    engine.executor.launch = timed
    num_requests = max(4, num_streams)
    for i in range(num_requests):
        engine.add_request(asking(generation([i], max_tokens=num_tokens), mode))
    started = clock.now
    while engine.has_work:
        engine.step()
        clock.now += gap
    assert engine.stats().generation_tokens == num_requests * num_tokens
    return clock.now - started


@pytest.mark.parametrize("num_streams", [1, 4, 16])
@pytest.mark.parametrize("free", [1.0, 2.0, 5.0, 10.0])
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 0.9])
def test_auto_is_never_slower_than_off(monkeypatch, rate, free, num_streams):
    case = {"rate": rate, "free": free, "num_streams": num_streams}
    ratio = seconds(monkeypatch, "off", **case) / seconds(monkeypatch, "auto", **case)
    assert ratio > 0.97
    if rate == 0.9 and free >= 5.0 and num_streams == 1:
        assert ratio > 1.6
    if rate == 0.9 and free == 10.0 and num_streams == 4:
        assert ratio > 1.4


def test_what_passes_between_steps_is_saved_too(monkeypatch):
    case = {"rate": 0.9, "free": 1.0, "num_streams": 1}
    ratios = [
        seconds(monkeypatch, "off", **case, gap=gap) / seconds(monkeypatch, "auto", **case, gap=gap)
        for gap in (0.0, 0.01)
    ]
    assert ratios[0] == pytest.approx(1.0, abs=0.03), "a token costs a token"
    assert ratios[1] > 1.15


@pytest.mark.parametrize("num_streams", [1, 16])
@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_a_fee_that_no_price_list_mentions_is_learned(monkeypatch, rate, num_streams):
    case = {"rate": rate, "free": 20.0, "num_streams": num_streams, "fee": 0.002}
    ratio = seconds(monkeypatch, "off", **case) / seconds(monkeypatch, "auto", **case)
    assert ratio > 0.97


@pytest.mark.parametrize("rate", [0.05, 0.95])
def test_it_notices_when_a_text_changes_its_character(monkeypatch, rate):
    case = {"rate": rate, "free": 5.0, "num_streams": 1, "num_tokens": 300, "change_at": 150}
    ratio = seconds(monkeypatch, "off", **case) / seconds(monkeypatch, "auto", **case)
    assert ratio > 1.2


def test_the_estimated_speedup_is_what_the_price_list_says(monkeypatch):
    """Right drafts of 4 in steps that all cost the same: five tokens a step, so five times as fast."""
    clock = Clock()
    monkeypatch.setattr("engine.core.engine.time", clock)
    speculator = scripted_speculator(
        lambda request, limit: [(request.token_ids[-1] + 1 + i) % 100 for i in range(limit)]
    )
    speculator.target_costs.set_measured(dict.fromkeys([size for size in SIZES if size <= 64], 0.01))
    engine = scripted_engine(speculator=speculator, num_blocks=64, max_model_len=128)
    launch = engine.executor.launch

    def timed(batch):
        clock.now += 0.01
        return launch(batch)

    engine.executor.launch = timed
    engine.add_request(asking(generation([1], max_tokens=101), "ngram", 4))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    last = outputs[-1].speculation
    assert last.plain_seconds / last.seconds == pytest.approx(5.0, rel=0.02)
    assert last.seconds == pytest.approx(0.01 * (len(outputs) - 1), rel=0.01)
