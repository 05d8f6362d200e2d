"""The controller against exhaustive search, prices and chances by plain arithmetic; no clock anywhere."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.interface.speculation import DraftSource
from engine.speculative.acceptance import AcceptanceTable, RequestAcceptance, match_bucket
from engine.speculative.controller import PLAIN_INTERVAL, PROBE_INTERVAL, Candidate, Controller, StepLoad
from engine.speculative.drafter import Draft
from engine.speculative.step_costs import SIZES, StepCosts


def costs(free=4.0, level=0.01):
    """As many tokens as `free` for the price of one, then proportional."""
    made = StepCosts()
    made.set_measured({size: level * max(1.0, size / free) for size in SIZES})
    return made


def probabilities(rate, length=8):
    return [rate ** (place + 1) for place in range(length)]


def choose(made, candidate):
    made.record_step(made.target_costs.seconds(1))
    return made.choose([candidate], StepLoad(1, 1))[0]


def controller(**settings):
    return Controller(costs(**settings), costs(free=64.0, level=0.001))


@pytest.mark.parametrize(("rate", "longest"), [(0.95, 8), (0.8, 3), (0.5, 3), (0.01, 0)])
def test_alone_the_length_grows_with_the_chances(rate, longest):
    [length] = controller().choose([Candidate(probabilities(rate))], StepLoad(1, 1))
    assert length <= longest
    assert (length > 0) == (longest > 0)


def test_large_batches_turn_it_off_by_arithmetic():
    lengths = [
        sum(controller(free=8.0).choose([Candidate(probabilities(0.7))] * n, StepLoad(n, n)))
        for n in (1, 2, 4, 16, 32)
    ]
    assert lengths[0] >= 4
    assert lengths[2] >= 4
    assert lengths[3:] == [0, 0], "16 tokens cost twice the price of 8: a draft costs what a token costs"


def test_large_batches_cost_no_thought():
    made = controller(free=8.0)
    answers = []
    for _ in range(2 * PROBE_INTERVAL):
        made.record_step(0.04)
        answers.append(made.could_pay(StepLoad(16, 16), 16, 8))
    assert answers.count(True) == 2, "but for probes"
    assert made.could_pay(StepLoad(4, 4), 4, 8)
    made.record_step(0.04)
    assert not made.could_pay(StepLoad(8, 8), 8, 8)


def test_the_draft_models_own_time_counts():
    cheap, dear = (
        Controller(costs(), costs(free=64.0, level=level)).choose(
            [Candidate(probabilities(0.8), needs_model=True)], StepLoad(1, 1)
        )
        for level in (0.0005, 0.02)
    )
    assert cheap[0] >= 2
    assert dear == [0]


def test_reading_a_long_prompt_must_pay_off():
    def chosen(num_remaining_steps):
        candidate = Candidate(
            probabilities(0.8),
            needs_model=True,
            num_catch_up_tokens=4000,
            num_remaining_steps=num_remaining_steps,
        )
        return controller().choose([candidate], StepLoad(1, 1))[0]

    assert chosen(1) == 0
    assert chosen(64) > 0


def test_a_length_that_the_request_names_is_kept():
    fixed = Candidate(probabilities(0.01, 5), is_fixed=True)
    assert controller().choose([fixed, Candidate(probabilities(0.01))], StepLoad(2, 2)) == [5, 0]


def test_probes_come_at_a_low_rate():
    made = controller()
    lengths = [choose(made, Candidate(probabilities(0.001))) for _ in range(4 * PROBE_INTERVAL)]
    assert sum(length > 0 for length in lengths) == 4
    assert max(lengths) <= 3
    reading = Candidate(probabilities(0.001), needs_model=True, num_catch_up_tokens=9000)
    lengths = [choose(made, reading) for _ in range(4 * PROBE_INTERVAL)]
    assert max(lengths) == 0, "reading so much would cost as much as hundreds of steps"


def test_promises_that_are_not_kept_turn_it_off():
    made = controller()
    candidate, load = Candidate(probabilities(0.35)), StepLoad(1, 1)
    assert made.choose([candidate], load)[0] > 0
    promised = made.rate(candidate, load)
    for _ in range(60):
        made.record(expected_tokens=2.5, num_tokens=1, num_decodes=1)
    assert made.rate(candidate, load) < promised
    for _ in range(200):
        made.record(expected_tokens=2.5, num_tokens=3, num_decodes=1)
    assert made.rate(candidate, load) == pytest.approx(promised, rel=0.02)


@settings(max_examples=60, deadline=None)
@given(
    rates=st.lists(st.floats(0.05, 0.95), min_size=1, max_size=3),
    free=st.sampled_from([1.0, 3.0, 6.0, 20.0]),
    others=st.integers(0, 12),
)
def test_no_other_lengths_promise_more(rates, free, others):
    made, price = controller(free=free), costs(free=free)
    candidates = [Candidate(probabilities(rate, 4)) for rate in rates]
    n = len(rates) + others

    def rate(lengths):
        expected = n + sum(sum(c.probabilities[:k]) for c, k in zip(candidates, lengths, strict=True))
        return expected / price.seconds(n + sum(lengths))

    chosen = rate(made.choose(candidates, StepLoad(n, n)))
    best = max(rate(lengths) for lengths in itertools.product(range(5), repeat=len(rates)))
    assert chosen >= best / 1.021, "but for the margin that drafts must beat doing nothing by"


def test_costs_between_measured_sizes_and_beyond():
    made = costs(free=4.0)
    assert made.seconds(1) == made.seconds(4) == pytest.approx(0.01)
    assert made.seconds(10) == pytest.approx(0.025)
    assert made.seconds(1024) == pytest.approx(2.56)
    assert made.seconds(16) == pytest.approx(0.04)


def test_costs_never_fall_with_more_tokens():
    made = costs()
    for _ in range(200):
        made.observe(4, 0.0301)
        made.observe(1, 0.03)
    prices = [made.seconds(n) for n in range(1, 600)]
    assert prices == sorted(prices)


def test_a_slower_machine_moves_all_prices_together():
    made = costs()
    before = made.seconds(8) / made.seconds(1)
    for _ in range(100):
        made.observe(1, 0.03)
    assert made.seconds(1) == pytest.approx(0.03, rel=0.05)
    assert made.seconds(8) / made.seconds(1) > 0.5 * before
    made.observe(1, 30.0)
    assert made.seconds(1) < 0.04, "one interruption is no price"


def test_a_fee_for_each_draft_is_learned_apart():
    made = costs(free=4.0)
    for _ in range(100):
        made.observe(20, made.seconds(20) + 3 * 0.004, num_drafts=3)
        made.observe(16, 0.04)
    assert made.seconds(16) == pytest.approx(0.04, rel=0.05)
    assert made.seconds(20, 3) == pytest.approx(made.seconds(20) + 0.012, rel=0.05)
    dear = Controller(made, costs()).choose([Candidate(probabilities(0.6))] * 4, StepLoad(4, 4))
    cheap = Controller(costs(free=4.0), costs()).choose([Candidate(probabilities(0.9))], StepLoad(1, 1))
    assert dear == [0] * 4
    assert cheap[0] > 0


def test_a_step_without_drafts_keeps_the_price_of_doing_nothing_known():
    made = controller()
    lengths = [choose(made, Candidate(probabilities(0.9))) for _ in range(3 * PLAIN_INTERVAL)]
    assert lengths.count(0) == 2


def test_the_first_observation_sets_the_level():
    made = StepCosts()
    assert not made.is_measured
    made.observe(1, 0.02)
    assert made.seconds(1) == pytest.approx(0.02)
    assert made.seconds(64) > 0.1


def ngram(length, match=4):
    return Draft((1,) * length, DraftSource.NGRAM, match)


def test_acceptance_is_learned_for_each_length_of_match():
    table = AcceptanceTable()
    for _ in range(80):
        table.record(ngram(4, match=20), RequestAcceptance(), 4)
        table.record(ngram(4, match=2), RequestAcceptance(), 0)
    long, short = (table.probabilities(ngram(4, match=m), RequestAcceptance(), 4) for m in (20, 2))
    assert long[3] > 0.9
    assert short[0] < 0.1
    assert [match_bucket(n) for n in (1, 2, 3, 5, 9, 19, 32)] == [0, 1, 2, 3, 4, 5, 6]


def test_a_requests_own_trials_bend_the_shared_estimate_and_fade():
    table, own = AcceptanceTable(), RequestAcceptance()
    shared = table.probabilities(ngram(1), RequestAcceptance(), 1)[0]
    rate = own.rate(ngram(1))
    for _ in range(6):
        rate.record(False, 0.9)
    unlucky = table.probabilities(ngram(1), own, 1)[0]
    assert unlucky < 0.6 * shared
    own.fade(200)
    assert table.probabilities(ngram(1), own, 1)[0] > 0.95 * shared


def test_failures_behind_a_changed_word_do_not_shorten_drafts_behind_a_match():
    table, own = AcceptanceTable(), RequestAcceptance()
    before = table.probabilities(ngram(1), own, 1)
    for _ in range(20):
        own.rate(ngram(1, match=1)).record(False, 0.9)
    assert table.probabilities(ngram(1), own, 1) == before
    assert (
        table.probabilities(ngram(1, match=1), own, 1)[0]
        < table.probabilities(ngram(1, match=1), RequestAcceptance(), 1)[0]
    )


def test_places_after_the_first_wrong_one_say_nothing():
    table = AcceptanceTable()
    before = table._rate(DraftSource.NGRAM, 3, 3).trials
    table.record(ngram(4), RequestAcceptance(), 1)
    first, second = (table._rate(DraftSource.NGRAM, 3, place) for place in (0, 1))
    assert second.successes / second.trials < first.successes / first.trials
    assert table._rate(DraftSource.NGRAM, 3, 3).trials == before


def test_what_a_grammar_forces_is_as_good_as_certain():
    table = AcceptanceTable()
    forced = Draft((1, 2), DraftSource.GRAMMAR)
    table.record(forced, RequestAcceptance(), 0)
    assert min(table.probabilities(forced, RequestAcceptance(), 2)) > 0.97


def test_places_that_are_hardly_ever_reached_are_left_out_unless_wanted():
    table, own = AcceptanceTable(), RequestAcceptance()
    for _ in range(60):
        table.record(ngram(1), own, 0)
    assert len(table.probabilities(ngram(8), own, 8)) == 1
    assert len(table.probabilities(ngram(8), own, 8, with_hopeless=True)) == 8
