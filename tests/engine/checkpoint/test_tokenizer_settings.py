"""Settings of tokenizer.json that change ids: equal to transformers, or refused by name."""

import itertools
import json

import pytest
import tokenizers
from tokenizers import AddedToken, models, pre_tokenizers, processors
from transformers import AutoTokenizer

from engine.checkpoint.architectures.registry import ARCHITECTURES
from engine.checkpoint.gguf_tokenizer import read_tokenizer as read_gguf_tokenizer
from engine.checkpoint.huggingface_tokenizer import read_tokenizer
from engine.checkpoint.metadata import Metadata
from engine.interface.errors import CheckpointError
from server.text import Tokenizer

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
BEGIN, END = 256, 257
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def template(*, begin, end):
    parts = [*(["<b>"] if begin else []), "$A", *(["<e>"] if end else [])]
    specials = [("<b>", BEGIN), ("<e>", END)]
    return processors.TemplateProcessing(single=" ".join(parts), special_tokens=specials)


BYTE_LEVEL = processors.ByteLevel(trim_offsets=False)
POST_PROCESSORS = {
    "none": None,
    "byte level": BYTE_LEVEL,
    "begin": template(begin=True, end=False),
    "end": template(begin=False, end=True),
    "both": template(begin=True, end=True),
    "byte level, begin": processors.Sequence([BYTE_LEVEL, template(begin=True, end=False)]),
}


def write(folder, *, post_processor=None, settings=None, pattern=None, model=None, words=()):
    """Write a folder as transformers reads it; `model` changes fields of the BPE model."""
    vocabulary = {character: number for number, character in enumerate(ALPHABET)}
    vocabulary |= {"<b>": BEGIN, "<e>": END} | {word: END + 1 + i for i, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    tokenizer.pre_tokenizer = byte_level
    if pattern is not None:
        split = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.add_special_tokens([AddedToken("<b>", special=True), AddedToken("<e>", special=True)])
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    document = json.loads(tokenizer.to_str())
    document["model"] |= model or {}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    names = {"bos_token": "<b>", "eos_token": "<e>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | (settings or {})))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def read_as(family, folder):
    config = Metadata({}, path=folder)
    return Tokenizer(read_tokenizer(folder, architecture=ARCHITECTURES[family], config=config))


def read(folder):
    return read_as("llama", folder)


@pytest.mark.parametrize("name", POST_PROCESSORS)
def test_begin_and_end_tokens_are_those_of_transformers_but_for_the_end(tmp_path, name):
    """An end token behind a prompt is left out on purpose: a prompt is there to be continued."""
    for add_bos, add_eos in itertools.product((None, True, False), repeat=2):
        settings = {"add_bos_token": add_bos, "add_eos_token": add_eos}
        settings = {key: value for key, value in settings.items() if value is not None}
        write(tmp_path, post_processor=POST_PROCESSORS[name], settings=settings)
        theirs = AutoTokenizer.from_pretrained(str(tmp_path)).encode("hi")
        without_end = theirs[:-1] if theirs[-1] == END else theirs
        assert read(tmp_path).encode("hi") == without_end, settings


@pytest.mark.parametrize("model_type", ["gpt2", "qwen2"])
@pytest.mark.parametrize("add_bos", [None, True, False])
def test_without_a_tokenizer_json_the_setting_decides(tmp_path, model_type, add_bos):
    vocabulary = {character: number for number, character in enumerate(ALPHABET)} | {"<|endoftext|>": 256}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    settings = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    settings |= {} if add_bos is None else {"add_bos_token": add_bos}
    settings["tokenizer_class"] = "GPT2Tokenizer" if model_type == "gpt2" else "Qwen2Tokenizer"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    ours = read_as(model_type, tmp_path)
    assert ours.encode("hi") == AutoTokenizer.from_pretrained(str(tmp_path)).encode("hi")


@pytest.mark.parametrize("ignores", [True, False])
@pytest.mark.parametrize("pattern", [None, LLAMA3_PATTERN], ids=["gpt-2", "llama 3"])
def test_ignore_merges_is_the_field_and_not_the_pattern(tmp_path, pattern, ignores):
    write(tmp_path, pattern=pattern, model={"ignore_merges": ignores}, words=("hello",))
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("hello", "hello hello", "say hello"):
        assert read(tmp_path).encode(text) == reference.encode(text).ids
    assert (len(read(tmp_path).encode("hello")) == 1) is ignores


@pytest.mark.parametrize(
    ("change", "named"),
    [({"model": {"dropout": 0.1}}, "dropout"), ({"model": {"byte_fallback": True}}, "byte-level BPE")],
    ids=["dropout", "byte_fallback"],
)
def test_settings_of_the_model_that_change_ids_are_refused(tmp_path, change, named):
    with pytest.raises(CheckpointError, match=named):
        read(write(tmp_path, **change))


@pytest.mark.parametrize("construct", [r"\h", r"\R", r"\K", "&&"])
def test_a_pattern_that_means_something_else_here_is_refused(tmp_path, construct):
    pattern = rf"[a-z{construct}[aeiou]]+" if construct == "&&" else rf"\w+|{construct}+"
    write(tmp_path)
    path = tmp_path / "tokenizer.json"
    document = json.loads(path.read_text())
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    byte_level = document["pre_tokenizer"] | {"use_regex": False}
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    path.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json.*in its pattern"):
        read(tmp_path)
    split["pattern"]["Regex"], split["behavior"], split["invert"] = r"\w+", "Removed", True
    path.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="removes the text"):
        read(tmp_path)


def test_an_unknown_token_for_bytes_that_are_missing_is_refused(tmp_path):
    write(tmp_path, model={"unk_token": "<b>"})
    assert read(tmp_path).encode("hi")
    path = tmp_path / "tokenizer.json"
    document = json.loads(path.read_text())
    del document["model"]["vocab"]["Ā"]
    path.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="unk_token"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "is_llama3"), [("llama-bpe", True), ("falcon3", True), ("smaug-bpe", False), ("dbrx", False)]
)
def test_only_llama_3_of_its_patterns_users_ignores_merges(tmp_path, name, is_llama3):
    values = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": [*ALPHABET, "hello", "<s>"],
        "tokenizer.ggml.token_type": [1] * 257 + [3],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": 257,
    }
    data = read_gguf_tokenizer(Metadata(values, path=tmp_path / "model.gguf"))
    assert (data.ignore_merges, data.add_bos) == (is_llama3, is_llama3)
    expected = [257, 256] if is_llama3 else [ALPHABET.index(character) for character in "hello"]
    assert Tokenizer(data).encode("hello") == expected
