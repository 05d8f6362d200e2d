"""Files that are made to cost time or memory are refused at once, by name."""

import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from engine.checkpoint.assembly import MAX_TENSORS
from engine.checkpoint.huggingface import load_huggingface
from engine.checkpoint.nanogpt import load_nanogpt
from engine.interface.errors import CheckpointError
from tests.engine.checkpoint.test_huggingface import LLAMA, edit_json, write_tokenizer
from tests.engine.checkpoint.test_nanogpt import write_checkpoint


@pytest.fixture
def folder(tmp_path):
    LlamaConfig(**LLAMA).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    save_file({"model.norm.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    return tmp_path


def test_more_tensors_than_any_model_has(folder):
    tensors = {f"model.layers.{i}.x.weight": torch.zeros(1) for i in range(MAX_TENSORS + 1)}
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{folder}: {MAX_TENSORS + 1} tensors, more than the"):
        load_huggingface(folder)


@pytest.mark.parametrize("value", [0.0, -1e-5, 0.2, 1e30])
def test_an_epsilon_that_is_none(folder, value):
    edit_json(folder / "config.json", rms_norm_eps=value)
    with pytest.raises(CheckpointError, match=r"config\.json: .*norm_eps must be above 0 and at most 0\.1"):
        load_huggingface(folder)


def test_a_pickle_of_operations_beside_the_weights(tmp_path):
    path = write_checkpoint(tmp_path)
    padded = tmp_path / "padded.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(padded, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                content = b"0".join([content[:2], b"N0" * 3_000_000, content[2:]])
            new.writestr(entry.filename, content)
    with pytest.raises(CheckpointError, match=r"padded\.pt: its pickle has 60\d+ bytes, more than"):
        load_nanogpt(padded)


def test_a_vocabulary_of_characters_in_megabytes(tmp_path):
    path = write_checkpoint(tmp_path)
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"itos": {}, "more": b"x" * 2**20}))
    with pytest.raises(CheckpointError, match=r"meta\.pkl: larger than 1048576 bytes"):
        load_nanogpt(path)
