"""What config.json leaves out, and what it holds that its family lacks, against transformers' own classes."""

import contextlib
import dataclasses
import logging
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.checkpoint.huggingface_config import read_architecture, read_model_config
from engine.checkpoint.metadata import Metadata
from engine.checkpoint.model_config import Activation, ModelConfig, Norm, RopeConfig
from engine.interface.errors import CheckpointError, ConfigError

CLASSES = {
    "gpt2": transformers.GPT2Config,
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
}
# No value equals the default of its class, so that a field read from elsewhere shows.
FULL = {
    "vocab_size": 300,
    "n_positions": 64,
    "n_embd": 192,
    "n_layer": 2,
    "n_head": 64,
    "n_inner": 80,
    "activation_function": "gelu",
    "layer_norm_epsilon": 1e-4,
    "hidden_size": 128,
    "intermediate_size": 80,
    "num_hidden_layers": 30,
    "num_attention_heads": 64,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "gelu",
    "max_position_embeddings": 5000,
    "rms_norm_eps": 1e-4,
    "attention_bias": True,
    "mlp_bias": True,
    "use_sliding_window": True,
    "sliding_window": 5000,
    "max_window_layers": 31,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
}
ACTIVATIONS = {"gelu": Activation.GELU, "gelu_new": Activation.GELU_TANH, "silu": Activation.SILU}


def full_values(family):
    """A configuration that gives every field of its class."""
    fields = {field.name: field for field in dataclasses.fields(CLASSES[family])}
    values = CLASSES[family]().to_dict() | {name: value for name, value in FULL.items() if name in fields}
    values["tie_word_embeddings"] = not CLASSES[family]().tie_word_embeddings
    values["model_type"] = family
    if family in ("qwen2", "qwen3"):
        values["layer_types"] = None
    return values


def read(values):
    metadata = Metadata(values, path=Path("config.json"))
    return read_model_config(metadata, read_architecture(metadata))


def as_transformers_reads(values):
    """Our record of transformers' configuration, None where a window is shorter than the context."""
    config = transformers.AutoConfig.for_model(**values)
    family, is_gpt2 = config.model_type, config.model_type == "gpt2"
    window = getattr(config, "sliding_window", None)
    is_sliding = family == "mistral" or "sliding_attention" in (getattr(config, "layer_types", None) or ())
    if is_sliding and window is not None and window < config.max_position_embeddings:
        return None
    num_heads = config.num_attention_heads
    has_bias = is_gpt2 or (family in ("llama", "qwen3") and config.attention_bias)
    inner = (config.n_inner or 4 * config.n_embd) if is_gpt2 else config.intermediate_size
    return ModelConfig(
        architecture=family,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=inner,
        num_layers=config.num_hidden_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads if is_gpt2 else config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // num_heads,
        max_position_embeddings=config.max_position_embeddings,
        norm_eps=config.layer_norm_epsilon if is_gpt2 else config.rms_norm_eps,
        activation=ACTIVATIONS[config.activation_function if is_gpt2 else config.hidden_act],
        rope=None if is_gpt2 else RopeConfig(theta=config.rope_parameters["rope_theta"]),
        tie_word_embeddings=config.tie_word_embeddings,
        qkv_bias=has_bias or family == "qwen2",
        o_bias=has_bias,
        mlp_bias=is_gpt2 or (family == "llama" and config.mlp_bias),
        qk_norm=family == "qwen3",
        norm=Norm.LAYER if is_gpt2 else Norm.RMS,
        is_gated=not is_gpt2,
        has_qkv_proj=is_gpt2,
    )


def check_read_as_transformers_does(values):
    expected = as_transformers_reads(values)
    if expected is not None:
        assert read(values) == expected
        return
    with pytest.raises(CheckpointError, match="sliding-window attention"):
        read(values)


ABSENT = [(family, field) for family in CLASSES for field in full_values(family) if field != "model_type"]


@pytest.mark.parametrize(("family", "field"), ABSENT, ids=["-".join(case) for case in ABSENT])
def test_an_absent_field_has_the_familys_default(family, field):
    values = full_values(family)
    del values[field]
    check_read_as_transformers_does(values)


@pytest.mark.parametrize("family", CLASSES)
def test_a_full_and_an_empty_configuration(family, caplog):
    with caplog.at_level(logging.WARNING):
        check_read_as_transformers_does(full_values(family))
        check_read_as_transformers_does(CLASSES[family]().to_dict() | {"model_type": family})
    assert not caplog.records, "a field of the family's own class is known"
    check_read_as_transformers_does({"model_type": family})


NULLS = [
    (family, field)
    for family, field in (
        *((family, "num_key_value_heads") for family in ("llama", "qwen2", "qwen3")),
        *((family, "head_dim") for family in ("llama", "mistral")),
        *((family, "sliding_window") for family in ("mistral", "qwen2", "qwen3")),
        ("gpt2", "n_inner"),
    )
]


@pytest.mark.parametrize(("family", "field"), NULLS)
def test_null_is_not_absent(family, field):
    check_read_as_transformers_does(full_values(family) | {field: None, "max_window_layers": 1})


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_an_absent_window_is_4096(family):
    values = full_values(family) | {"max_window_layers": 1}
    del values["sliding_window"]
    with pytest.raises(CheckpointError, match=r"sliding_window = 4096.*set max_position_embeddings to 4096"):
        read(values)
    assert read(values | {"max_position_embeddings": 4096}).max_position_embeddings == 4096
    assert read(values | {"sliding_window": None}).max_position_embeddings == 5000


def test_a_context_that_yarn_stretches_beyond_the_window():
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 5000}
    with pytest.raises(CheckpointError, match="shorter than the context of 10000"):
        read(full_values("mistral") | {"rope_parameters": yarn})


@pytest.mark.parametrize(
    ("layer_types", "changes", "message"),
    [
        (["sliding_attention"] * 30, {"use_sliding_window": False}, "there is no window"),
        (["sliding_attention"] * 30, {"sliding_window": None}, "there is no window"),
        (["full_attention"] * 29, {}, "must have 30 entries, one per layer, got 29"),
        (["chunked_attention"] * 30, {}, "'chunked_attention' is not supported"),
        (["full_attention", "sliding_attention"] * 15, {"sliding_window": 64}, "sliding_window = 64"),
    ],
)
def test_layer_types_of_qwen(layer_types, changes, message):
    with pytest.raises(CheckpointError, match=message):
        read(full_values("qwen3") | {"layer_types": layer_types, **changes})


def test_gpt2_takes_the_names_of_other_families():
    names = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "max_position_embeddings": 9,
    }
    check_read_as_transformers_does(full_values("gpt2") | names)
    check_read_as_transformers_does({"model_type": "gpt2", **names})


FOREIGN = {
    "attention_multiplier": (0.25, 0.015625),  # (neutral with heads of 16 in 30 layers of 128, not neutral)
    "embedding_multiplier": (1, 12.0),
    "residual_multiplier": (1.0, 0.22),
    "logits_scaling": (1.0, 8),
    "logit_scale": (1.0, 0.0625),
    "scale_emb": (1, 12),
    "scale_depth": (30**0.5, 1.4),
    "dim_model_base": (128, 256),
    "attn_logit_softcapping": (None, 50.0),
    "is_causal": (True, False),
    "use_bidirectional_attention": (False, True),
    "final_logit_softcapping": (0, 30.0),
    "query_pre_attn_scalar": (16, 256),
    "clip_qkv": (None, 8.0),
    "partial_rotary_factor": (1.0, 0.5),
    "rotary_pct": (1, 0.25),
    "rotary_dim": (16, 8),
    "num_experts": (0, 8),
    "num_local_experts": (1, 8),
    "n_routed_experts": (None, 64),
    "no_rope_layers": ([1, 1, 1, 1], [1, 1, 1, 0]),
    "no_rope_layer_interval": (0, 4),
    "layer_types": (["full_attention"] * 30, ["full_attention", "sliding_attention"] * 15),
    "use_qk_norm": (False, True),
    "rope_interleave": (False, True),
    "alibi": (False, True),
    "per_layer_config": ({}, {"3": {"hidden_size": 8}}),
    "sliding_window": (5000, 4096),
}


@pytest.mark.parametrize("field", FOREIGN)
def test_a_number_of_another_family_is_refused_by_name_unless_neutral(field, caplog):
    neutral, other = FOREIGN[field]
    values = full_values("llama")
    with caplog.at_level(logging.WARNING):
        assert read(values | {field: neutral}) == read(values)
    assert not caplog.records
    with pytest.raises(CheckpointError, match=rf"config\.json: {field}") as caught:
        read(values | {field: other})
    assert "remove" in str(caught.value)


@pytest.mark.parametrize(
    ("family", "field"), [("mistral", "attention_bias"), ("mistral", "mlp_bias"), ("qwen3", "mlp_bias")]
)
def test_biases_of_a_family_that_has_none(family, field):
    read(full_values(family) | {field: False})
    with pytest.raises(CheckpointError, match=f"{field} = True has no effect in a {family} model"):
        read(full_values(family) | {field: True})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**70) | st.just(10**400) | st.floats() | st.text(max_size=8),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=8), values, max_size=3),
    max_leaves=5,
)
ROTARY_KEYS = [
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
]


@pytest.mark.parametrize("value", [10**400, -(10**400), float("nan"), float("inf"), "1", [1], {"a": 1}])
@pytest.mark.parametrize("field", ["logit_scale", "rotary_dim", "num_experts", "attention_multiplier"])
def test_a_foreign_number_that_is_none_is_refused(field, value):
    with pytest.raises(CheckpointError, match=field):
        read(full_values("llama") | {field: value})


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_value_of_any_field_is_read_or_refused(data):
    family = data.draw(st.sampled_from(list(CLASSES)))
    values = full_values(family)
    fields = sorted({*values, *FOREIGN, "rope_scaling", "rope_theta", "quantization_config"} - {"model_type"})
    values |= data.draw(st.dictionaries(st.sampled_from(fields), JSON, min_size=1, max_size=3))
    if data.draw(st.booleans()):
        kind = st.sampled_from(["default", "linear", "llama3", "yarn", "dynamic"])
        rotary = st.dictionaries(st.sampled_from(ROTARY_KEYS), kind | JSON, max_size=6)
        values["rope_scaling"] = data.draw(rotary)
    with contextlib.suppress(CheckpointError, ConfigError):
        assert isinstance(read(values), ModelConfig)


def test_an_unknown_number_is_named_in_a_warning(caplog):
    unknown = {
        "mup_base": 2.5,
        "post_norms": True,
        "mlp_multipliers": [0.5, 2.0],
        "note": "text",
        "nothing": 0,
        "max_length": 20,
    }
    with caplog.at_level(logging.WARNING):
        read(full_values("llama") | unknown)
    assert [record.getMessage() for record in caplog.records] == [
        "config.json: a llama model has no mlp_multipliers, mup_base, post_norms; not applied"
    ]
