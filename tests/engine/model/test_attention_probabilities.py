"""Attention probabilities against `transformers`, and that showing them changes nothing that is served."""

import numpy as np
import pytest
import torch

from engine.checkpoint import load_checkpoint
from engine.interface.cancellation import Cancellation
from engine.interface.errors import CancelledError
from engine.loading.attention import load_attention_model
from engine.model.attention_probabilities import attention_probabilities
from engine.model.decoder import Decoder
from engine.model.weights import Weights
from tests.engine.model.test_transformers_parity import CASES, VOCAB, saved_model
from tests.tiny import GPT2, LLAMA, generate, generation, random_checkpoint, tiny_engine


def probabilities(model, token_ids, layer):
    content = model.attention(token_ids, layer, Cancellation())
    return np.frombuffer(content, "<f4").reshape(model.num_heads, len(token_ids), len(token_ids))


@pytest.mark.parametrize("name", CASES)
def test_they_equal_transformers_in_every_layer(name, tmp_path):
    reference = saved_model(CASES[name], tmp_path)
    model = load_attention_model(load_checkpoint(str(tmp_path)))
    token_ids = torch.randint(0, VOCAB, (1, 128), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference(token_ids, output_attentions=True).attentions
    assert len(expected) == model.num_layers
    for layer, attention in enumerate(expected):
        found = probabilities(model, token_ids[0].tolist(), layer)
        np.testing.assert_allclose(found, attention[0].numpy(), atol=5e-5)
        np.testing.assert_allclose(found.sum(axis=-1), 1.0, atol=1e-5)
        assert (np.triu(found, 1) == 0.0).all()


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_a_prefix_looks_at_the_same_whatever_follows_it(config):
    model = load_attention_model(random_checkpoint(config))
    token_ids = [(7 * i * i + 3) % 256 for i in range(40)]
    whole, part = probabilities(model, token_ids, 1), probabilities(model, token_ids[:17], 1)
    np.testing.assert_allclose(whole[:, :17, :17], part, atol=1e-6)
    assert probabilities(model, [5], 0).tolist() == [[[1.0]]] * model.num_heads
    assert model.num_bytes > 0


def test_the_dense_pass_computes_what_the_paged_one_does():
    """The slow twin of attention over blocks: the same hidden states, so the same answer."""
    checkpoint = random_checkpoint(LLAMA)
    weights = Weights(checkpoint.tensors, dtype=torch.float32, device=torch.device("cpu"))
    decoder = Decoder(LLAMA, weights, max_positions=64)
    layers = [hidden_after(decoder, layer) for layer in decoder.layers]
    prompt = list(range(30))
    attention_probabilities(decoder, prompt, 1, Cancellation())
    logits = decoder.compute_logits(layers[-1][-1][-1:])
    request = generation(prompt, max_tokens=1)
    assert generate(tiny_engine(kernels="torch").engine, request) == [[int(logits.argmax())]]


def hidden_after(decoder, layer):
    """Note what a layer returns."""
    seen, index = [], decoder.layers.index(layer)

    def noting(*arguments):
        seen.append(layer(*arguments))
        return seen[-1]

    decoder.layers[index] = noting
    return seen


def test_who_leaves_ends_it_before_the_next_layer():
    model = load_attention_model(random_checkpoint(LLAMA))
    cancellation = Cancellation()
    cancellation.cancel()
    with pytest.raises(CancelledError):
        model.attention([1, 2, 3], 0, cancellation)
