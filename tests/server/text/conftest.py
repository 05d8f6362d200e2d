"""Vocabularies for the tests of text: the default model's, and small ones trained here."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as ReferenceTokenizer

from engine.checkpoint import Checkpoint, TokenizerData
from server.text import Tokenizer

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_start|>user")
LATER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUSTOM = r"\p{L}{1,4}|(\d{2})| +(?=\S)"  # leaves gaps, has a group


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def reference_pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    """Build what the models of that name ship in their tokenizer.json."""
    if name == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "smollm":
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    if name == "llama-bpe":
        return split(LATER % "{1,3}")
    return split(LATER % "" if name == "qwen2" else name.removeprefix("regex:"))


def reference_tokenizer(data: TokenizerData) -> ReferenceTokenizer:
    """Build the `tokenizers` twin of a vocabulary."""
    vocab = {token: token_id for token_id, token in enumerate(data.tokens)}
    model = models.BPE(vocab=vocab, merges=list(data.merges), ignore_merges=data.ignore_merges)
    reference = ReferenceTokenizer(model)
    if data.normalization == "nfc":
        reference.normalizer = normalizers.NFC()
    reference.pre_tokenizer = reference_pre_tokenizer(data.pre_tokenizer)
    reference.decoder = decoders.ByteLevel()
    for token_ids, special in ((data.special_token_ids, True), (data.added_token_ids, False)):
        added = [AddedToken(data.tokens[i], special=special, normalized=False) for i in sorted(token_ids)]
        (reference.add_special_tokens if special else reference.add_tokens)(added)
    return reference


def train(name: str, *, all_bytes: bool = True, special: tuple[str, ...] = SPECIAL) -> TokenizerData:
    """Train a small vocabulary on this folder's own sources and some sentences."""
    corpus = [path.read_text() for path in Path(__file__).parent.glob("*.py")]
    corpus += [
        "Łódź — ein Satz. Наука и жизнь, 科学と技術 1234567 👩‍👩‍👧 I'LL say it's 10,000.   \n\n\n"
    ] * 50
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if all_bytes else [],
        special_tokens=list(special),
    )
    reference = ReferenceTokenizer(models.BPE())
    reference.pre_tokenizer = reference_pre_tokenizer(name)
    reference.train_from_iterator(corpus, trainer)
    model = json.loads(reference.to_str())["model"]
    ids = model["vocab"]
    return TokenizerData(
        tokens=tuple(sorted(ids, key=ids.__getitem__)),
        merges=tuple((left, right) for left, right in model["merges"]),
        special_token_ids=frozenset(ids[token] for token in special),
        pre_tokenizer=name,
        ignore_merges=name == "llama-bpe",
        normalization="nfc" if name == "qwen2" else "none",
    )


@pytest.fixture(scope="session")
def build_reference() -> Callable[[TokenizerData], ReferenceTokenizer]:
    return reference_tokenizer


@pytest.fixture(scope="session")
def train_vocabulary() -> Callable[..., TokenizerData]:
    return train


@pytest.fixture(scope="session", params=["gpt-2", "smollm", "llama-bpe", "qwen2", f"regex:{CUSTOM}"])
def trained(request: pytest.FixtureRequest) -> TokenizerData:
    return train(request.param)


@pytest.fixture(scope="session")
def default_data(default_checkpoint: Checkpoint) -> TokenizerData:
    return default_checkpoint.tokenizer


@pytest.fixture(scope="session")
def default_tokenizer(default_data: TokenizerData) -> Tokenizer:
    return Tokenizer(default_data)


@pytest.fixture(scope="session")
def default_reference(default_data: TokenizerData) -> ReferenceTokenizer:
    return reference_tokenizer(default_data)
