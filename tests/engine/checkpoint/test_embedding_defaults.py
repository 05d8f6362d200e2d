"""modules.json of sentence-transformers and GGUF's pooling_type: what is read, what is refused by name."""

import json
from pathlib import Path

import pytest

from engine.checkpoint.embedding_defaults import (
    EmbeddingDefaults,
    read_embedding_defaults,
    read_gguf_pooling,
)
from engine.checkpoint.metadata import Metadata
from engine.interface.errors import CheckpointError
from engine.interface.pooling import Pooling

PREFIX = "sentence_transformers.models."
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": f"{PREFIX}Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{PREFIX}Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{PREFIX}Normalize"},
]


def read(folder, modules=MODULES, pooling=None, **config):
    if modules is not None:
        (folder / "modules.json").write_text(json.dumps(modules))
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    return read_embedding_defaults(folder, Metadata(config, path=folder / "config.json"))


def flags(*names):
    known = ("cls_token", "mean_tokens", "max_tokens", "weightedmean_tokens", "lasttoken")
    return {f"pooling_mode_{name}": name in names for name in known} | {"word_embedding_dimension": 96}


def test_most_checkpoints_say_nothing(tmp_path):
    assert read(tmp_path, modules=None) == EmbeddingDefaults()
    assert read(tmp_path, modules=None, is_matryoshka=True).is_matryoshka
    assert read(tmp_path, modules=None, matryoshka_dimensions=[32, 64]).is_matryoshka
    assert not read(tmp_path, modules=None, is_matryoshka=False).is_matryoshka


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (flags("lasttoken"), Pooling.LAST),
        (flags("mean_tokens"), Pooling.MEAN),
        ({"pooling_mode": "lasttoken"}, Pooling.LAST),
        ({"pooling_mode": "mean"}, Pooling.MEAN),
    ],
)
def test_the_pooling_of_sentence_transformers(tmp_path, config, expected):
    assert read(tmp_path, pooling=config) == EmbeddingDefaults(pooling=expected)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (flags("cls_token"), "its pooling cls_token"),
        (flags("mean_tokens", "max_tokens"), "its pooling mean_tokens and max_tokens"),
        (flags(), "its pooling none"),
        ({"pooling_mode": "weightedmean"}, "its pooling weightedmean"),
    ],
)
def test_other_poolings_are_named(tmp_path, config, named):
    assert read(tmp_path, pooling=config) == EmbeddingDefaults(unsupported=named)


def test_a_module_that_is_not_applied_is_named(tmp_path):
    dense = {"idx": 3, "name": "3", "path": "3_Dense", "type": f"{PREFIX}Dense"}
    found = read(tmp_path, modules=[*MODULES, dense], pooling=flags("mean_tokens"))
    assert found == EmbeddingDefaults(unsupported="its module Dense (modules.json)")


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ({}, "modules.json: must hold a JSON list, got a dict of 0"),
        ([3], "must hold a list of objects, got 3"),
        ([{"path": ""}], "type is missing"),
        ([{"type": f"{PREFIX}Pooling", "path": "../../etc"}], "path must be the name of a folder beside it"),
        ([{"type": f"{PREFIX}Pooling", "path": "absent"}], "absent/config.json: no such file"),
    ],
)
def test_corrupt_files_are_named(tmp_path, modules, message):
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path, modules=modules)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (None, EmbeddingDefaults()),
        (0, EmbeddingDefaults()),
        (1, EmbeddingDefaults(pooling=Pooling.MEAN)),
        (2, EmbeddingDefaults(unsupported="its pooling cls")),
        (3, EmbeddingDefaults(pooling=Pooling.LAST)),
        (4, EmbeddingDefaults(unsupported="its pooling rank")),
    ],
)
def test_the_pooling_type_of_a_gguf_file(number, expected):
    header = Metadata({"qwen3.pooling_type": number}, path=Path("model.gguf"))
    assert read_gguf_pooling(header, "qwen3") == expected


def test_an_unknown_pooling_type_is_an_error():
    header = Metadata({"llama.pooling_type": 9}, path=Path("model.gguf"))
    with pytest.raises(CheckpointError, match=r"llama\.pooling_type must be one of 0, 1, 2, 3, 4, got 9"):
        read_gguf_pooling(header, "llama")
