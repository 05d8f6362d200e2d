import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Format

from engine.checkpoint.embedding_defaults import EmbeddingDefaults
from engine.checkpoint.gguf import load_gguf
from engine.checkpoint.model_config import Activation, RopeScaling
from engine.checkpoint.stored_tensor import GGUF_FORMATS, GGUFTensor
from engine.interface.config import EngineConfig
from engine.interface.errors import CheckpointError
from engine.interface.pooling import Pooling
from engine.loading.loader import build_engine
from engine.model.rope import inverse_frequencies
from tests.tiny import generate, generation

QUANTISABLE = [
    Format.F32,
    Format.F16,
    Format.BF16,
    Format.Q8_0,
    Format.Q4_0,
    Format.Q4_1,
    Format.Q5_0,
    Format.Q5_1,
]
OTHERS = [Format[name] for name in GGUF_FORMATS if Format[name] not in QUANTISABLE]
README = Path(__file__).parents[3] / "README.md"


def test_the_readme_lists_the_formats():
    [listed] = re.findall(r"^GGUF tensors may be (.*?)\.$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert tuple(re.split(r",\s+|\s+or\s+", listed)) == GGUF_FORMATS


@pytest.mark.parametrize("kernels", ["auto", "torch"])
@pytest.mark.parametrize("kind", QUANTISABLE, ids=lambda kind: kind.name)
def test_a_model_of_every_format_that_can_be_written_answers(gguf_recipe, tmp_path, kind, kernels):
    recipe = gguf_recipe("llama", kind)
    checkpoint = load_gguf(recipe.write(tmp_path / "m.gguf"))
    engine = build_engine(
        checkpoint, EngineConfig(device="cpu", kernels=kernels, kv_cache_memory=2**22)
    ).engine
    [answer] = generate(engine, generation([5, 6, 7], max_tokens=3, ignore_eos=True))
    assert len(answer) == 3


@pytest.mark.parametrize("kind", [Format.I8, Format.F64], ids=lambda kind: kind.name)
def test_a_format_that_cannot_be_read_is_refused_with_those_that_can(gguf_recipe, tmp_path, kind):
    recipe = gguf_recipe("llama")
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    recipe.tensors["blk.0.ffn_up.weight"] = np.zeros((96, 64 // block_size * block_bytes), dtype=np.uint8)
    recipe.formats["blk.0.ffn_up.weight"] = kind
    with pytest.raises(CheckpointError, match=rf"'blk\.0\.ffn_up\.weight' has the format {kind.name}.*Q5_0"):
        load_gguf(recipe.write(tmp_path / "m.gguf"))


def permute_as_converter_does(rows, num_heads):
    """Reorder like llama.cpp's converter: within a head, (half, i) becomes (i, half)."""
    half = rows.shape[0] // num_heads // 2
    return rows.reshape(num_heads, 2, half, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


@pytest.mark.parametrize("kind", QUANTISABLE, ids=lambda kind: kind.name)
def test_weights_come_back_as_the_package_dequantises_them(gguf_recipe, tmp_path, kind):
    recipe = gguf_recipe("qwen2", kind)
    recipe.tokenizer["tokenizer.ggml.pre"] = "qwen2"
    checkpoint = load_gguf(recipe.write(tmp_path / "m.gguf"))
    stored = checkpoint.tensors["layers.1.mlp.up_proj.weight"]
    values = recipe.tensors["blk.1.ffn_up.weight"]
    expected = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
    assert stored.format == kind.name
    assert stored.shape == (96, 64)
    dequantised = stored.dequantize()
    assert dequantised.dtype == torch.float32
    np.testing.assert_array_equal(dequantised.numpy(), expected)
    np.testing.assert_allclose(dequantised.numpy(), values, atol=0.3)
    norm = checkpoint.tensors["layers.0.attn_norm.weight"]
    np.testing.assert_array_equal(norm.dequantize().numpy(), recipe.tensors["blk.0.attn_norm.weight"])


@pytest.mark.parametrize("kind", OTHERS, ids=lambda kind: kind.name)
def test_other_blocks_are_dequantised_from_any_bytes(gguf_recipe, tmp_path, kind):
    """The package cannot write most of them, so random bytes stand for weights; NaN equals NaN here."""
    recipe = gguf_recipe("qwen2")
    recipe.tokenizer["tokenizer.ggml.pre"] = "qwen2"
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    stored_bytes = np.random.default_rng(1).integers(0, 256, (300, 2 * block_bytes), dtype=np.uint8)
    recipe.tensors["blk.0.extra.weight"] = stored_bytes
    recipe.formats["blk.0.extra.weight"] = kind
    checkpoint = load_gguf(recipe.write(tmp_path / "m.gguf"))
    stored = checkpoint.tensors["blk.0.extra.weight"]
    assert stored.shape == (300, 2 * block_size)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(stored_bytes, kind)
    np.testing.assert_array_equal(stored.dequantize().numpy(), expected)


@pytest.mark.parametrize("kind", [Format.F32, Format.Q8_0, Format.Q4_1], ids=lambda kind: kind.name)
def test_llama_queries_and_keys_are_put_back_in_order(gguf_recipe, tmp_path, kind):
    recipe = gguf_recipe("llama", kind)
    original = {name: values.copy() for name, values in recipe.tensors.items()}
    for layer in range(2):
        for name, num_heads in (("attn_q", 4), ("attn_k", 2)):
            key = f"blk.{layer}.{name}.weight"
            recipe.tensors[key] = permute_as_converter_does(original[key], num_heads)
    checkpoint = load_gguf(recipe.write(tmp_path / "m.gguf"))
    for ours, theirs in (("q_proj", "attn_q"), ("k_proj", "attn_k"), ("v_proj", "attn_v")):
        stored = checkpoint.tensors[f"layers.1.attn.{ours}.weight"]
        quantised = gguf.quants.quantize(original[f"blk.1.{theirs}.weight"], kind)
        np.testing.assert_array_equal(stored.raw, quantised.view(np.uint8))
        np.testing.assert_array_equal(stored.dequantize().numpy(), gguf.quants.dequantize(quantised, kind))


def test_llama_query_biases_are_put_back_in_order(gguf_recipe, tmp_path):
    recipe = gguf_recipe("llama")
    bias = np.arange(64, dtype=np.float32)
    for layer in range(2):
        recipe.tensors[f"blk.{layer}.attn_q.bias"] = permute_as_converter_does(bias, 4)
    checkpoint = load_gguf(recipe.write(tmp_path / "m.gguf"))
    assert checkpoint.config.qkv_bias
    np.testing.assert_array_equal(checkpoint.tensors["layers.0.attn.q_proj.bias"].dequantize().numpy(), bias)


def test_qwen_queries_are_stored_in_our_order_already(gguf_recipe, tmp_path):
    recipe = gguf_recipe("qwen3")
    recipe.tokenizer["tokenizer.ggml.pre"] = "qwen2"
    checkpoint = load_gguf(recipe.write(tmp_path / "m.gguf"))
    values = checkpoint.tensors["layers.0.attn.q_proj.weight"].dequantize().numpy()
    np.testing.assert_array_equal(values, recipe.tensors["blk.0.attn_q.weight"])


def test_raw_is_a_view_of_the_mapped_file_and_dequantized_memory_is_not(gguf_recipe, tmp_path):
    checkpoint = load_gguf(gguf_recipe("llama").write(tmp_path / "m.gguf"))
    stored = checkpoint.tensors["layers.0.attn.v_proj.weight"]
    assert isinstance(stored, GGUFTensor)
    assert stored.raw.base is not None
    assert not stored.raw.flags.writeable
    stored.dequantize().fill_(0.0)
    assert stored.dequantize().abs().sum() > 0


def test_llama_config(gguf_recipe, tmp_path):
    config = load_gguf(gguf_recipe("llama").write(tmp_path / "m.gguf")).config
    assert (config.architecture, config.activation) == ("llama", Activation.SILU)
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (64, 64, 96)
    assert (config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim) == (2, 4, 2, 16)
    assert config.max_position_embeddings == 128
    assert config.norm_eps == pytest.approx(1e-5)
    assert config.rope is not None
    assert config.rope.theta == 50_000.0
    assert config.rope.scaling is RopeScaling.NONE
    assert config.tie_word_embeddings
    assert (config.qkv_bias, config.o_bias, config.mlp_bias, config.qk_norm) == (False,) * 4


def test_gpt2_config_and_names(gguf_recipe, tmp_path):
    recipe = gguf_recipe("gpt2")
    recipe.tokenizer["tokenizer.ggml.pre"] = "gpt-2"
    checkpoint = load_gguf(recipe.write(tmp_path / "m.gguf"))
    config = checkpoint.config
    assert (config.architecture, config.activation, config.rope) == ("gpt2", Activation.GELU_TANH, None)
    assert config.num_kv_heads == 4
    assert config.qkv_bias
    assert config.o_bias
    assert config.mlp_bias
    assert set(checkpoint.tensors) == {
        "embed_tokens.weight",
        "embed_positions.weight",
        "norm.weight",
        "norm.bias",
        *(
            f"layers.{layer}.{module}.{parameter}"
            for layer in range(2)
            for module in (
                "attn_norm",
                "attn.qkv_proj",
                "attn.o_proj",
                "mlp_norm",
                "mlp.up_proj",
                "mlp.down_proj",
            )
            for parameter in ("weight", "bias")
        ),
    }


def test_qwen_flags(gguf_recipe, tmp_path):
    for architecture, qkv_bias, qk_norm in (("qwen2", True, False), ("qwen3", False, True)):
        recipe = gguf_recipe(architecture)
        recipe.tokenizer["tokenizer.ggml.pre"] = "qwen2"
        checkpoint = load_gguf(recipe.write(tmp_path / f"{architecture}.gguf"))
        assert checkpoint.config.architecture == architecture
        assert (checkpoint.config.qkv_bias, checkpoint.config.qk_norm) == (qkv_bias, qk_norm)
        assert checkpoint.tokenizer.normalization == "nfc"


def test_a_stored_head_unties_and_a_copy_of_the_embedding_is_dropped(gguf_recipe, tmp_path):
    recipe = gguf_recipe("llama", Format.Q8_0)
    recipe.tensors["output.weight"] = -recipe.tensors["token_embd.weight"]
    recipe.formats["output.weight"] = Format.Q8_0
    untied = load_gguf(recipe.write(tmp_path / "untied.gguf"))
    assert not untied.config.tie_word_embeddings
    assert "lm_head.weight" in untied.tensors
    recipe.tensors["output.weight"] = recipe.tensors["token_embd.weight"]
    tied = load_gguf(recipe.write(tmp_path / "tied.gguf"))
    assert tied.config.tie_word_embeddings
    assert "lm_head.weight" not in tied.tensors


def test_llama3_frequency_factors_and_scalings(gguf_recipe, tmp_path):
    recipe = gguf_recipe("llama")
    recipe.tensors["rope_freqs.weight"] = np.linspace(1, 8, 8, dtype=np.float32)
    checkpoint = load_gguf(recipe.write(tmp_path / "freqs.gguf"))
    assert checkpoint.config.rope is not None
    assert checkpoint.config.rope.freq_factors == pytest.approx(np.linspace(1, 8, 8))
    assert not any("rope_freqs" in name for name in checkpoint.tensors)

    recipe = gguf_recipe("llama")
    recipe.metadata |= {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    rope = load_gguf(recipe.write(tmp_path / "linear.gguf")).config.rope
    assert rope is not None
    assert (rope.scaling, rope.factor) == (RopeScaling.LINEAR, 4.0)

    recipe.metadata |= {"rope.scaling.type": "yarn", "rope.scaling.original_context_length": 32}
    rope = load_gguf(recipe.write(tmp_path / "yarn.gguf")).config.rope
    assert rope is not None
    assert (rope.scaling, rope.original_max_position_embeddings) == (RopeScaling.YARN, 32)
    assert rope.attention_factor is None


def rope_of(recipe, path, **metadata):
    recipe.metadata |= {key.replace("__", "."): value for key, value in metadata.items()}
    rope = load_gguf(recipe.write(path)).config.rope
    assert rope is not None
    return rope


@pytest.mark.parametrize(
    ("metadata", "scaling", "factor"),
    [
        ({"rope__scaling__factor": 4.0}, RopeScaling.LINEAR, 4.0),
        ({"rope__scale_linear": 4.0}, RopeScaling.LINEAR, 4.0),
        ({"rope__scaling__factor": 0.0}, RopeScaling.NONE, 1.0),
        ({"rope__scaling__type": "none", "rope__scaling__factor": 4.0}, RopeScaling.NONE, 1.0),
        ({"rope__scaling__type": "linear", "rope__scaling__factor": 0.0}, RopeScaling.NONE, 1.0),
        ({"rope__scaling__type": "yarn", "rope__scaling__factor": 0.0}, RopeScaling.YARN, 1.0),
    ],
)
def test_absent_and_zero_rotary_keys_mean_what_they_mean_to_llama_cpp(
    gguf_recipe, tmp_path, metadata, scaling, factor
):
    rope = rope_of(gguf_recipe("llama"), tmp_path / "m.gguf", **metadata)
    assert (rope.scaling, rope.factor) == (scaling, factor)


def test_yarns_original_context_is_the_models_where_absent(gguf_recipe, tmp_path):
    metadata = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}
    rope = rope_of(gguf_recipe("llama"), tmp_path / "m.gguf", **metadata)
    assert rope.original_max_position_embeddings == 128


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_stored_divisors_and_a_scaling_both_apply(gguf_recipe, tmp_path, kind):
    divisors = np.linspace(1, 8, 8, dtype=np.float32)
    recipe, scaling = gguf_recipe("llama"), {"rope__scaling__type": kind, "rope__scaling__factor": 4.0}
    plain = rope_of(recipe, tmp_path / "plain.gguf", **scaling)
    recipe.tensors["rope_freqs.weight"] = divisors
    both = rope_of(recipe, tmp_path / "both.gguf")
    expected = inverse_frequencies(plain, 16).numpy() / divisors
    np.testing.assert_allclose(inverse_frequencies(both, 16).numpy(), expected, rtol=1e-6)


def test_a_wrong_number_of_stored_divisors_names_file_and_tensor(gguf_recipe, tmp_path):
    recipe = gguf_recipe("llama")
    recipe.tensors["rope_freqs.weight"] = np.ones(7, dtype=np.float32)
    with pytest.raises(CheckpointError, match=r"m\.gguf: tensor rope_freqs\.weight has 7 values, expected 8"):
        load_gguf(recipe.write(tmp_path / "m.gguf"))


def test_absent_keys_of_attention(gguf_recipe, tmp_path):
    recipe = gguf_recipe("llama")
    del recipe.metadata["rope.freq_base"], recipe.metadata["attention.head_count_kv"]
    for layer in range(2):
        for name in ("attn_k", "attn_v"):
            recipe.tensors[f"blk.{layer}.{name}.weight"] = np.zeros((64, 64), dtype=np.float32)
    config = load_gguf(recipe.write(tmp_path / "m.gguf")).config
    assert config.rope is not None
    assert (config.rope.theta, config.num_kv_heads, config.head_dim) == (10_000.0, 4, 16)


FOREIGN = {
    "expert_count": (0, 8),
    "expert_used_count": (0, 2),
    "attention.scale": (0.25, 0.015625),
    "attention.clamp_kqv": (0.0, 8.0),
    "attention.temperature_scale": (0.0, 0.1),
    "attention.causal": (True, False),
    "attn_logit_softcapping": (0.0, 50.0),
    "final_logit_softcapping": (0.0, 30.0),
    "logit_scale": (1.0, 0.0625),
    "embedding_scale": (1.0, 12.0),
    "residual_scale": (1.0, 0.22),
    "rope.scaling.yarn_log_multiplier": (0.0, 0.1),
    "rope.scaling.alpha": (0.0, 1000.0),
    "use_parallel_residual": (False, True),
    "nextn_predict_layers": (0, 1),
}


@pytest.mark.parametrize("key", FOREIGN)
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_a_number_of_another_architecture_is_refused_by_name_unless_neutral(
    gguf_recipe, tmp_path, caplog, architecture, key
):
    neutral, other = FOREIGN[key]
    recipe = gguf_recipe(architecture)
    recipe.tokenizer["tokenizer.ggml.pre"] = "smollm"
    config = load_gguf(recipe.write(tmp_path / "without.gguf")).config
    recipe.metadata[key] = neutral
    assert load_gguf(recipe.write(tmp_path / "neutral.gguf")).config == config
    assert not caplog.records
    recipe.metadata[key] = other
    path = recipe.write(tmp_path / "other.gguf")
    with pytest.raises(CheckpointError, match=rf"{architecture}\.{key} = .* is not supported") as caught:
        load_gguf(path)
    assert str(path) in str(caught.value)


def test_an_unknown_number_is_named_in_a_warning(gguf_recipe, tmp_path, caplog):
    recipe = gguf_recipe("llama")
    recipe.metadata |= {"attention.new_scale": 3.0, "note": "text", "vocab_size": 64}
    load_gguf(recipe.write(tmp_path / "m.gguf"))
    [record] = caplog.records
    assert record.getMessage().endswith("m.gguf: not applied: llama.attention.new_scale")


def test_tokenizer(gguf_recipe, tmp_path):
    recipe = gguf_recipe("llama")
    recipe.tokenizer["tokenizer.chat_template"] = "{{ messages }}"
    checkpoint = load_gguf(recipe.write(tmp_path / "m.gguf"))
    tokenizer = checkpoint.tokenizer
    assert tokenizer.kind == "bpe"
    assert tokenizer.tokens == tuple(recipe.tokenizer["tokenizer.ggml.tokens"])
    assert tokenizer.merges == (("a", "b"),)
    assert tokenizer.special_token_ids == {0, 1}
    assert tokenizer.added_token_ids == {63}
    assert (tokenizer.pre_tokenizer, tokenizer.normalization) == ("smollm", "none")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.add_bos) == (0, 0, False)
    assert tokenizer.chat_template == "{{ messages }}"
    assert checkpoint.stop_token_ids == {0, 1}  # 1 by its text, <|im_end|>


def test_llama3_puts_the_begin_token_unless_the_file_says_otherwise(gguf_recipe, tmp_path):
    recipe = gguf_recipe("llama")
    recipe.tokenizer["tokenizer.ggml.pre"] = "llama-bpe"
    tokenizer = load_gguf(recipe.write(tmp_path / "a.gguf")).tokenizer
    assert (tokenizer.pre_tokenizer, tokenizer.add_bos) == ("llama-bpe", True)
    recipe.tokenizer["tokenizer.ggml.add_bos_token"] = False
    assert not load_gguf(recipe.write(tmp_path / "b.gguf")).tokenizer.add_bos


def test_embedding_models_say_how_they_pool_and_end_their_texts(gguf_recipe, tmp_path):
    recipe = gguf_recipe("llama")
    plain = load_gguf(recipe.write(tmp_path / "a.gguf"))
    assert (plain.tokenizer.suffix_token_id, plain.embedding_defaults) == (None, EmbeddingDefaults())
    recipe.tokenizer["tokenizer.ggml.add_eos_token"] = True
    recipe.general |= {"llama.pooling_type": 3}
    embedding = load_gguf(recipe.write(tmp_path / "b.gguf"))
    assert embedding.tokenizer.suffix_token_id == embedding.tokenizer.eos_token_id
    assert embedding.embedding_defaults == EmbeddingDefaults(pooling=Pooling.LAST)


def test_sampling_defaults(gguf_recipe, tmp_path):
    recipe = gguf_recipe("llama")
    assert load_gguf(recipe.write(tmp_path / "a.gguf")).generation_defaults == {}
    recipe.general |= {"general.sampling.temp": 0.5, "general.sampling.top_k": 20}
    defaults = load_gguf(recipe.write(tmp_path / "b.gguf")).generation_defaults
    assert defaults == {"temperature": 0.5, "top_k": 20}


UNSUPPORTED = [
    ("metadata", "expert_count", 8, "expert_count = 8"),
    ("metadata", "attention.sliding_window", 64, "sliding-window"),
    ("metadata", "rope.scaling.type", "longrope", "longrope"),
    ("metadata", "rope.dimension_count", 8, "partial rotary"),
    ("metadata", "attention.value_length", 8, "different length"),
    ("metadata", "attention.head_count_kv", [2, 1], "differs between layers"),
    ("general", "general.type", "adapter", "adapter"),
    ("general", "split.count", 3, "llama-gguf-split"),
    ("tokenizer", "tokenizer.ggml.model", "llama", "SentencePiece"),
    ("tokenizer", "tokenizer.ggml.pre", "default", "'default' is not supported"),
    ("tokenizer", "tokenizer.ggml.pre", "deepseek-coder", "deepseek-coder"),
]


@pytest.mark.parametrize(("section", "key", "value", "message"), UNSUPPORTED)
def test_what_is_not_supported_is_named(gguf_recipe, tmp_path, section, key, value, message):
    recipe = gguf_recipe("llama")
    getattr(recipe, section)[key] = value
    path = recipe.write(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match=message) as caught:
        load_gguf(path)
    assert str(path) in str(caught.value)


def test_unknown_architecture_lists_the_known_ones(gguf_recipe, tmp_path):
    recipe = gguf_recipe("llama")
    recipe.architecture = "mamba"
    with pytest.raises(CheckpointError, match="'mamba' is not supported; supported: gpt2, llama"):
        load_gguf(recipe.write(tmp_path / "m.gguf"))
