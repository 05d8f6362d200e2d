import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import transformers

from engine.checkpoint import load_checkpoint
from engine.interface.errors import CheckpointError

VOCABULARY = {"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}


@pytest.fixture
def huggingface_folder(tmp_path):
    folder = tmp_path / "tiny-gpt2"
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    return folder


def test_a_folder_a_gguf_and_a_nanogpt_file(huggingface_folder, gguf_recipe, tmp_path):
    by_folder = load_checkpoint(str(huggingface_folder))
    assert (by_folder.name, by_folder.config.architecture) == ("tiny-gpt2", "gpt2")
    gguf_path = gguf_recipe("llama").write(tmp_path / "some-model.gguf")
    by_gguf = load_checkpoint(str(gguf_path))
    assert (by_gguf.name, by_gguf.path, by_gguf.config.architecture) == ("some-model", gguf_path, "llama")
    renamed = gguf_path.rename(tmp_path / "no-suffix")
    assert load_checkpoint(str(renamed)).fingerprint == by_gguf.fingerprint

    out = tmp_path / "out-tiny"
    out.mkdir()
    model = transformers.AutoModelForCausalLM.from_pretrained(huggingface_folder)
    linear = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    state = {
        name: value.t().contiguous() if name.endswith(linear) else value
        for name, value in model.state_dict().items()
    }
    arguments = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 16, "bias": True, "vocab_size": 8}
    torch.save({"model": state, "model_args": arguments}, out / "ckpt.pt")
    for file_name in ("vocab.json", "merges.txt"):
        shutil.copy(huggingface_folder / file_name, out)
    for spec in (out, out / "ckpt.pt"):
        by_nanogpt = load_checkpoint(str(spec))
        assert by_nanogpt.name == "out-tiny"
        assert by_nanogpt.stop_token_ids == by_folder.stop_token_ids == frozenset()
        assert set(by_nanogpt.tensors) == set(by_folder.tensors)
        for name, stored in by_nanogpt.tensors.items():
            assert torch.equal(stored.dequantize(), by_folder.tensors[name].dequantize())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gpt-5", "unknown model 'gpt-5'; known names: smollm2-135m-instruct"),
        ("", "unknown model ''"),
        ("nowhere/model", "nowhere/model: no such file or folder"),
        ("model.gguf", r"model\.gguf: no such file"),
        ("~no-such-user-here/x", "neither a model name nor a possible path"),
        ("a\0b", r"unknown model 'a\\x00b'"),
        ("x" * 5000, "neither a model name nor a possible path"),
        ("hf:onlyname", "must be hf:ORG/REPO"),
        ("hf:../../etc", "must be hf:ORG/REPO"),
        ("hf:a/b@", "must be hf:ORG/REPO"),
    ],
)
def test_bad_specs(tmp_path, monkeypatch, spec, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(spec)
    assert len(str(caught.value)) < 1000


def test_files_and_folders_that_are_no_models(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither config\.json .* nor ckpt\.pt"):
        load_checkpoint(str(tmp_path))
    (tmp_path / "x.gguf").write_bytes(b"")
    with pytest.raises(CheckpointError, match="holds 1 GGUF files; pass one"):
        load_checkpoint(str(tmp_path))
    with pytest.raises(CheckpointError, match="the file is empty"):
        load_checkpoint(str(tmp_path / "x.gguf"))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="pass the folder"):
        load_checkpoint(str(tmp_path / "model.safetensors"))
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match="neither a GGUF file nor a nanoGPT"):
        load_checkpoint(str(tmp_path / "notes.txt"))


def test_the_hub_extra_may_be_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"pip install 'draftline\[hub\]'"):
        load_checkpoint("hf:org/repo")


OFFLINE = """
from engine.checkpoint import load_checkpoint
from engine.interface.errors import CheckpointError
checkpoint = load_checkpoint("hf:org/tiny@main")
print(checkpoint.name, checkpoint.config.vocab_size)
try:
    load_checkpoint("hf:org/absent")
except CheckpointError as error:
    print(error)
"""


def test_the_hub_cache_is_used_offline(huggingface_folder, tmp_path):
    """In a process of its own: huggingface_hub reads its environment when it is imported."""
    commit = "0" * 40
    repository = tmp_path / "home" / "hub" / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(huggingface_folder, repository / "snapshots" / commit)
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE], env=environment, text=True, capture_output=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert first == "org/tiny 8"
    assert second.startswith("hf:org/absent: cannot be fetched and is not in the local cache")
