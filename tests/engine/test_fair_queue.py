"""Who starts next: tenants take turns by the tokens they were served, and no token depends on it."""

import random
import time
from dataclasses import replace

import pytest

from engine.core.engine import Engine
from engine.core.fair_queue import _MAX_REMEMBERED, FairQueue
from engine.interface.outputs import FinishReason
from tests.tiny import generate, generation, run_to_end, scripted_engine


def of(tenant, prompt, *, priority=0, patience=None, **params):
    request = generation(prompt, **params)
    return replace(request, tenant=tenant.encode(), priority=priority, max_queue_seconds=patience)


def order_of_starts(engine: Engine, requests):
    """Run one request at a time and return which started when, by their place in the list."""
    added = [engine.add_request(request) for request in requests]
    run_to_end(engine)
    return sorted(range(len(added)), key=lambda place: added[place].first_run_time)


def test_tenants_take_turns_and_each_keeps_its_order():
    engine = scripted_engine(max_num_seqs=1)
    tenants = "aaaabbc"
    requests = [of(tenant, [place, 5], max_tokens=3) for place, tenant in enumerate(tenants)]
    order = order_of_starts(engine, requests)
    assert [tenants[place] for place in order] == list("abcabaa")
    assert sorted(order, key=lambda place: (tenants[place], place)) == sorted(range(7))
    for tenant in "abc":
        mine = [place for place in order if tenants[place] == tenant]
        assert mine == sorted(mine)


def test_what_is_served_counts_and_not_how_many_requests():
    engine = scripted_engine(max_num_seqs=1)
    requests = [of("long", range(30), max_tokens=60)] * 3 + [of("short", [1], max_tokens=3)] * 12
    order = order_of_starts(engine, requests)
    assert order[0] == 0
    assert order[1:13] == list(range(3, 15)), "twelve short ones are less than one long one"


def test_a_priority_is_for_the_tenant_s_own_requests():
    engine = scripted_engine(max_num_seqs=1)
    requests = [
        of("a", [1], priority=5),
        of("a", [2], priority=-1),
        of("a", [3], priority=5),
        of("b", [4], priority=9),
    ]
    order = order_of_starts(engine, requests)
    assert [place for place in order if place < 3] == [1, 0, 2]
    assert order.index(3) == 1, "b's turn comes whatever it calls its priority"


def test_who_pauses_saves_nothing_up():
    engine = scripted_engine(max_num_seqs=1)
    first = order_of_starts(engine, [of("a", [1]), of("b", [2])])
    assert first == [0, 1]
    generate(engine, *[of("a", [place], max_tokens=20) for place in range(10)])
    tenants = "abababab"
    order = order_of_starts(engine, [of(tenant, [30 + place, 7]) for place, tenant in enumerate(tenants)])
    assert [tenants[place] for place in order] in (list("abababab"), list("babababa"))


@pytest.mark.parametrize("steps_ahead", [0, 1, 2])
def test_a_tenant_that_holds_every_place_gives_some_to_others(steps_ahead):
    engine = scripted_engine(max_num_seqs=4, num_blocks=200, steps_ahead=steps_ahead)
    batch = [of("batch", [place], max_tokens=60) for place in range(12)]
    alone = [generate(scripted_engine(num_blocks=200), request)[0] for request in batch]
    added = [engine.add_request(request) for request in batch]
    for _ in range(6):
        engine.step()
    chat = engine.add_request(of("chat", [50, 51], max_tokens=20))
    for _ in range(3 + 2 * steps_ahead):
        engine.step()
        engine.check_invariants()
    assert chat.num_output_tokens > 0, "it has a place at once"
    assert sum(request in engine.scheduler.running for request in added) == 3
    engine.abort(chat)
    others = [engine.add_request(of("chat", [60 + place], max_tokens=60)) for place in range(6)]
    for _ in range(8):
        engine.step()
    assert sum(request in engine.scheduler.running for request in others) == 2, "half of the places"
    preemptions = engine.stats().num_preemptions
    for _ in range(10):
        engine.step()
    assert engine.stats().num_preemptions == preemptions, "places are shared, not fought for"
    run_to_end(engine)
    assert [request.token_ids[request.num_prompt_tokens :] for request in added] == alone


def test_who_is_passed_over_keeps_its_turn():
    """A request that waits for a prefix which another computes is taken out and put back at every step."""
    queue = FairQueue()
    engine = scripted_engine()
    one, other = (engine.add_request(of(tenant, [1])) for tenant in ("a", "b"))
    for request in (one, other):
        queue.add(request)
    queue.charge(one, 100)
    assert queue.pop() is other
    queue.put_back(other)
    assert queue.peek() is other
    queue.charge(other, 50)
    assert queue.pop() is other
    queue.started(other)
    queue.stopped(other)
    queue.put_back(other)
    assert queue.peek() is other, "still the one that was served less"


def test_what_must_start_by_some_time_is_kept_no_longer_than_it_waits():
    engine = scripted_engine(max_num_seqs=2)
    requests = [engine.add_request(of("a", [number], max_tokens=2, patience=1000.0)) for number in range(6)]
    engine.abort(requests[5])
    assert len(engine.scheduler.impatient) == 5
    engine.step()
    assert len(engine.scheduler.impatient) == 3
    run_to_end(engine)
    assert not engine.scheduler.impatient


def test_a_tenant_that_holds_every_block_gives_some_to_others():
    engine = scripted_engine(max_num_seqs=8, num_blocks=30)
    added = [engine.add_request(of("batch", range(place, place + 26), max_tokens=8)) for place in range(4)]
    for _ in range(3):
        engine.step()
    chat = engine.add_request(of("chat", range(40, 60), max_tokens=2))
    for _ in range(3):
        engine.step()
    assert chat.num_output_tokens > 0
    run_to_end(engine)
    engine.check_invariants()
    assert all(request.num_output_tokens == 8 for request in added)


def test_who_waits_too_long_ends_without_a_token_and_who_has_started_never_does():
    engine = scripted_engine(max_num_seqs=1)
    running = engine.add_request(of("a", [1], max_tokens=50, patience=0.001))
    engine.step()
    patient = engine.add_request(of("a", [2], max_tokens=2))
    waiting = engine.add_request(of("a", [3], max_tokens=2, patience=0.001))
    left = engine.add_request(of("a", [4], max_tokens=2, patience=0.001))
    engine.abort(left)
    time.sleep(0.002)
    [expired, _] = engine.step()
    assert expired.request is waiting
    assert expired.is_first
    assert waiting.finish_reason is FinishReason.TIMEOUT
    run_to_end(engine)
    assert running.finish_reason is patient.finish_reason is FinishReason.LENGTH
    assert engine.stats().requests_finished[FinishReason.TIMEOUT] == 1
    engine.check_invariants()


def test_tenants_without_work_are_forgotten_at_last():
    engine = scripted_engine()
    for number in range(_MAX_REMEMBERED + 500):
        generate(engine, of(str(number), [1], max_tokens=1))
    queue = engine.scheduler.waiting
    assert len(queue._served) <= _MAX_REMEMBERED
    assert len(queue._num_running) <= _MAX_REMEMBERED
    assert not queue._num_open
    assert not queue._queues


@pytest.mark.parametrize("steps_ahead", [0, 2])
@pytest.mark.parametrize("seed", range(6))
def test_tokens_are_the_same_whoever_is_served_first(seed, steps_ahead):
    """Tenants, priorities, aborts and tight memory at random; every answer is what it is alone."""
    chance = random.Random(seed)
    engine = scripted_engine(max_num_seqs=3, num_blocks=24, max_model_len=64, steps_ahead=steps_ahead)
    added, expected = [], []
    for _ in range(40):
        prompt = [chance.randrange(100) for _ in range(chance.randrange(1, 30))]
        request = of(
            chance.choice("abc"), prompt, priority=chance.randrange(3), max_tokens=chance.randrange(1, 30)
        )
        added.append(engine.add_request(request))
        expected.append(generate(scripted_engine(max_model_len=64), request)[0])
        for _ in range(chance.randrange(3)):
            engine.step()
            engine.check_invariants()
        if chance.random() < 0.1:
            engine.abort(chance.choice(added))
    run_to_end(engine)
    engine.check_invariants()
    for request, answer in zip(added, expected, strict=True):
        if request.finish_reason is not FinishReason.ABORT:
            assert request.token_ids[request.num_prompt_tokens :] == answer
    assert not engine.scheduler.waiting._num_open
