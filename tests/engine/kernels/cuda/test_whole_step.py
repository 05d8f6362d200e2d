"""Whole steps in Triton's interpreter: the kernels, put together, answer as plain torch does."""

from dataclasses import replace

import pytest

from engine.checkpoint.model_config import Activation, Norm
from engine.execution.cuda.runner import CudaRunner
from engine.kernels.cuda.triton_kernels import triton_kernels
from tests.cuda_engine import cuda_engine
from tests.tiny import LLAMA, generate, generation, tiny_engine

SMALL = replace(
    LLAMA,
    vocab_size=97,
    hidden_size=40,
    intermediate_size=24,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_position_embeddings=64,
)
FAMILIES = {
    "qwen3": replace(SMALL, qk_norm=True, tie_word_embeddings=False),
    "gpt2": replace(
        SMALL,
        architecture="gpt2",
        hidden_size=48,
        num_heads=3,
        num_kv_heads=3,
        norm=Norm.LAYER,
        is_gated=False,
        has_qkv_proj=True,
        rope=None,
        activation=Activation.GELU_TANH,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_decoding_filters_and_penalties(family, monkeypatch):
    monkeypatch.setattr(CudaRunner, "_rehearse", lambda self, shape: None)  # there is nothing to compile
    config = FAMILIES[family]
    made = [
        generation(range(20), max_tokens=5),
        generation([50, 3, 50], max_tokens=5, temperature=0.8, seed=3, top_p=0.8, top_k=20),
        generation([7], max_tokens=5, temperature=1.2, seed=4, repetition_penalty=1.4, logit_bias={9: 2.0}),
    ]
    expected = generate(tiny_engine(config, kernels="torch").engine, *made)
    loaded = cuda_engine(
        config,
        kernels=triton_kernels,
        max_num_seqs=3,
        max_num_batched_tokens=16,
        kv_cache_memory=2**18,
    )
    assert generate(loaded.engine, *made) == expected
