"""Perplexity: llama-perplexity's windows and definition, the engine as scorer."""

import math

import pytest

from loadtest import perplexity
from tests.tiny import tiny_engine


def test_windows_do_not_overlap_and_the_rest_is_dropped():
    ids = list(range(23))
    assert perplexity.windows(ids, 8) == [ids[:8], ids[8:16]]
    assert perplexity.windows(ids, 8, bos=99) == [[99, *ids[1:8]], [99, *ids[9:16]]]


def test_only_the_second_half_of_a_window_counts():
    # Logprobs of tokens 1 to 7 of a window of 8: llama-perplexity counts those of tokens 5, 6, 7.
    found = perplexity.perplexity(lambda window: [-100.0] * 4 + [-1.0, -2.0, -3.0], [[0] * 8, [1] * 8])
    assert found.num_tokens == 6
    assert found.value == pytest.approx(math.exp(2.0))
    assert found.error == pytest.approx(math.exp(2.0) * math.sqrt((2 / 3) / 5))


def test_a_text_shorter_than_a_window_is_refused():
    with pytest.raises(SystemExit, match="shorter than one window"):
        perplexity.perplexity(lambda window: [], [])


def test_the_engine_scores_every_token_but_the_first():
    score = perplexity.engine_scorer(tiny_engine().engine)
    logprobs = score(range(20))
    assert len(logprobs) == 19
    assert all(logprob < 0 for logprob in logprobs)
    assert score(range(20)) == logprobs


def fake_llama(tmp_path, output: str) -> str:
    program = tmp_path / "llama-perplexity"
    program.write_text(f"#!/bin/sh\ntest -s \"$4\" && echo '{output}'\n")
    program.chmod(0o755)
    return str(program)


def test_llama_perplexity_is_run_over_the_same_file(tmp_path):
    text = tmp_path / "text"
    text.write_text("hello")
    program = fake_llama(
        tmp_path, "calculating perplexity over 12 chunks\nFinal estimate: PPL = 17.1 +/- 0.25"
    )
    found = perplexity.llama_perplexity(program, "m.gguf", text, 512)
    assert found == {"perplexity": 17.1, "error": 0.25, "windows": 12}
    with pytest.raises(RuntimeError, match="no estimate"):
        perplexity.llama_perplexity(fake_llama(tmp_path, "sorry"), "m.gguf", text, 512)
