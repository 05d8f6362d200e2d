"""Log-likelihoods through `echo` against a plain loop over `transformers`, both in float32."""

import pytest

from loadtest.transformers_model import build_reference
from tests.reference_model import reference_logprobs

NUM_PROMPTS = 200
LENGTHS = (10, 11, 13, 16, 19, 22, 26, 40)
TOLERANCE = 1e-4  # of one token's logprob
MEAN_TOLERANCE = 5e-5  # of a prompt's log-likelihood per token

TEXT = """
The harbour was quiet at dawn. Ana counted 14 boats, 3 of them new, and wrote the number down twice.
"Fetch the ledger," she said; nobody moved. Prices had gone from £2.50 to €3.75 within a year (+42 %).
def mean(values): return sum(values) / len(values)  # raises ZeroDivisionError for an empty list
In 1854 Snow drew a map of the cases near Broad Street. The pump's handle was removed on 8 September.
SELECT name, COUNT(*) FROM orders WHERE total > 100 GROUP BY name ORDER BY 2 DESC LIMIT 5;
Über den Wolken; café, naïve, garçon; 東京は日本の首都です。 Привет, мир! 😀 fin.
Water boils at 100 °C at sea level, but at about 70 °C on the summit of the highest mountain on Earth.
"""


@pytest.fixture(scope="module")
def prompts(served_model):
    """By length: windows from everywhere in the text, some of which begin or end inside a character."""
    token_ids = served_model.tokenizer.encode(TEXT * 4)
    starts = range(0, 3 * NUM_PROMPTS, 3)
    return [
        [token_ids[start : start + length] for start in starts[place :: len(LENGTHS)]]
        for place, length in enumerate(LENGTHS)
    ]


def scores(api, prompts, **body):
    """The logprobs of prompts, their joined text and the text of the reply."""
    reply = api.post(
        "/v1/completions", json={"prompt": prompts, "max_tokens": 0, "echo": True, "logprobs": 0, **body}
    )
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"]


def test_log_likelihoods_of_200_prompts_equal_a_plain_loop(default_checkpoint, api, prompts):
    reference = build_reference(default_checkpoint)
    num_prompts = 0
    worst = worst_mean = 0.0
    for batch in prompts:
        choices, expected = scores(api, batch), reference_logprobs(reference, batch)
        for prompt, choice, theirs in zip(batch, choices, expected, strict=True):
            first, *ours = choice["logprobs"]["token_logprobs"]
            assert first is None
            gaps = [x - y for x, y in zip(ours, theirs, strict=True)]
            worst = max(worst, *map(abs, gaps))
            worst_mean = max(worst_mean, abs(sum(gaps)) / len(prompt))
            num_prompts += 1
    print(f"largest difference: {worst:.2g} of a token's logprob, {worst_mean:.2g} per token of a prompt's")
    assert num_prompts == NUM_PROMPTS
    assert worst < TOLERANCE
    assert worst_mean < MEAN_TOLERANCE


def test_a_prompt_as_text_and_as_tokens_scores_the_same(served_model, api):
    lines = TEXT.strip().splitlines()
    by_text = scores(api, lines)
    by_ids = scores(api, [served_model.tokenizer.encode(line) for line in lines])
    for line, text, ids in zip(lines, by_text, by_ids, strict=True):
        assert text["text"] == ids["text"] == line
        assert text["logprobs"] == ids["logprobs"]


def test_the_likeliest_token_is_what_greedy_takes(api):
    """What an evaluation harness asks with `is_greedy`: is the continuation the argmax at every place?"""
    prompt = "The capital of France is"
    answer = api.post(
        "/v1/completions",
        json={"prompt": prompt, "max_tokens": 6, "temperature": 0, "return_token_ids": True},
    ).json()["choices"][0]
    token_ids = answer["prompt_token_ids"] + answer["token_ids"]
    logprobs = scores(api, token_ids, logprobs=1)[0]["logprobs"]
    for token, top in list(zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True))[-6:]:
        assert max(top, key=top.get) == token
