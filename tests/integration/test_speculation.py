"""The real default model over a real socket: answers with speculation on and off are the same.

DRAFTLINE_TEST_REQUESTS says how many requests are compared; a handful by default.
"""

import os
import random

import pytest

NUM_REQUESTS = int(os.environ.get("DRAFTLINE_TEST_REQUESTS", "5"))
WORDS = ["the", "sea", "river", "stone", "garden", "of", "and", "under", "old", "house", "winter", "song"]
KINDS = [
    {"temperature": 0},
    {"temperature": 0.7, "top_p": 0.9, "n": 3},
    {"temperature": 1.2, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
    {"temperature": 0.7, "min_p": 0.05, "logit_bias": {"198": 2.0}, "stop": ["the", ". "]},
    {"temperature": 1.0, "response_format": {"type": "json_object"}},
]


def bodies():
    rng = random.Random(11)
    made = []
    for number in range(NUM_REQUESTS):
        text = " ".join(rng.choices(WORDS, k=rng.randrange(4, 30)))
        prompt = f"{text}. {text}. {text[: len(text) // 2]}" if number % 2 else text
        kind = KINDS[number % len(KINDS)]
        made.append({"prompt": prompt, "seed": number, "max_tokens": 24, "logprobs": 1, **kind})
    return made


@pytest.mark.parametrize("speculation", [{"mode": "ngram", "k": 5}, {"mode": "auto"}, None], ids=str)
def test_the_default_models_answers_are_the_same(api, speculation):
    num_drafted = 0
    for body in bodies():
        off, on = (
            api.post("/v1/completions", json={**body, "speculation": value}).json()
            for value in ({"mode": "off"}, speculation)
        )
        assert on["choices"] == off["choices"], body
        num_drafted += on["usage"]["draftline"]["speculation"]["drafted"]
    assert num_drafted > 0 or speculation is None


def test_copying_a_text_takes_a_fraction_of_the_steps(api):
    text = "The harbour was quiet, and every boat in it lay still. Nobody spoke. " * 2
    body = {
        "prompt": f"{text}{text}The harbour was",
        "max_tokens": 40,
        "temperature": 0,
        "speculation": {"mode": "ngram", "k": 8},
    }
    usage = api.post("/v1/completions", json=body).json()["usage"]
    assert usage["draftline"]["speculation"]["verification_steps"] <= 12
    assert usage["completion_tokens_details"]["accepted_prediction_tokens"] >= 28
