"""Logits against `transformers` on random checkpoints saved in the real format."""

import json

import pytest
import torch
from tokenizers import Tokenizer as ReferenceTokenizer
from tokenizers import models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from engine.checkpoint import load_checkpoint
from engine.interface.batch import Batch, ScheduledChunk
from engine.interface.config import EngineConfig
from engine.loading.loader import build_engine
from engine.model.model_input import build_model_input

VOCAB = 300
LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 96,
    "intermediate_size": 200,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}


def rope(**parameters):
    return {"rope_parameters": {"rope_theta": 10_000.0, **parameters}}


LLAMA3_SCALING = rope(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
YARN_SCALING = rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
CASES = {
    "gpt2": GPT2Config(
        vocab_size=VOCAB, n_positions=256, n_embd=96, n_layer=3, n_head=6, initializer_range=0.2
    ),
    "gpt2 untied, exact gelu, odd sizes": GPT2Config(
        vocab_size=VOCAB,
        n_positions=200,
        n_embd=84,
        n_layer=2,
        n_head=7,
        n_inner=131,
        activation_function="gelu",
        tie_word_embeddings=False,
        initializer_range=0.2,
    ),
    "llama, grouped queries": LlamaConfig(**LLAMA),
    "llama, every head its own keys, tied": LlamaConfig(
        **LLAMA | {"num_key_value_heads": 6, "tie_word_embeddings": True}
    ),
    "llama, one key head, wide heads, biases": LlamaConfig(
        **LLAMA | {"num_key_value_heads": 1, "head_dim": 32, "attention_bias": True, "mlp_bias": True}
    ),
    "llama, linear scaling": LlamaConfig(**LLAMA, **rope(rope_type="linear", factor=2.0)),
    "llama 3 scaling": LlamaConfig(**LLAMA, **LLAMA3_SCALING),
    "llama, yarn": LlamaConfig(**LLAMA, **YARN_SCALING),
    "smollm2 shape, 9 and 3 heads": LlamaConfig(
        **LLAMA
        | {
            "hidden_size": 144,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
        }
    ),
    "mistral": MistralConfig(**LLAMA, sliding_window=None),
    "qwen2": Qwen2Config(**LLAMA, use_sliding_window=False),
    "qwen3": Qwen3Config(**LLAMA | {"head_dim": 16}, use_sliding_window=False),
}


def save_tokenizer(folder):
    """A byte-level vocabulary of VOCAB tokens, none of them used here."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {token: i for i, token in enumerate(alphabet)}
    tokens |= {f"{alphabet[i]}{alphabet[i]}": len(alphabet) + i for i in range(VOCAB - len(alphabet))}
    merges = [(alphabet[i], alphabet[i]) for i in range(VOCAB - len(alphabet))]
    tokenizer = ReferenceTokenizer(models.BPE(vocab=tokens, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def saved_model(config, folder):
    """A random transformers model, written as safetensors; norms and biases are random too."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(1.0 if "norm" in name or "ln_" in name else 0.0, 0.2)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return model


def our_logits(engine, token_ids, chunk):
    """Logits of the last token of every chunk, through the real cache."""
    rows, block_ids = [], tuple(range(3, 3 + len(token_ids) // 16 + 1))
    with torch.inference_mode():
        for first in range(0, len(token_ids), chunk):
            part = ScheduledChunk(-1, first, tuple(token_ids[first : first + chunk]), block_ids)
            model_input = build_model_input(Batch((part,)), block_size=16, device=torch.device("cpu"))
            hidden = engine.executor.model(model_input)
            rows.append(engine.executor.model.compute_logits(hidden))
    return torch.cat(rows)


def check_logits(reference, folder):
    config = EngineConfig(device="cpu", dtype="float32", kv_cache_memory=2**24)
    engine = build_engine(load_checkpoint(str(folder)), config).engine
    token_ids = torch.randint(0, VOCAB, (1, 150), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference(token_ids).logits[0]
    assert expected.std() > 0.3, "the comparison needs logits that say something"
    for chunk in (150, 47):
        logits = our_logits(engine, token_ids[0].tolist(), chunk)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers(name, tmp_path):
    check_logits(saved_model(CASES[name], tmp_path), tmp_path)


LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = LLAMA3_SCALING["rope_parameters"]
ROTARY_FIELDS = {
    "older yarn over newer linear": {"rope_parameters": LINEAR, "rope_scaling": YARN},
    "older linear over newer yarn": {"rope_parameters": YARN, "rope_scaling": LINEAR},
    "older with type and a theta beside it": {
        "rope_parameters": LINEAR,
        "rope_scaling": {"type": "linear", "factor": 4.0},
        "rope_theta": 100.0,
    },
    "older empty": {"rope_parameters": LINEAR, "rope_scaling": {}},
    "older null": {"rope_parameters": LINEAR, "rope_scaling": None},
    "newer empty, a theta beside it": {"rope_parameters": {}, "rope_theta": 100.0},
    "newer with a theta, another beside it": {"rope_parameters": LINEAR, "rope_theta": 100.0},
    "both types in one": {"rope_parameters": {**LINEAR, "type": "yarn"}},
    "the original context beside yarn": {"rope_parameters": YARN, "original_max_position_embeddings": 512},
    "the original context beside llama 3": {
        "rope_scaling": LLAMA3,
        "original_max_position_embeddings": 128,
    },
    "yarn with an attention factor": {"rope_scaling": YARN | {"attention_factor": 1.3}},
    "yarn with both mscales": {"rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 1.5}},
    "yarn with one mscale": {"rope_scaling": YARN | {"mscale": 0.7}},
    "yarn with betas": {"rope_scaling": YARN | {"beta_fast": 8, "beta_slow": 2}},
    "yarn without an original context": {"rope_scaling": {"type": "yarn", "factor": 4.0}},
}


@pytest.mark.parametrize("name", ROTARY_FIELDS)
def test_rotary_fields_are_read_in_the_order_of_transformers(name, tmp_path):
    saved_model(CASES["llama, grouped queries"], tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    del values["rope_parameters"]
    path.write_text(json.dumps(values | ROTARY_FIELDS[name]))
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    check_logits(reference, tmp_path)
