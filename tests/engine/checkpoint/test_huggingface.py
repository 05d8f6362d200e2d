import json

import pytest
import safetensors.torch
import tokenizers
import torch
import transformers
from transformers import AutoModelForCausalLM

from engine.checkpoint.huggingface import load_huggingface
from engine.checkpoint.model_config import Activation, RopeScaling
from engine.checkpoint.stored_tensor import TorchTensor
from engine.interface.config import EngineConfig
from engine.interface.errors import CheckpointError
from engine.loading.loader import build_engine

LLAMA = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "gpt2": transformers.GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "llama": transformers.LlamaConfig(**LLAMA, rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
    "llama-biases": transformers.LlamaConfig(
        **LLAMA, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "mistral": transformers.MistralConfig(**LLAMA, head_dim=16, sliding_window=None),
    "qwen2": transformers.Qwen2Config(**LLAMA, tie_word_embeddings=True),
    "qwen3": transformers.Qwen3Config(**LLAMA, head_dim=16),
}


def write_tokenizer(folder):
    """Save a byte-level tokenizer of 260 tokens in Hugging Face's own words."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "he"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[("h", "e")]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')


def save_model(folder, config, **options):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder, **options)
    write_tokenizer(folder)
    return model


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def expected_tensors(model, *, is_gpt2):
    """Name the model's parameters as we do and lay them out as [out_features, in_features]."""
    renames = [("transformer.", ""), ("model.", ""), ("h.", "layers.")]
    gpt2_parts = {
        "wte": "embed_tokens",
        "wpe": "embed_positions",
        "ln_f": "norm",
        "ln_1": "attn_norm",
        "ln_2": "mlp_norm",
        "attn.c_attn": "attn.qkv_proj",
        "attn.c_proj": "attn.o_proj",
        "mlp.c_fc": "mlp.up_proj",
        "mlp.c_proj": "mlp.down_proj",
    }
    llama_parts = {
        "self_attn": "attn",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "mlp_norm",
    }
    parts = gpt2_parts if is_gpt2 else llama_parts
    tensors = {}
    for name, value in model.state_dict().items():
        for old, new in renames:
            name = new + name.removeprefix(old) if name.startswith(old) else name
        is_conv1d = is_gpt2 and ".c_" in name and name.endswith("weight")
        for old, new in parts.items():
            name = name.replace(old, new)
        tensors[name] = value.t() if is_conv1d else value
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    return tensors


@pytest.mark.parametrize("shard_size", ["5GB", "20KB"], ids=["single", "sharded"])
@pytest.mark.parametrize("kind", list(CONFIGS))
def test_every_tensor_comes_back_under_our_name(tmp_path, kind, shard_size):
    model = save_model(tmp_path / kind, CONFIGS[kind], max_shard_size=shard_size)
    assert (tmp_path / kind / "model.safetensors.index.json").exists() is (shard_size == "20KB")
    checkpoint = load_huggingface(tmp_path / kind)
    expected = expected_tensors(model, is_gpt2=checkpoint.config.architecture == "gpt2")
    assert set(checkpoint.tensors) == set(expected)
    for name, stored in checkpoint.tensors.items():
        assert stored.format == "F32"
        assert stored.shape == tuple(expected[name].shape)
        assert torch.equal(stored.dequantize(), expected[name])
    assert checkpoint.name == kind
    assert checkpoint.config.tie_word_embeddings is model.config.tie_word_embeddings


def test_configs(tmp_path):
    loaded = {}
    for kind, config in CONFIGS.items():
        save_model(tmp_path / kind, config)
        loaded[kind] = load_huggingface(tmp_path / kind).config
    flags = {
        kind: (config.qkv_bias, config.o_bias, config.mlp_bias, config.qk_norm)
        for kind, config in loaded.items()
    }
    assert flags == {
        "gpt2": (True, True, True, False),
        "llama": (False, False, False, False),
        "llama-biases": (True, True, True, False),
        "mistral": (False, False, False, False),
        "qwen2": (True, False, False, False),
        "qwen3": (False, False, False, True),
    }
    assert [loaded[kind].head_dim for kind in CONFIGS] == [8, 8, 8, 16, 8, 16]
    gpt2, llama = loaded["gpt2"], loaded["llama"]
    assert (gpt2.activation, gpt2.rope, gpt2.intermediate_size) == (Activation.GELU_TANH, None, 128)
    assert (gpt2.num_kv_heads, llama.num_kv_heads, llama.intermediate_size) == (4, 2, 48)
    assert llama.rope is not None
    assert llama.rope.theta == 5e5
    assert llama.norm_eps == 1e-6


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.bfloat16, "BF16"), (torch.float16, "F16")], ids=["bfloat16", "float16"]
)
def test_half_precision_keeps_its_format_and_its_bytes(tmp_path, dtype, name):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["gpt2"]).to(dtype)
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    stored = load_huggingface(tmp_path).tensors["layers.0.mlp.up_proj.weight"]
    expected = model.state_dict()["transformer.h.0.mlp.c_fc.weight"].t()
    assert isinstance(stored, TorchTensor)
    assert stored.format == name
    assert torch.equal(stored.dequantize(), expected.float())
    assert stored.raw.shape == (128, 64)
    assert torch.equal(torch.from_numpy(stored.raw.copy()).view(dtype), expected)


def test_gpt2_names_without_prefix_and_with_mask_buffers(tmp_path):
    """The layout of the original GPT-2 repository."""
    model = save_model(tmp_path, CONFIGS["gpt2"])
    expected = expected_tensors(model, is_gpt2=True)
    state = {name.removeprefix("transformer."): value.clone() for name, value in model.state_dict().items()}
    state["h.0.attn.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.uint8)
    state["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    checkpoint = load_huggingface(tmp_path)
    assert set(checkpoint.tensors) == set(expected)  # the equal lm_head is dropped, too
    assert checkpoint.config.tie_word_embeddings


def test_a_head_that_differs_from_the_embedding_unties(tmp_path):
    model = save_model(tmp_path, CONFIGS["gpt2"])
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["lm_head.weight"] += 1
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    checkpoint = load_huggingface(tmp_path)
    assert not checkpoint.config.tie_word_embeddings
    assert torch.equal(checkpoint.tensors["lm_head.weight"].dequantize(), state["lm_head.weight"])


LLAMA3_SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling", "rope_scaling with type"])
def test_rope_scaling(tmp_path, spelling):
    save_model(tmp_path, CONFIGS["llama"])

    def load(kind, **values):
        scaling = {"type" if "type" in spelling else "rope_type": kind, **values}
        if spelling == "rope_parameters":
            changes = {"rope_parameters": {"rope_theta": 7e4, **scaling}}
        else:
            changes = {"rope_parameters": None, "rope_theta": 7e4, "rope_scaling": scaling}
        edit_json(tmp_path / "config.json", **changes)
        config = load_huggingface(tmp_path).config
        assert config.rope is not None
        assert config.rope.theta == 7e4
        return config

    linear = load("linear", factor=4.0)
    assert (linear.rope.scaling, linear.rope.factor) == (RopeScaling.LINEAR, 4.0)
    llama3 = load("llama3", **LLAMA3_SCALING)
    assert llama3.rope.scaling is RopeScaling.LLAMA3
    assert {key: getattr(llama3.rope, key) for key in LLAMA3_SCALING} == LLAMA3_SCALING
    assert llama3.max_position_embeddings == 64
    yarn = load("yarn", factor=4.0, original_max_position_embeddings=32, beta_fast=16, attention_factor=1.5)
    assert yarn.rope.scaling is RopeScaling.YARN
    assert (yarn.rope.beta_fast, yarn.rope.beta_slow, yarn.rope.attention_factor) == (16.0, 1.0, 1.5)
    assert yarn.max_position_embeddings == 128
    with pytest.raises(CheckpointError, match="'dynamic' is not supported; supported: linear, llama3, yarn"):
        load("dynamic", factor=2.0)
    with pytest.raises(CheckpointError, match="longrope"):
        load("longrope", factor=2.0)
    with pytest.raises(CheckpointError, match="factor of rope scaling must be from 1"):
        load("linear", factor=0.0)
    with pytest.raises(CheckpointError, match="high_freq_factor must be above"):
        load("llama3", **LLAMA3_SCALING | {"high_freq_factor": 1.0})


def test_sliding_window_is_refused_only_where_it_is_used(tmp_path):
    save_model(tmp_path, CONFIGS["mistral"])
    edit_json(tmp_path / "config.json", sliding_window=64)
    assert load_huggingface(tmp_path).config.max_position_embeddings == 64
    edit_json(tmp_path / "config.json", sliding_window=63)
    with pytest.raises(CheckpointError, match="sliding_window = 63, shorter than the context of 64"):
        load_huggingface(tmp_path)
    qwen = tmp_path / "qwen"
    save_model(qwen, CONFIGS["qwen2"])
    edit_json(qwen / "config.json", sliding_window=16, layer_types=None)
    assert load_huggingface(qwen).config.num_layers == 2
    edit_json(qwen / "config.json", use_sliding_window=True, max_window_layers=2)
    assert load_huggingface(qwen).config.num_layers == 2
    edit_json(qwen / "config.json", max_window_layers=1)
    with pytest.raises(CheckpointError, match="sliding_window = 16"):
        load_huggingface(qwen)
    edit_json(qwen / "config.json", layer_types=["full_attention", "full_attention"])
    assert load_huggingface(qwen).config.num_layers == 2


def test_generation_config(tmp_path):
    save_model(tmp_path, CONFIGS["llama"])
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [7, 9], "temperature": 0.6, "top_p": 0.9, "top_k": 20}))
    checkpoint = load_huggingface(tmp_path)
    assert checkpoint.stop_token_ids == {7, 9, 257}  # 257 is the tokenizer's own <|endoftext|>
    assert checkpoint.generation_defaults == {"temperature": 0.6, "top_p": 0.9, "top_k": 20}
    path.write_text('{"eos_token_id": 11}')
    assert load_huggingface(tmp_path).stop_token_ids == {11, 257}
    path.unlink()
    edit_json(tmp_path / "config.json", eos_token_id=5)
    assert load_huggingface(tmp_path).stop_token_ids == {5, 257}
    edit_json(tmp_path / "config.json", eos_token_id=5000)
    assert load_huggingface(tmp_path).stop_token_ids == {257}  # no such token: it can never end a text


BAD_CONFIGS = [
    ({"model_type": "mamba"}, "model_type 'mamba' is not supported; supported: gpt2, llama"),
    ({"model_type": None}, "model_type is missing"),
    ({"hidden_size": "32"}, "hidden_size must be an integer, got '32'"),
    ({"hidden_size": None}, "hidden_size is missing"),
    ({"hidden_size": 10**30}, "hidden_size must be an integer between"),
    ({"num_hidden_layers": 1_000_000_000}, "says 1000000000 layers but tensors of 2 are stored"),
    ({"num_hidden_layers": 1}, "says 1 layers but tensors of 2 are stored"),
    ({"max_position_embeddings": 2**30}, "context of 1073741824 tokens"),
    ({"num_attention_heads": 0}, "num_heads must be at least 1"),
    ({"num_attention_heads": 6, "head_dim": None}, "6 heads do not divide the hidden size of 32"),
    ({"num_key_value_heads": 3}, "must be a multiple of"),
    ({"vocab_size": 2**31 - 1}, "embed_tokens.weight has shape"),
    ({"intermediate_size": 2**31 - 1}, "layers.0.mlp.up_proj.weight has shape"),
    ({"head_dim": 2**20}, "layers.0.self_attn.q_proj.weight has shape"),
    ({"rms_norm_eps": "tiny"}, "rms_norm_eps must be a number"),
    ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
    ({"quantization_config": {"quant_method": "gptq"}}, "'gptq'"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "rope theta must be above 1.0"),
    ({"rope_parameters": {"full_attention": {}}}, "differ between layers"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
]


@pytest.mark.parametrize(
    ("changes", "message"), BAD_CONFIGS, ids=[message[:30] for _, message in BAD_CONFIGS]
)
def test_bad_configs(tmp_path, changes, message):
    save_model(tmp_path, CONFIGS["llama"])
    edit_json(tmp_path / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_huggingface(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": ' * 3000, "\xff", '{"n_embd": 1' + "0" * 5000 + "}"])
def test_broken_json(tmp_path, text):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"config\.json: (not valid JSON|must hold a JSON object)"):
        load_huggingface(tmp_path)


def test_missing_and_foreign_weights(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        load_huggingface(tmp_path)
    save_model(tmp_path, CONFIGS["llama"])
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        load_huggingface(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="pickled"):
        load_huggingface(tmp_path)


def test_an_index_that_names_missing_shards_and_tensors(tmp_path):
    save_model(tmp_path, CONFIGS["llama"], max_shard_size="20KB")
    index_path = tmp_path / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    shard = index["weight_map"]["model.norm.weight"]
    content = (tmp_path / shard).read_bytes()
    (tmp_path / shard).unlink()
    with pytest.raises(CheckpointError, match=f"1 are missing: {shard}"):
        load_huggingface(tmp_path)
    (tmp_path / shard).write_bytes(content)
    index["weight_map"]["model.layers.7.x.weight"] = shard
    index_path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"tensor model\.layers\.7\.x\.weight is missing"):
        load_huggingface(tmp_path)
    index["weight_map"]["model.layers.7.x.weight"] = "../outside.safetensors"
    index_path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="must be a file name in the same folder"):
        load_huggingface(tmp_path)
    index_path.write_text('{"weight_map": {}}')
    with pytest.raises(CheckpointError, match="weight_map is missing or empty"):
        load_huggingface(tmp_path)


def test_truncated_and_corrupt_safetensors(tmp_path):
    save_model(tmp_path, CONFIGS["llama"])
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    header_end = 8 + int.from_bytes(whole[:8], "little")
    changed = [whole[:size] for size in (0, 4, 8, 100, header_end, len(whole) - 1)]
    changed += [b"\xff" * 8 + whole[8:], whole + b"x", whole[:8] + b"\x00" + whole[9:]]
    for content in changed:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="truncated or corrupt safetensors file"):
            load_huggingface(tmp_path)


WRAPPERS = [
    "module.",
    "_orig_mod.",
    "base_model.model.",
    "language_model.",
    "model.",
    "module._orig_mod.",
    "_orig_mod.base_model.model.",
]


@pytest.mark.parametrize("shard_size", ["5GB", "20KB"], ids=["single", "sharded"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrappers_prefix_before_every_name_is_taken_off(tmp_path, kind, wrapper, shard_size):
    model = save_model(tmp_path, CONFIGS[kind], max_shard_size=shard_size)
    for path in tmp_path.glob("*.safetensors"):
        state = {wrapper + name: value for name, value in safetensors.torch.load_file(path).items()}
        safetensors.torch.save_file(state, path)
    index_path = tmp_path / "model.safetensors.index.json"
    if index_path.exists():
        weight_map = json.loads(index_path.read_text())["weight_map"]
        edit_json(index_path, weight_map={wrapper + name: file for name, file in weight_map.items()})
    tensors = load_huggingface(tmp_path).tensors
    expected = expected_tensors(model, is_gpt2=kind == "gpt2")
    assert set(tensors) == set(expected)
    assert all(torch.equal(tensors[name].dequantize(), expected[name]) for name in tensors)


def test_a_prefix_that_is_not_a_wrappers_or_not_shared_is_named(tmp_path):
    model = save_model(tmp_path, CONFIGS["llama"])
    path = tmp_path / "model.safetensors"
    state = {f"text.{name}": value.clone() for name, value in model.state_dict().items()}
    safetensors.torch.save_file(state, path)
    with pytest.raises(
        CheckpointError, match=r"numbers the names have 'text\.model\.'; save the model itself"
    ):
        load_huggingface(tmp_path)
    state = {name.replace("text.", "language_model."): value for name, value in state.items()}
    safetensors.torch.save_file(state | {"vision.layers.0.x": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"have 'language_model\.model\.', 'vision\.'"):
        load_huggingface(tmp_path)
    safetensors.torch.save_file({"something": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="none has a layer"):
        load_huggingface(tmp_path)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("tied", ["false", "absent"])
def test_a_missing_head_that_is_not_tied_is_refused(tmp_path, kind, tied):
    model = save_model(tmp_path, CONFIGS[kind])
    state = {name: value.clone() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    path = tmp_path / "config.json"
    values = {
        key: value for key, value in json.loads(path.read_text()).items() if key != "tie_word_embeddings"
    }
    path.write_text(json.dumps(values | ({"tie_word_embeddings": False} if tied == "false" else {})))
    if kind == "gpt2" and tied == "absent":
        assert load_huggingface(tmp_path).config.tie_word_embeddings
        return
    with pytest.raises(CheckpointError, match=r"tensor lm_head\.weight is missing") as caught:
        load_huggingface(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "set tie_word_embeddings to true" in str(caught.value)
    edit_json(path, tie_word_embeddings=True)
    assert "lm_head.weight" not in load_huggingface(tmp_path).tensors


ALTERED = {
    "missing": (
        "model.layers.1.mlp.up_proj.weight",
        None,
        r"tensor layers\.1\.mlp\.up_proj\.weight is missing",
    ),
    "misshapen": (
        "model.layers.1.mlp.up_proj.weight",
        torch.zeros(3, 4),
        r"model\.safetensors: tensor model\.layers\.1\.mlp\.up_proj\.weight has shape \[3, 4\]",
    ),
    "one too many": (
        "model.layers.1.self_attn.q_proj.lora_A.weight",
        torch.zeros(3, 4),
        r"model\.safetensors: tensor model\.layers\.1\.self_attn\.q_proj\.lora_A\.weight: .*no place for it",
    ),
}


@pytest.mark.parametrize("what", ALTERED)
@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_errors_of_single_tensors_name_file_and_tensor(tmp_path, what, kernels):
    name, value, message = ALTERED[what]
    model = save_model(tmp_path, CONFIGS["llama"])
    state = {key: stored.clone() for key, stored in model.state_dict().items() if key != name}
    safetensors.torch.save_file(
        state | ({} if value is None else {name: value}), tmp_path / "model.safetensors"
    )
    with pytest.raises(CheckpointError, match=message) as caught:
        build_engine(load_huggingface(tmp_path), EngineConfig(device="cpu", kernels=kernels))
    assert str(tmp_path) in str(caught.value)


def test_integer_weights_are_refused(tmp_path):
    model = save_model(tmp_path, CONFIGS["llama"])
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["model.norm.weight"] = torch.ones(32, dtype=torch.int32)
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor model\.norm\.weight is I32"):
        load_huggingface(tmp_path)


def test_a_tensor_stored_twice_is_refused(tmp_path):
    model = save_model(tmp_path, CONFIGS["llama"])
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["norm.weight"] = state["model.norm.weight"].clone()
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="are the same tensor"):
        load_huggingface(tmp_path)
