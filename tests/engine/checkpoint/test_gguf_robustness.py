"""Whatever happened to the bytes of a file, the answer is a checkpoint or a CheckpointError."""

import struct

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.checkpoint.gguf import load_gguf
from engine.checkpoint.gguf_file import read_gguf
from engine.interface.errors import CheckpointError

COUNTS = 8  # after magic and version: tensors, then metadata keys
FIRST_KEY = 24


def load_bytes(path, content):
    path.write_bytes(content)
    return load_gguf(path)


@pytest.fixture
def content(gguf_recipe, tmp_path):
    recipe = gguf_recipe("llama", Format.Q4_1)
    recipe.tensors["rope_freqs.weight"] = np.ones(8, dtype=np.float32)
    return recipe.write(tmp_path / "whole.gguf").read_bytes()


@given(st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_are_refused_or_load(content, tmp_path, data):
    header = 6500
    damaged = bytearray(content)
    kind = data.draw(st.sampled_from(["truncate", "overwrite", "fill", "delete", "insert"]))
    place = data.draw(st.integers(0, header - 16))
    if kind == "truncate":
        del damaged[data.draw(st.integers(0, len(content) - 1)) :]
    elif kind == "overwrite":
        damaged[place] = data.draw(st.integers(0, 255))
    elif kind == "fill":
        size = data.draw(st.sampled_from([1, 2, 4, 8]))
        damaged[place : place + size] = bytes([data.draw(st.sampled_from([0, 1, 0x7F, 0xFF]))]) * size
    elif kind == "delete":
        del damaged[place : place + data.draw(st.integers(1, 16))]
    else:
        damaged[place:place] = data.draw(st.binary(min_size=1, max_size=8))
    path = tmp_path / "damaged.gguf"
    message = ""
    tensors = {}
    try:
        tensors = load_bytes(path, damaged).tensors
    except CheckpointError as error:
        message = str(error)
    assert bool(tensors) is not (str(path) in message)
    assert all(stored.dequantize().shape == stored.shape for stored in tensors.values())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", "the file is empty"),
        (lambda content: b"GG", "not a GGUF file"),
        (lambda content: b"PK\x03\x04" + content[4:], "not a GGUF file"),
        (lambda content: content[:4] + struct.pack("<I", 1) + content[8:], "GGUF version 1 is not supported"),
        (lambda content: content[:4] + struct.pack(">I", 3) + content[8:], "is not supported"),
        (lambda content: content[:20], "inside its header"),
        (lambda content: content[:1000], "inside its header"),
        (lambda content: content[:-32], "past the end of the file"),
        (lambda content: content[:8] + b"\xff" * 8 + content[16:], "claims 18446744073709551615 tensors"),
        (
            lambda content: content[:16] + b"\xff" * 8 + content[24:],
            "claims 18446744073709551615 metadata keys",
        ),
        (lambda content: content[:24] + b"\xff" * 8 + content[32:], "inside its header"),
    ],
)
def test_the_error_says_what_is_wrong(content, tmp_path, damage, message):
    with pytest.raises(CheckpointError, match=message):
        load_bytes(tmp_path / "damaged.gguf", damage(content))


def gguf_with_metadata(*fields, num_tensors=0, tail=b""):
    keys = b"".join(struct.pack("<Q", len(key)) + key + value for key, value in fields)
    return b"GGUF" + struct.pack("<IQQ", 3, num_tensors, len(fields)) + keys + tail


def array(kind, length, content=b""):
    return struct.pack("<IIQ", 9, kind, length) + content


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (array(0, 2**40), "claims 1099511627776 array elements"),
        (array(10, 1_000_000), "inside its header"),
        (array(8, 1_000_000), "inside its header"),
        (array(9, 1), "nested arrays"),
        (array(99, 1), "unknown type 99"),
        (struct.pack("<I", 77), "unknown type 77"),
        (struct.pack("<IQ", 8, 2) + b"\xff\xfe", "not UTF-8"),
    ],
)
def test_absurd_metadata(tmp_path, value, message):
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_with_metadata((b"key", value)))
    with pytest.raises(CheckpointError, match=message):
        read_gguf(path)


def test_a_key_that_occurs_twice(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(
        gguf_with_metadata((b"key", struct.pack("<IB", 0, 1)), (b"key", struct.pack("<IB", 0, 1)))
    )
    with pytest.raises(CheckpointError, match="'key' occurs twice"):
        read_gguf(path)


def tensor_header(name, shape, kind, offset):
    return (
        struct.pack("<Q", len(name))
        + name
        + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    )


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (tensor_header(b"w", [2**40, 2**40], 0, 0), "past the end"),
        (tensor_header(b"w", [8], 0, 2**63), "past the end"),
        (tensor_header(b"w", [0, 8], 0, 0), "does not fit blocks"),
        (tensor_header(b"w", [33, 8], 8, 0), "does not fit blocks of 32"),
        (tensor_header(b"w", [32], 8, 0), "one dimension but the block format Q8_0"),
        (tensor_header(b"w", [8], 250, 0), "unknown format number 250"),
        (tensor_header(b"w", [1] * 9, 0, 0), "9 dimensions"),
        (tensor_header(b"w", [], 0, 0), "0 dimensions"),
    ],
)
def test_absurd_tensors(tmp_path, header, message):
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_with_metadata(num_tensors=1, tail=header + bytes(64)))
    with pytest.raises(CheckpointError, match=message):
        read_gguf(path)


def test_scalars_of_every_type(tmp_path):
    scalars = {0: ("B", 250), 1: ("b", -3), 2: ("H", 9), 3: ("h", -9), 4: ("I", 2**32 - 1), 5: ("i", -7)}
    scalars |= {6: ("f", 0.5), 7: ("?", True), 10: ("Q", 2**64 - 1), 11: ("q", -(2**63)), 12: ("d", 0.1)}
    fields = [
        (b"k%d" % kind, struct.pack(f"<I{code}", kind, value)) for kind, (code, value) in scalars.items()
    ]
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_with_metadata(*fields))
    metadata = read_gguf(path).metadata
    assert {kind: metadata[f"k{kind}"] for kind in scalars} == {
        kind: value for kind, (_, value) in scalars.items()
    }
    assert isinstance(metadata["k7"], bool)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda recipe: recipe.metadata.pop("embedding_length"), "llama.embedding_length is missing"),
        (lambda recipe: recipe.metadata.update(block_count="two"), "llama.block_count must be an integer"),
        (lambda recipe: recipe.metadata.update(block_count=2**31 - 1), "says 2147483647 layers"),
        (lambda recipe: recipe.metadata.update({"attention.head_count": 0}), "num_heads must be at least 1"),
        (lambda recipe: recipe.metadata.update({"attention.head_count": 3}), "multiple of num_kv_heads"),
        (lambda recipe: recipe.metadata.update({"rope.freq_base": float("nan")}), "must be a finite number"),
        (lambda recipe: recipe.metadata.update({"rope.freq_base": -1.0}), "rope theta must be above"),
        (lambda recipe: recipe.tensors.pop("token_embd.weight"), "token_embd.weight is missing"),
        (lambda recipe: recipe.tokenizer.pop("tokenizer.ggml.tokens"), "tokenizer.ggml.tokens is missing"),
        (lambda recipe: recipe.tokenizer.pop("tokenizer.ggml.merges"), "tokenizer.ggml.merges is missing"),
        (lambda recipe: recipe.tokenizer.update({"tokenizer.ggml.merges": ["ab"]}), "pairs of tokens"),
        (lambda recipe: recipe.tokenizer.update({"tokenizer.ggml.token_type": [1]}), "has 1 entries for 64"),
        (lambda recipe: recipe.tokenizer.update({"tokenizer.ggml.eos_token_id": 64}), "a token id below 64"),
        (lambda recipe: recipe.tokenizer.update({"tokenizer.ggml.tokens": [1, 2]}), "a list of strings"),
        (
            lambda recipe: recipe.tokenizer.update(
                {"tokenizer.ggml.tokens": ["a"] * 65, "tokenizer.ggml.token_type": [1] * 65}
            ),
            "tokenizer has 65 tokens but the model only 64",
        ),
        (lambda recipe: recipe.tensors.update({"blk.0.x.weight": np.ones((2, 8), np.uint8)}), "format I8"),
    ],
)
def test_contradictions(gguf_recipe, tmp_path, change, message):
    recipe = gguf_recipe("llama")
    change(recipe)
    recipe.formats["blk.0.x.weight"] = Format.I8
    path = recipe.write(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match=message) as caught:
        load_gguf(path)
    assert str(path) in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_gguf(tmp_path / "absent.gguf")
    with pytest.raises(CheckpointError, match="cannot be mapped"):
        load_gguf(tmp_path)
