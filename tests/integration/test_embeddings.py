"""Embeddings of the real default model against `transformers`, and what a checkpoint says of its own."""

import base64
import json

import numpy as np
import pytest
import torch

from engine.interface.pooling import Pooling
from loadtest.transformers_model import build_reference
from server.loading import load_served_model
from server.settings import ServeSettings
from tests.server.harness import serving_model

TEXTS = [
    "The cat sleeps on the sofa.",
    "A kitten is napping on the couch.",
    "Shares fell sharply on the stock exchange today.",
    "def mean(values): return sum(values) / len(values)",
    "Über den Wolken; 東京は日本の首都です。 😀",
    "x",
]


def vectors(reply):
    assert reply.status_code == 200, reply.text
    items = reply.json()["data"]
    return np.stack([np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in items])


def embed(client, texts, **fields):
    body = {"input": texts, "encoding_format": "base64", **fields}
    return vectors(client.post("/v1/embeddings", json=body))


@pytest.fixture(scope="module")
def reference(default_checkpoint):
    return build_reference(default_checkpoint).model


def check_against(reference, pooling, tokenizer, client):
    """Compare vectors with those of the states behind the last norm."""
    expected = []
    for text in TEXTS:
        with torch.no_grad():
            states = reference(torch.tensor([tokenizer.encode(text)])).last_hidden_state[0].double()
        vector = states[-1] if pooling is Pooling.LAST else states.mean(dim=0)
        expected.append((vector / vector.norm()).numpy())
    found = embed(client, TEXTS)
    assert np.abs(found - np.stack(expected)).max() < 1e-4
    assert np.abs(np.linalg.norm(found, axis=1) - 1.0).max() < 1e-6


def test_vectors_equal_transformers(reference, served_model, api):
    check_against(reference, Pooling.LAST, served_model.tokenizer, api)


def test_means_equal_transformers(reference, default_checkpoint):
    settings = ServeSettings(
        model=default_checkpoint.name,
        dtype="float32",
        max_model_len=256,
        kv_cache_memory=2**26,
        pooling="mean",
    )
    model = load_served_model(settings)
    try:
        with serving_model(model) as client:
            check_against(reference, Pooling.MEAN, model.tokenizer, client)
    finally:
        model.engine.close()


def test_a_text_has_one_vector_alone_or_among_2000_cold_or_warm(api):
    alone = [embed(api, text)[0].tobytes() for text in TEXTS]
    assert [row.tobytes() for row in embed(api, TEXTS)] == alone
    many = [*TEXTS, *(f"{number} bottles" for number in range(500)), *TEXTS]
    among = [row.tobytes() for row in embed(api, many)]
    assert among[: len(TEXTS)] == among[-len(TEXTS) :] == alone


def test_what_means_alike_lies_close(api):
    cat, kitten, shares, *_ = embed(api, TEXTS)
    assert cat @ kitten > cat @ shares


def test_numbers_and_base64_are_the_same(api):
    reply = api.post("/v1/embeddings", json={"input": TEXTS}).json()
    numbers = np.array([item["embedding"] for item in reply["data"]]).astype("<f4")
    assert numbers.tobytes() == embed(api, TEXTS).tobytes()
    assert len(json.dumps(reply)) < 16 * numbers.size


def test_answers_find_what_an_embedding_left_in_the_cache(api):
    text = "A prefix that only this test has: seven, eleven, thirteen, seventeen are primes. " * 2
    embed(api, text)
    usage = api.post("/v1/completions", json={"prompt": text, "max_tokens": 1}).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - 1
