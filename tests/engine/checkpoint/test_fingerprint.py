import shutil
from dataclasses import replace

import pytest

from engine.checkpoint.fingerprint import compute_fingerprint
from engine.checkpoint.gguf import load_gguf
from engine.interface.errors import CheckpointError


def test_equal_files_are_equal_wherever_they_lie(gguf_recipe, tmp_path):
    path = gguf_recipe("llama").write(tmp_path / "a.gguf")
    copy = tmp_path / "folder" / "b.gguf"
    copy.parent.mkdir()
    shutil.copy(path, copy)
    first, second = load_gguf(path), load_gguf(copy)
    assert len(first.fingerprint) == 16
    assert first.fingerprint == second.fingerprint


def test_one_changed_weight_of_a_small_file_changes_it(gguf_recipe, tmp_path):
    recipe = gguf_recipe("llama")
    before = load_gguf(recipe.write(tmp_path / "a.gguf")).fingerprint
    recipe.tensors["blk.1.ffn_up.weight"][5, 5] += 1
    assert load_gguf(recipe.write(tmp_path / "b.gguf")).fingerprint != before


def test_configuration_and_tensor_names_count(gguf_recipe, tmp_path):
    checkpoint = load_gguf(gguf_recipe("llama").write(tmp_path / "a.gguf"))
    config, tensors, files = checkpoint.config, dict(checkpoint.tensors), [checkpoint.path]
    assert compute_fingerprint(config, tensors, files) == checkpoint.fingerprint
    assert compute_fingerprint(replace(config, norm_eps=1e-6), tensors, files) != checkpoint.fingerprint
    tensors["other.weight"] = tensors.pop("norm.weight")
    assert compute_fingerprint(config, tensors, files) != checkpoint.fingerprint


def test_large_files_are_sampled_from_end_to_end(gguf_recipe, tmp_path):
    checkpoint = load_gguf(gguf_recipe("llama").write(tmp_path / "a.gguf"))
    path = tmp_path / "large"

    def fingerprint(position=None, size=8 << 20):
        with path.open("wb") as file:
            file.truncate(size)
            if position is not None:
                file.seek(position)
                file.write(b"\1")
        return compute_fingerprint(checkpoint.config, checkpoint.tensors, [path])

    base = fingerprint()
    assert fingerprint() == base
    assert fingerprint(size=(8 << 20) + 1) != base
    in_the_middle = 500 * ((8 << 20) - 1024) // 1023  # the 501st of 1,024 windows
    for position in (0, 1023, in_the_middle, (8 << 20) - 1):
        assert fingerprint(position) != base


def test_a_file_that_went_away(gguf_recipe, tmp_path):
    checkpoint = load_gguf(gguf_recipe("llama").write(tmp_path / "a.gguf"))
    with pytest.raises(CheckpointError, match="cannot be read"):
        compute_fingerprint(checkpoint.config, checkpoint.tensors, [tmp_path / "gone"])
