"""Backoff: thought is spared where it does not pay, and comes back soon where it might."""

import itertools

from engine.speculative.backoff import LookupBackoff, LookupOverhead, ModelBackoff


def looks(backoff, num_steps, *, finds):
    """In which of so many steps there is a lookup."""
    looked = []
    for step in range(num_steps):
        backoff.begin_step()
        if not backoff.is_on:
            looked.append(step)
            backoff.reset() if finds else backoff.refuse()
    return looked


def test_lookups_that_find_nothing_are_made_ever_less_often():
    looked = looks(LookupBackoff(), 200, finds=False)
    gaps = [later - earlier for earlier, later in itertools.pairwise(looked)]
    assert gaps[:4] == [1, 1, 1, 1]
    assert gaps == sorted(gaps)
    assert max(gaps) == 8, "a copy that begins is noticed within eight tokens"
    assert len(looked) < 40


def test_a_draft_ends_the_rest():
    backoff = LookupBackoff()
    looks(backoff, 50, finds=False)
    backoff.reset()
    assert looks(backoff, 20, finds=True) == list(range(20))


def test_the_draft_model_rests_longer_until_a_batch_shrinks():
    backoff, considered = ModelBackoff(), []
    for step in range(300):
        backoff.begin_step(8)
        if not backoff.is_on:
            considered.append(step)
            backoff.record([0, 0])
    assert len(considered) < 10
    backoff.begin_step(7)
    assert not backoff.is_on
    backoff.record([0, 3])
    backoff.begin_step(7)
    assert not backoff.is_on


def test_the_rest_of_a_large_batch_outlives_a_small_one():
    backoff = ModelBackoff()
    for _ in range(40):
        backoff.begin_step(8)
        if not backoff.is_on:
            backoff.record([0])
    assert backoff.is_on
    backoff.begin_step(2)
    assert not backoff.is_on, "two requests are another matter"
    backoff.begin_step(9)
    assert backoff.is_on, "nine are not"


def test_lookups_rest_by_what_all_requests_would_take():
    alone, together = LookupOverhead(), LookupOverhead()
    for _ in range(200):
        alone.record(12e-6, 1.2e-3)
        together.record(12e-6, 1.2e-3, num_looked=1, num_requests=16)
    assert (alone.most_rest, together.most_rest) == (7, 16)


def test_lookups_rest_longer_where_a_step_is_short():
    large, small = LookupOverhead(), LookupOverhead()
    for _ in range(200):
        large.record(30e-6, 3e-3)
        small.record(30e-6, 2e-4)
    assert large.most_rest == 7
    assert small.most_rest == 15
    small.record(1.0, 1e-6)
    assert small.most_rest <= 63
    backoff, looked = LookupBackoff(), 0
    for _ in range(1000):
        backoff.begin_step()
        if not backoff.is_on:
            looked += 1
            backoff.refuse(most_rest=small.most_rest)
    assert looked < 100
