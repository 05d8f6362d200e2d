"""A step in the CPU kernels against the torch model, its slow twin."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.checkpoint.model_config import Activation, RopeConfig
from engine.kernels.cpu.library import KVKind, RowsFormat
from tests.engine.kernels.conftest import Fused, InTorch, blocks, instruction_sets, quantized, random_tokens
from tests.tiny import GPT2, LLAMA, InMemoryTensor, random_checkpoint

SETS = pytest.mark.parametrize("instruction_set", instruction_sets())
SHAPES = {
    "llama": LLAMA,
    "gpt2": GPT2,
    "9/3 heads of 64": replace(LLAMA, hidden_size=576, num_heads=9, num_kv_heads=3, head_dim=64),
    "odd sizes": replace(
        LLAMA, hidden_size=70, intermediate_size=90, num_heads=3, num_kv_heads=1, head_dim=22, vocab_size=131
    ),
    "qwen3": replace(LLAMA, qk_norm=True, tie_word_embeddings=False, head_dim=32),
    "biases": replace(LLAMA, qkv_bias=True, o_bias=True, mlp_bias=True),
    "many heads share keys": replace(LLAMA, num_heads=20, num_kv_heads=2, head_dim=8, hidden_size=160),
    "gpt2 with erf": replace(
        GPT2, activation=Activation.GELU, hidden_size=60, head_dim=15, num_heads=4, num_kv_heads=4
    ),
}


def error(mine, theirs):
    """Root mean square difference as a share of the spread; random models amplify what rounding does."""
    return ((mine - theirs).square().mean().sqrt() / theirs.std()).item()


def compare(fused, twin, tolerance, spans):
    assert error(fused.logits(*spans), twin.logits(*spans)) < tolerance


def ragged_spans(config, lengths):
    return [
        (random_tokens(number, length, config.vocab_size), 0, blocks(number, length))
        for number, length in enumerate(lengths)
    ]


@SETS
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_equals_torch(shape, instruction_set):
    config = SHAPES[shape]
    fused = Fused(config, instruction_set=instruction_set)
    compare(fused, InTorch(config), 1e-5, ragged_spans(config, [37, 1, 130, 5]))


@SETS
def test_long_contexts_cross_splits(instruction_set):
    config = replace(LLAMA, max_position_embeddings=1200)
    fused, twin = Fused(config, instruction_set=instruction_set), InTorch(config)
    tokens = random_tokens(1, 1101, config.vocab_size)
    compare(fused, twin, 1e-5, [(tokens[:1100], 0, blocks(0, 1101))])
    compare(fused, twin, 1e-5, [(tokens[1100:], 1100, blocks(0, 1101))])


@SETS
@pytest.mark.parametrize("shape", ["llama", "gpt2", "9/3 heads of 64", "odd sizes"])
def test_bfloat16_is_nearer_to_float32_than_torch_is(shape, instruction_set):
    config = SHAPES[shape]
    fused = Fused(config, plain=RowsFormat.BF16, kv_kind=KVKind.BF16, instruction_set=instruction_set)
    spans = ragged_spans(config, [37, 1, 30])
    exact = InTorch(config).logits(*spans)
    in_torch = InTorch(config, dtype=torch.bfloat16).logits(*spans)
    assert error(fused.logits(*spans), exact) < error(in_torch, exact), "hidden states stay in float32"


@SETS
@pytest.mark.parametrize("tensor_format", ["Q4_0", "Q4_1", "Q8_0"])
def test_blocks_equal_the_dequantised_weights_but_for_activations_of_8_bits(tensor_format, instruction_set):
    fused = Fused(LLAMA, tensor_format=tensor_format, instruction_set=instruction_set)
    twin = InTorch(LLAMA, fused.tensors)
    compare(fused, twin, 0.06, ragged_spans(LLAMA, [37, 1, 30]))


def test_int8_keys_and_values_lose_little():
    spans = ragged_spans(LLAMA, [140, 1, 30])
    compare(Fused(LLAMA, kv_kind=KVKind.INT8), InTorch(LLAMA), 0.05, spans)


@pytest.mark.parametrize("quantization", ["q8_0", "q4_1", "q4_0"])
def test_weights_can_be_quantised_when_loaded(quantization):
    fused = Fused(LLAMA, quantization=quantization)
    assert fused.model.num_bytes < Fused(LLAMA).model.num_bytes / 2.5
    compare(fused, InTorch(LLAMA), 0.1 if quantization == "q8_0" else 0.6, ragged_spans(LLAMA, [20]))


@st.composite
def shapes(draw):
    heads_per_kv, num_kv_heads = draw(st.integers(1, 9)), draw(st.integers(1, 3))
    is_gpt2 = draw(st.booleans())
    num_heads = num_kv_heads * (1 if is_gpt2 else heads_per_kv)
    # A LayerNorm of two or three values amplifies what rounding does without a bound.
    head_dim = 2 * draw(st.integers(4 if is_gpt2 else 1, 20))
    base = GPT2 if is_gpt2 else LLAMA
    return replace(
        base,
        hidden_size=num_heads * head_dim if is_gpt2 else draw(st.integers(1, 120)),
        intermediate_size=draw(st.integers(1, 150)),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=draw(st.integers(1, 200)),
        num_layers=draw(st.integers(1, 2)),
        rope=None if is_gpt2 else RopeConfig(),
    )


@settings(max_examples=40, deadline=None)
@given(config=shapes(), lengths=st.lists(st.integers(1, 70), min_size=1, max_size=4))
def test_any_shape_equals_torch(config, lengths):
    fused, twin = Fused(config, num_threads=1), InTorch(config)
    spans = ragged_spans(config, lengths)
    mine, theirs = fused.logits(*spans), twin.logits(*spans)
    scale = theirs.abs().max().item() + 1e-3
    assert (mine - theirs).abs().max().item() < 1e-4 * scale


@SETS
@pytest.mark.parametrize("tensor_format", ["Q4_0", "Q4_1", "Q8_0"])
def test_a_product_of_blocks_is_exact_for_its_rounded_activations(tensor_format, instruction_set):
    """The head alone, in float64 on the same int8 activations."""
    fused = Fused(LLAMA, tensor_format=tensor_format, instruction_set=instruction_set)
    hidden = torch.randn(11, LLAMA.hidden_size, generator=torch.Generator().manual_seed(0))
    x = hidden.double()
    x = x / (x.square().mean(-1, keepdim=True) + LLAMA.norm_eps).sqrt()
    x = (x * fused.tensors["norm.weight"].dequantize()).view(11, -1, 32)
    scale = x.abs().amax(-1, keepdim=True) / 127
    rounded = ((x / scale).round() * scale).view(11, -1)
    weight = fused.tensors["embed_tokens.weight"].dequantize().double()
    torch.testing.assert_close(
        fused.model.compute_logits(hidden).double(), rounded @ weight.t(), atol=3e-3, rtol=1e-4
    )


@SETS
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("tensor_format", ["Q4_1", "Q8_0"])
def test_no_sum_of_a_block_overflows(tensor_format, sign, instruction_set):
    """Weights and activations at the ends of their ranges, where sums of 16 bits have least room."""
    checkpoint = random_checkpoint(LLAMA)
    weight = torch.full(checkpoint.tensors["embed_tokens.weight"].shape, 15.0)
    weight[:, ::32] = 0.0  # the lowest of a block is the nibble 0, the others are 15
    ones = torch.ones(LLAMA.hidden_size)
    tensors = checkpoint.tensors | {
        "embed_tokens.weight": InMemoryTensor(weight),
        "norm.weight": InMemoryTensor(ones),
    }
    fused = Fused(
        LLAMA,
        tensors=quantized(replace(checkpoint, tensors=tensors), tensor_format),
        instruction_set=instruction_set,
    )
    logits = fused.model.compute_logits(sign * torch.ones(7, LLAMA.hidden_size))
    expected = sign * weight[0].sum().item()
    torch.testing.assert_close(logits, torch.full_like(logits, expected), rtol=1e-3, atol=0)
