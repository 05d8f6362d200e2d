"""generation_config.json and `general.sampling.*`: what is read, and what is only named."""

import json
import logging
from pathlib import Path

import pytest

from engine.checkpoint.generation_defaults import read_generation_config, read_gguf_sampling
from engine.checkpoint.metadata import Metadata
from engine.interface.errors import CheckpointError

SIX = {
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.9,
    "min_p": 0.05,
    "typical_p": 0.8,
    "repetition_penalty": 1.1,
}


def of_file(values):
    text = json.dumps(values)  # as in a file: no tuple, no integer key
    return read_generation_config(Metadata(json.loads(text), path=Path("generation_config.json")))


def of_gguf(**values):
    keys = {f"general.sampling.{name}": value for name, value in values.items()}
    return read_gguf_sampling(Metadata(keys, path=Path("model.gguf")))


def warnings(caplog, read):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        read()
    return [record.getMessage() for record in caplog.records]


def test_all_six_of_a_generation_config(caplog):
    assert of_file({}) == {}
    assert of_file(SIX | {"do_sample": True, "eos_token_id": 3, "max_new_tokens": 9}) == SIX
    assert of_file(dict.fromkeys(SIX)) == {}
    for name, value in SIX.items():
        assert of_file({name: value}) == {name: value}
    assert not caplog.records


def test_do_sample_false_is_greedy_and_absent_is_not():
    assert of_file({"do_sample": False}) == {"temperature": 0.0}
    assert of_file(SIX | {"do_sample": False}) == SIX | {"temperature": 0.0}
    assert of_file(SIX | {"do_sample": None}) == SIX


@pytest.mark.parametrize(
    ("key", "value", "neutral"),
    [
        ("num_beams", 4, 1),
        ("no_repeat_ngram_size", 3, 0),
        ("penalty_alpha", 0.6, None),
        ("guidance_scale", 1.5, 1.0),
        ("suppress_tokens", [5], []),
        ("forced_eos_token_id", 2, None),
        ("stop_strings", ["x"], None),
    ],
)
def test_what_else_changes_answers_is_named(caplog, key, value, neutral):
    assert warnings(caplog, lambda: of_file({key: neutral})) == []
    [message] = warnings(caplog, lambda: of_file({key: value}))
    assert message.startswith(f"generation_config.json: {key} = ")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("temperature", 2.5, "temperature must be between 0 and 2, got 2.5"),
        ("top_p", 0.0, "top_p must be greater than 0"),
        ("top_k", 1.5, "top_k must be an integer"),
        ("repetition_penalty", 0.0, "repetition_penalty must be between 0.01 and 10"),
        ("min_p", "low", "min_p must be a number"),
        ("do_sample", 1, "do_sample must be true or false"),
    ],
)
def test_values_that_no_request_could_give_are_refused_with_the_files_name(key, value, message):
    with pytest.raises(CheckpointError, match=rf"generation_config\.json: {message}"):
        of_file({key: value})


def test_all_that_gguf_has():
    single = 0.6000000238418579  # what a file's float32 says for 0.6
    assert of_gguf(temp=single, top_k=20, top_p=0.8999999761581421, min_p=0.05000000074505806) == {
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.05,
    }
    assert of_gguf(penalty_repeat=1.100000023841858) == {"repetition_penalty": 1.1}
    assert of_gguf(temp=0.3) == {"temperature": 0.3}


def test_gguf_switches_off_with_zero_and_less(caplog):
    assert of_gguf(temp=-1.0, top_k=-1, penalty_repeat=1.5, penalty_last_n=0) == {
        "temperature": 0.0,
        "top_k": 0,
    }
    assert not caplog.records


def test_what_else_gguf_has_is_named(caplog):
    assert warnings(caplog, lambda: of_gguf(mirostat=0, xtc_probability=0.0, penalty_last_n=64)) == []
    for key, value in {"mirostat": 2, "xtc_probability": 0.5, "sequence": "top_k;temperature"}.items():
        [message] = warnings(caplog, lambda key=key, value=value: of_gguf(**{key: value}))
        assert message.startswith(f"model.gguf: general.sampling.{key} = ")
    read = {}
    [message] = warnings(caplog, lambda: read.update(of_gguf(penalty_repeat=1.5, penalty_last_n=64)))
    assert "penalty_last_n = 64 is not applied" in message
    assert read == {"repetition_penalty": 1.5}


def test_a_gguf_value_out_of_range_is_refused_with_the_files_name():
    with pytest.raises(CheckpointError, match=r"model\.gguf: temperature must be between 0 and 2, got 5\.0"):
        of_gguf(temp=5.0)
