"""The real default model, from the real registry."""

from collections import Counter

import gguf
import numpy as np
import pytest

from engine.checkpoint import load_checkpoint
from engine.checkpoint.model_config import Activation, RopeScaling


@pytest.fixture(scope="module")
def checkpoint():
    return load_checkpoint("smollm2-135m-instruct")


def test_config(checkpoint):
    config = checkpoint.config
    assert checkpoint.name == "smollm2-135m-instruct"
    assert (config.architecture, config.activation) == ("llama", Activation.SILU)
    assert (config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim) == (30, 9, 3, 64)
    assert (config.hidden_size, config.intermediate_size, config.vocab_size) == (576, 1536, 49152)
    assert config.max_position_embeddings == 8192
    assert config.norm_eps == pytest.approx(1e-5)
    assert config.rope is not None
    assert (config.rope.theta, config.rope.scaling) == (100_000.0, RopeScaling.NONE)
    assert config.tie_word_embeddings


def test_formats_and_names(checkpoint):
    formats = Counter(stored.format for stored in checkpoint.tensors.values())
    assert formats == {"Q4_1": 210, "F32": 61, "Q8_0": 1}
    assert checkpoint.tensors["embed_tokens.weight"].format == "Q8_0"
    assert len([name for name in checkpoint.tensors if name.startswith("layers.29.")]) == 9


def test_tokenizer(checkpoint):
    tokenizer = checkpoint.tokenizer
    assert len(tokenizer.tokens) == 49152
    assert len(tokenizer.merges) == 48900
    assert tokenizer.pre_tokenizer == "smollm"
    assert tokenizer.special_token_ids == frozenset(range(17))
    assert (tokenizer.tokens[1], tokenizer.tokens[2]) == ("<|im_start|>", "<|im_end|>")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.add_bos) == (1, 2, False)
    assert "<|im_start|>" in tokenizer.chat_template
    assert checkpoint.stop_token_ids == {0, 2}


def test_dequantised_tensors_equal_the_packages_own(checkpoint):
    """Read by the package's reader, dequantised by it, and put into our order by the definition."""
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(checkpoint.path).tensors}

    def expected(name):
        return gguf.quants.dequantize(stored[name].data, stored[name].tensor_type)

    for ours, theirs in (
        ("mlp.down_proj", "ffn_down"),
        ("attn.v_proj", "attn_v"),
        ("attn_norm", "attn_norm"),
    ):
        values = checkpoint.tensors[f"layers.7.{ours}.weight"].dequantize().numpy()
        np.testing.assert_array_equal(values, expected(f"blk.7.{theirs}.weight"))
    embedding = checkpoint.tensors["embed_tokens.weight"].dequantize().numpy()
    np.testing.assert_array_equal(embedding, expected("token_embd.weight"))
    queries = checkpoint.tensors["layers.7.attn.q_proj.weight"].dequantize().numpy()
    halves = queries.reshape(9, 2, 32, 576)
    interleaved = expected("blk.7.attn_q.weight").reshape(9, 32, 2, 576)
    np.testing.assert_array_equal(halves[:, 0], interleaved[:, :, 0])
    np.testing.assert_array_equal(halves[:, 1], interleaved[:, :, 1])
