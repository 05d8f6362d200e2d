"""The benchmark of speculation, one round of one case on a real server with the small pair."""

from loadtest.speculation import PAIR, PAIR_CASES, run_cases


def test_a_round_on_the_pair_gives_rates_and_equal_answers():
    target, draft = (str(PAIR / name) for name in ("target", "draft"))
    results = run_cases(PAIR_CASES[:1], 1, target, draft)
    figures = results["pair_greedy"]
    assert figures["off_tok_s"] > 0
    assert figures["on_tok_s"] > 0
    assert figures["different_answers"] == 0
    assert len(figures["accepted_by_position"]) == 5
    assert figures["accepted_by_position"][0] > 0.5
