import json

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from engine.checkpoint.architectures.registry import ARCHITECTURES
from engine.checkpoint.huggingface_tokenizer import read_tokenizer
from engine.checkpoint.metadata import Metadata
from engine.interface.errors import CheckpointError

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES_ONLY = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def build(pre_tokenizer=None, normalizer=None, post_processor=None):
    vocabulary = {token: i for i, token in enumerate([*ALPHABET, "he", "Ġhe"])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[("h", "e"), ("Ġ", "he")]))
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.add_tokens(["<tool>"])
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    return tokenizer


def read(folder, tokenizer=None, model_type="llama", config=None, **settings):
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return read_tokenizer(
        folder, architecture=ARCHITECTURES[model_type], config=Metadata(config or {}, path=folder)
    )


def split(pattern):
    step = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([step, BYTES_ONLY])


def test_tokens_merges_and_special_tokens(tmp_path):
    data = read(tmp_path, build(), eos_token="</s>", bos_token={"content": "<s>", "special": True})
    assert data.tokens == (*ALPHABET, "he", "Ġhe", "<s>", "</s>", "<tool>")
    assert data.merges == (("h", "e"), ("Ġ", "he"))
    assert data.special_token_ids == {258, 259}
    assert data.added_token_ids == {260}
    assert (data.bos_token_id, data.eos_token_id, data.add_bos) == (258, 259, False)
    assert (data.kind, data.normalization, data.chat_template) == ("bpe", "none", None)


@pytest.mark.parametrize(
    ("pre_tokenizer", "name"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), "gpt-2"),
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)]), "smollm"),
        (split(GPT2_PATTERN), "gpt-2"),
        (split(LLAMA3_PATTERN), "llama-bpe"),
        (split(LLAMA3_PATTERN.replace("{1,3}", "")), "qwen2"),
        (split(r"\w+|\W+"), r"regex:\w+|\W+"),
    ],
)
def test_pre_tokenizers(tmp_path, pre_tokenizer, name):
    assert read(tmp_path, build(pre_tokenizer)).pre_tokenizer == name


@pytest.mark.parametrize(
    ("pre_tokenizer", "message"),
    [
        (pre_tokenizers.Metaspace(), "not byte-level"),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), "add_prefix_space"),
        (
            pre_tokenizers.Sequence([pre_tokenizers.Digits(False), pre_tokenizers.ByteLevel(False)]),
            "no single",
        ),
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(True), BYTES_ONLY]), "no single pattern"),
        (BYTES_ONLY, "no single pattern"),
        (pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "isolated"), BYTES_ONLY]), "splits by"),
        (
            pre_tokenizers.Sequence([pre_tokenizers.Split(tokenizers.Regex(" "), "removed"), BYTES_ONLY]),
            "splits by",
        ),
    ],
)
def test_pre_tokenizers_without_a_single_pattern_are_refused(tmp_path, pre_tokenizer, message):
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path, build(pre_tokenizer))


def test_normalizers(tmp_path):
    assert read(tmp_path, build(normalizer=normalizers.NFC())).normalization == "nfc"
    assert read(tmp_path, build(normalizer=normalizers.Sequence([]))).normalization == "none"
    with pytest.raises(CheckpointError, match=r"normalizer .*Lowercase"):
        read(tmp_path, build(normalizer=normalizers.Lowercase()))


def test_the_begin_token_of_a_post_processor(tmp_path):
    template = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 258)])
    llama3 = processors.Sequence([processors.ByteLevel(), template])
    data = read(tmp_path, build(post_processor=llama3), bos_token="<s>")
    assert (data.bos_token_id, data.add_bos) == (258, True)
    assert read(tmp_path, build(post_processor=template), eos_token="</s>").add_bos
    assert not read(tmp_path, build(), bos_token="<s>", add_bos_token=True).add_bos  # as in transformers
    with pytest.raises(CheckpointError, match="begins texts with '<s>', but the begin token is '</s>'"):
        read(tmp_path, build(post_processor=template), bos_token="</s>")


def test_begin_and_end_tokens_by_id_only_where_they_are_special(tmp_path):
    data = read(tmp_path, build(), config={"bos_token_id": 1, "eos_token_id": [259, 260]})
    assert (data.bos_token_id, data.eos_token_id) == (None, 259)  # 1 is an ordinary byte


def test_special_tokens_map(tmp_path):
    (tmp_path / "special_tokens_map.json").write_text(
        '{"eos_token": {"content": "</s>"}, "additional_special_tokens": ["<tool>", {"content": "<absent>"}]}'
    )
    data = read(tmp_path, build())
    assert data.eos_token_id == 259
    assert data.special_token_ids == {258, 259, 260}
    assert data.added_token_ids == frozenset()


def test_chat_template_sources(tmp_path):
    assert read(tmp_path, build(), chat_template="plain").chat_template == "plain"
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    assert read(tmp_path, chat_template=named).chat_template == "yes"
    assert read(tmp_path, chat_template=named[:1]).chat_template is None
    (tmp_path / "chat_template.json").write_text('{"chat_template": "from json"}')
    assert read(tmp_path).chat_template == "from json"
    (tmp_path / "chat_template.jinja").write_text("from jinja")
    assert read(tmp_path).chat_template == "from jinja"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: cannot be read"):
        read(tmp_path)


def write_vocab_and_merges(folder):
    vocabulary = {token: i for i, token in enumerate([*ALPHABET, "he", "#e", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nh e\n# e\n", encoding="utf-8")


def test_vocab_and_merges(tmp_path):
    write_vocab_and_merges(tmp_path)
    data = read(tmp_path, model_type="gpt2", config={"eos_token_id": 258})
    assert data.merges == (("h", "e"), ("#", "e"))  # a merge of "#" is no comment
    assert (data.pre_tokenizer, data.normalization) == ("gpt-2", "none")
    assert (data.eos_token_id, data.special_token_ids) == (258, {258})
    (tmp_path / "added_tokens.json").write_text('{"<tool>": 259, "<|im_end|>": 260}')
    decoder = {"260": {"content": "<|im_end|>", "special": True}}
    qwen = read(tmp_path, model_type="qwen2", added_tokens_decoder=decoder, eos_token="<|im_end|>")
    assert (qwen.pre_tokenizer, qwen.normalization) == ("qwen2", "nfc")
    assert qwen.tokens[259:] == ("<tool>", "<|im_end|>")
    assert (qwen.added_token_ids, qwen.special_token_ids, qwen.eos_token_id) == ({259}, {260}, 260)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        read(tmp_path, model_type="llama")


def test_unused_ids_are_special_and_have_distinct_names(tmp_path):
    write_vocab_and_merges(tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<tool>": 261}')
    data = read(tmp_path, model_type="gpt2")
    assert len(data.tokens) == len(set(data.tokens)) == 262
    assert {259, 260} <= data.special_token_ids
    (tmp_path / "added_tokens.json").write_text('{"<tool>": 2000000000}')
    with pytest.raises(
        CheckpointError, match="highest token id is 2000000000, but there are only 260 tokens"
    ):
        read(tmp_path, model_type="gpt2")


def edit(folder, change):
    build().save(str(folder / "tokenizer.json"))
    document = json.loads((folder / "tokenizer.json").read_text())
    change(document)
    (folder / "tokenizer.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document.pop("model"), "not byte-level BPE"),
        (lambda document: document["model"].update(type="Unigram"), "'Unigram', not byte-level BPE"),
        (lambda document: document["model"].update(byte_fallback=True), "not byte-level BPE"),
        (lambda document: document["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix"),
        (lambda document: document["model"].update(vocab=[]), "vocabulary is missing or empty"),
        (lambda document: document["model"].update(vocab={"a": -1}), "token 'a' has the id -1"),
        (lambda document: document["model"].update(vocab={"a": "b"}), "token 'a' has the id 'b'"),
        (lambda document: document["model"]["vocab"].update(zz=0), "share the id 0"),
        (lambda document: document["model"].update(merges=["a b c"]), "is not a pair of tokens"),
        (lambda document: document["model"].update(merges=[["a", 1]]), "is not a pair of tokens"),
        (lambda document: document["model"].update(merges={"a": "b"}), "merges must be a list"),
        (lambda document: document.update(pre_tokenizer=None), "not byte-level"),
        (
            lambda document: document.update(pre_tokenizer={"type": "Sequence", "pretokenizers": 5}),
            "not byte-level",
        ),
        (lambda document: document.update(added_tokens=[5]), "a list of objects"),
        (lambda document: document.update(added_tokens=[{"id": 1, "content": "he"}]), "has two ids"),
        (lambda document: document["added_tokens"][0].update(lstrip=True), "with lstrip is not supported"),
    ],
)
def test_broken_tokenizer_files(tmp_path, change, message):
    edit(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path)


def test_a_folder_without_tokenizer(tmp_path):
    with pytest.raises(CheckpointError, match="no tokenizer"):
        read(tmp_path)
    with pytest.raises(CheckpointError, match="eos_token must be a token of the vocabulary, got '<gone>'"):
        read(tmp_path, build(), eos_token="<gone>")


def test_the_token_that_a_post_processor_puts_behind_a_text(tmp_path):
    template = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 259)])
    for post_processor in (template, processors.Sequence([processors.ByteLevel(), template])):
        data = read(tmp_path, build(post_processor=post_processor), eos_token="</s>")
        assert (data.suffix_token_id, data.add_bos) == (259, False)
    both = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 258), ("</s>", 259)])
    data = read(tmp_path, build(post_processor=both), bos_token="<s>", eos_token="</s>")
    assert (data.suffix_token_id, data.add_bos) == (259, True)
    assert read(tmp_path, build(), eos_token="</s>").suffix_token_id is None
