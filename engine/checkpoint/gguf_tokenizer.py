"""The tokenizer of a GGUF file: byte-level BPE from its metadata."""

from gguf.constants import TokenType

from engine.checkpoint import pre_tokenizers
from engine.checkpoint.checkpoint import TokenizerData
from engine.checkpoint.metadata import Metadata, shorten
from engine.interface.errors import CheckpointError

_SPECIAL_TYPES = (
    TokenType.CONTROL,
    TokenType.UNUSED,
)  # unused: padding of the vocabulary, decodes to nothing

_END_TOKENS = frozenset({"<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>"})
"""Control tokens that end a text or turn; converters before 2024-05 stored one of them only."""


def read_tokenizer(metadata: Metadata) -> TokenizerData:
    """Read vocabulary, merges, special tokens and chat template.

    Raises CheckpointError when the vocabulary is not byte-level BPE or its parts contradict each other.
    """
    model = metadata.text("tokenizer.ggml.model")
    if model != "gpt2":
        raise CheckpointError(
            f"{metadata.path}: tokenizer.ggml.model {shorten(model)} is not supported; supported is "
            'byte-level BPE, which GGUF calls "gpt2" ("llama" is SentencePiece)'
        )
    name = metadata.text("tokenizer.ggml.pre", default="missing")
    pre_tokenizer = pre_tokenizers.from_gguf(name, metadata.path)
    is_llama3 = name in pre_tokenizers.GGUF_LLAMA3
    tokens = _read_tokens(metadata)
    types = _read_token_types(metadata, len(tokens))
    eos_token_id = _read_token_id(metadata, "eos", len(tokens))
    adds_eos = metadata.boolean("tokenizer.ggml.add_eos_token", default=False)
    return TokenizerData(
        tokens=tokens,
        merges=_read_merges(metadata),
        special_token_ids=frozenset(i for i, kind in enumerate(types) if kind in _SPECIAL_TYPES),
        added_token_ids=frozenset(i for i, kind in enumerate(types) if kind == TokenType.USER_DEFINED),
        pre_tokenizer=pre_tokenizer,
        ignore_merges=is_llama3,
        normalization="nfc" if pre_tokenizer == "qwen2" else "none",
        bos_token_id=_read_token_id(metadata, "bos", len(tokens)),
        eos_token_id=eos_token_id,
        add_bos=metadata.boolean("tokenizer.ggml.add_bos_token", default=is_llama3),
        suffix_token_id=eos_token_id if adds_eos else None,
        chat_template=metadata.find_text("tokenizer.chat_template"),
    )


def read_stop_token_ids(metadata: Metadata, tokenizer: TokenizerData) -> frozenset[int]:
    """Return the ids of the end-of-text, end-of-turn and end-of-message tokens."""
    num_tokens = len(tokenizer.tokens)
    named = (_read_token_id(metadata, kind, num_tokens) for kind in ("eos", "eot", "eom"))
    known = (
        token_id for token_id in tokenizer.special_token_ids if tokenizer.tokens[token_id] in _END_TOKENS
    )
    return frozenset(token_id for token_id in (*named, *known) if token_id is not None)


def _read_tokens(metadata: Metadata) -> tuple[str, ...]:
    tokens = metadata.find_list("tokenizer.ggml.tokens")
    if not tokens:
        raise CheckpointError(f"{metadata.path}: tokenizer.ggml.tokens is missing or empty")
    return tuple(_text(metadata, "tokenizer.ggml.tokens", token) for token in tokens)


def _read_token_types(metadata: Metadata, num_tokens: int) -> list[object]:
    key = "tokenizer.ggml.token_type"
    types = metadata.find_list(key)
    if types is None:
        return [TokenType.NORMAL] * num_tokens
    if len(types) != num_tokens:
        raise CheckpointError(f"{metadata.path}: {key} has {len(types)} entries for {num_tokens} tokens")
    return types


def _read_merges(metadata: Metadata) -> tuple[tuple[str, str], ...]:
    key = "tokenizer.ggml.merges"
    merges = metadata.find_list(key)
    if merges is None:
        raise CheckpointError(f"{metadata.path}: {key} is missing; byte-level BPE needs it")
    pairs = []
    for merge in merges:
        left, _, right = _text(metadata, key, merge).partition(" ")
        if not left or not right or " " in right:
            raise metadata.error(key, "pairs of tokens with one space between", merge)
        pairs.append((left, right))
    return tuple(pairs)


def _read_token_id(metadata: Metadata, kind: str, num_tokens: int) -> int | None:
    key = f"tokenizer.ggml.{kind}_token_id"
    token_id = metadata.find_integer(key)
    if token_id is None or 0 <= token_id < num_tokens:
        return token_id
    raise metadata.error(key, f"a token id below {num_tokens}", token_id)


def _text(metadata: Metadata, key: str, value: object) -> str:
    if not isinstance(value, str):
        raise metadata.error(key, "a list of strings", value)
    return value
