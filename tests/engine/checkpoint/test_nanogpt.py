import os
import pickle
import struct

import pytest
import torch

from engine.checkpoint.model_config import Activation
from engine.checkpoint.nanogpt import load_nanogpt
from engine.interface.config import EngineConfig
from engine.interface.errors import CheckpointError
from engine.loading.loader import build_engine

CHARACTERS = "\n abcdefgh"
LINEARS = {"attn.c_attn": (24, 8), "attn.c_proj": (8, 8), "mlp.c_fc": (32, 8), "mlp.c_proj": (8, 32)}


def nanogpt_state(*, bias):
    """A state dict with nanoGPT's names and shapes (linear weights are [out, in])."""
    torch.manual_seed(0)
    state = {"transformer.wte.weight": torch.randn(10, 8), "transformer.wpe.weight": torch.randn(16, 8)}
    for layer in range(2):
        prefix = f"transformer.h.{layer}"
        for module, shape in LINEARS.items():
            state[f"{prefix}.{module}.weight"] = torch.randn(shape)
        state[f"{prefix}.attn.bias"] = torch.ones(1, 1, 16, 16)  # the causal mask of old versions
    norms = [
        "transformer.ln_f",
        *(f"transformer.h.{layer}.{norm}" for layer in range(2) for norm in ("ln_1", "ln_2")),
    ]
    for norm in norms:
        state[f"{norm}.weight"] = torch.randn(8)
    if bias:
        modules = dict.fromkeys(norms, 8)
        modules |= {f"transformer.h.{i}.{m}": shape[0] for i in range(2) for m, shape in LINEARS.items()}
        state |= {f"{module}.bias": torch.randn(size) for module, size in modules.items()}
    state["lm_head.weight"] = state["transformer.wte.weight"]
    return state


def write_checkpoint(folder, *, bias=True, characters=CHARACTERS, wrapper="_orig_mod.", **changes):
    arguments = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 16, "bias": bias, "vocab_size": 10}
    state = {wrapper + name: value for name, value in nanogpt_state(bias=bias).items()}
    path = folder / "ckpt.pt"
    torch.save({"model": state, "model_args": arguments, "optimizer": {}, "iter_num": 3} | changes, path)
    if characters:
        meta = {"vocab_size": len(characters), "itos": dict(enumerate(characters))}
        (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    return path


def test_a_missing_bias_of_a_model_that_has_them_is_no_zero(tmp_path):
    state = nanogpt_state(bias=True)
    del state["transformer.h.1.mlp.c_fc.bias"]
    checkpoint = load_nanogpt(write_checkpoint(tmp_path, model=state))
    with pytest.raises(CheckpointError, match=r"ckpt\.pt: tensor layers\.1\.mlp\.up_proj\.bias is missing"):
        build_engine(checkpoint, EngineConfig(device="cpu"))


@pytest.mark.parametrize("wrapper", ["", "_orig_mod.", "module.", "_orig_mod.module.", "module._orig_mod."])
def test_weights_and_config(tmp_path, wrapper):
    checkpoint = load_nanogpt(write_checkpoint(tmp_path, wrapper=wrapper))
    config = checkpoint.config
    assert (config.architecture, config.activation, config.rope) == ("gpt2", Activation.GELU, None)
    assert (config.num_layers, config.num_heads, config.head_dim, config.intermediate_size) == (2, 2, 4, 32)
    assert (config.vocab_size, config.max_position_embeddings) == (10, 16)
    assert config.tie_word_embeddings
    state = nanogpt_state(bias=True)
    pairs = {
        "embed_tokens.weight": "transformer.wte.weight",
        "embed_positions.weight": "transformer.wpe.weight",
        "norm.bias": "transformer.ln_f.bias",
        "layers.1.attn.qkv_proj.weight": "transformer.h.1.attn.c_attn.weight",
        "layers.1.attn.qkv_proj.bias": "transformer.h.1.attn.c_attn.bias",
        "layers.0.mlp.up_proj.weight": "transformer.h.0.mlp.c_fc.weight",
    }
    for ours, theirs in pairs.items():
        assert torch.equal(checkpoint.tensors[ours].dequantize(), state[theirs])
    assert len(checkpoint.tensors) == 2 + 2 + 2 * 12
    assert checkpoint.name == tmp_path.name


def test_a_model_without_biases_gets_zeros(tmp_path):
    with_bias = load_nanogpt(write_checkpoint(tmp_path))
    without = load_nanogpt(write_checkpoint(tmp_path, bias=False))
    assert set(without.tensors) == set(with_bias.tensors)
    for name, stored in without.tensors.items():
        assert stored.shape == with_bias.tensors[name].shape
        assert name.endswith(".bias") is bool((stored.dequantize() == 0).all())


def test_character_vocabulary(tmp_path):
    checkpoint = load_nanogpt(write_checkpoint(tmp_path))
    assert checkpoint.tokenizer.kind == "char"
    assert checkpoint.tokenizer.tokens == tuple(CHARACTERS)
    assert checkpoint.stop_token_ids == frozenset()


def test_gpt2_vocabulary_beside_it(tmp_path):
    path = write_checkpoint(tmp_path, characters="")
    with pytest.raises(CheckpointError, match=r"no vocabulary beside it: put meta\.pkl there"):
        load_nanogpt(path)
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    tokenizer = load_nanogpt(path).tokenizer
    assert (tokenizer.kind, tokenizer.pre_tokenizer) == ("bpe", "gpt-2")
    assert tokenizer.merges == (("a", "b"),)


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_no_pickle_runs_code(tmp_path):
    marker = tmp_path / "ran"
    path = write_checkpoint(tmp_path)
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"itos": {0: Evil(marker)}}))
    with pytest.raises(CheckpointError, match=r"meta\.pkl: not a plain pickle: .*mkdir"):
        load_nanogpt(path)
    torch.save({"model": Evil(marker), "model_args": {}}, path)
    with pytest.raises(CheckpointError, match=r"torch\.load can read safely"):
        load_nanogpt(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a plain pickle"),
        (b"\x80\x04N.", "'itos' must map"),
        (b"\x80\x04]r\xff\xff\xff\xff.", "memo slot 4294967295 in a file of 9 bytes"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b".", "not a plain pickle"),
        (pickle.dumps({"itos": {1: "a"}}), "'itos' must map the ids 0, 1, 2"),
        (pickle.dumps({"itos": {0: "ab"}}), "distinct characters: 'ab' is not one"),
        (pickle.dumps({"itos": {0: "a", 1: "a"}}), "one occurs twice"),
        (
            pickle.dumps({"itos": dict(enumerate("abcdefghijk"))}),
            "tokenizer has 11 tokens but the model only 10",
        ),
        (pickle.dumps({"itos": {0: "\ud800"}}, protocol=2), "not valid Unicode"),
    ],
)
def test_bad_vocabularies(tmp_path, content, message):
    path = write_checkpoint(tmp_path)
    (tmp_path / "meta.pkl").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_nanogpt(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "needs the keys 'model' and 'model_args'"),
        ({"model_args": {"n_layer": 2}}, "n_embd is missing"),
        (
            {"model_args": {"n_layer": 2, "n_head": 3, "n_embd": 8, "block_size": 16}},
            "n_head 3 does not divide",
        ),
        ({"model": {"transformer.wte.weight": 5}}, "is not a plain contiguous tensor"),
        (
            {"model": {"transformer.wte.weight": torch.ones(1, 1).expand(10, 8)}},
            "not a plain contiguous tensor",
        ),
        ({"model": {"transformer.wte.weight": torch.ones(10, 8, dtype=torch.int8)}}, "is torch.int8"),
        ({"model": {}}, "says 2 layers but tensors of 0 are stored"),
    ],
)
def test_bad_checkpoints(tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message):
        load_nanogpt(write_checkpoint(tmp_path, **changes))


def test_damaged_files(tmp_path):
    path = write_checkpoint(tmp_path)
    whole = path.read_bytes()
    for content in (b"", b"PK", whole[:100], whole[: len(whole) // 2], whole[:-10], b"\x00" * 1000):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"ckpt\.pt: not a checkpoint that torch\.load can read"):
            load_nanogpt(path)
    path.unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        load_nanogpt(path)
