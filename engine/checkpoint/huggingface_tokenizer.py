"""The tokenizer of a Hugging Face folder: tokenizer.json, or vocab.json with merges.txt."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from engine.checkpoint import pre_tokenizers
from engine.checkpoint.architectures.architecture import Architecture
from engine.checkpoint.checkpoint import TokenizerData
from engine.checkpoint.metadata import MAX_INTEGER, Metadata, read_json, shorten
from engine.checkpoint.vocabulary import printable_bytes
from engine.interface.errors import CheckpointError

_MAX_VOCABULARY_BYTES = 1 << 28
_MAX_SMALL_BYTES = 1 << 24
_GPT2_END = "<|endoftext|>"  # in vocab.json among ordinary tokens
_MAX_GAP = 1 << 16  # ids without a token, below the highest one


@dataclass(kw_only=True)
class _Vocabulary:
    """What the files of a folder say together, while they are read."""

    path: Path  # the file to blame
    ids: dict[str, int]
    merges: tuple[tuple[str, str], ...]
    pre_tokenizer: str
    normalization: Literal["none", "nfc"]
    special: set[str] = field(default_factory=set)
    added: set[str] = field(default_factory=set)
    first_token: str | None = None  # put before every text by the post-processor
    last_token: str | None = None  # put behind it
    ignore_merges: bool = False
    has_tokenizer_json: bool = False  # which alone says what begins a text, as in transformers

    def add(self, token: str, token_id: int, *, special: bool) -> None:
        if self.ids.setdefault(token, token_id) != token_id:
            raise CheckpointError(
                f"{self.path}: token {shorten(token)} has two ids, {self.ids[token]} and {token_id}"
            )
        (self.special if special else self.added).add(token)


def read_tokenizer(folder: Path, *, architecture: Architecture, config: Metadata) -> TokenizerData:
    """Read vocabulary, merges, special tokens and chat template of a folder.

    `architecture` knows how vocab.json and merges.txt split text, which they do not say; `config`
    (config.json) gives the begin and end tokens that the tokenizer's own files leave out.
    Raises CheckpointError when the files are missing, corrupt, or not byte-level BPE.
    """
    settings = _read_optional(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file():
        vocabulary = _read_tokenizer_json(folder / "tokenizer.json")
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocabulary = _read_vocab_and_merges(folder, architecture, settings)
    else:
        raise CheckpointError(
            f"{folder}: no tokenizer: tokenizer.json, or vocab.json and merges.txt, must lie there "
            "(tokenizer.model is SentencePiece, which is not supported)"
        )
    sources = (settings, _read_optional(folder / "special_tokens_map.json"))
    eos = _find_token(vocabulary, sources, config, "eos")
    bos = _find_token(vocabulary, sources, config, "bos") or vocabulary.first_token
    if vocabulary.first_token not in (None, bos):
        raise CheckpointError(
            f"{vocabulary.path}: the post-processor begins texts with {shorten(vocabulary.first_token)}, "
            f"but the begin token is {shorten(bos)}"
        )
    vocabulary.special.update(token for token in (bos, eos) if token is not None)
    vocabulary.special.update(_additional_special_tokens(vocabulary, sources))
    return TokenizerData(
        tokens=_tokens_by_id(vocabulary),
        merges=vocabulary.merges,
        special_token_ids=frozenset(vocabulary.ids[token] for token in vocabulary.special)
        | _gaps(vocabulary),
        added_token_ids=frozenset(vocabulary.ids[token] for token in vocabulary.added - vocabulary.special),
        pre_tokenizer=vocabulary.pre_tokenizer,
        ignore_merges=vocabulary.ignore_merges,
        normalization=vocabulary.normalization,
        bos_token_id=None if bos is None else vocabulary.ids[bos],
        eos_token_id=None if eos is None else vocabulary.ids[eos],
        add_bos=bos is not None and _adds_bos(vocabulary, settings),
        suffix_token_id=None if vocabulary.last_token is None else vocabulary.ids.get(vocabulary.last_token),
        chat_template=_read_chat_template(folder, settings),
    )


def _read_optional(path: Path) -> Metadata:
    return read_json(path, max_bytes=_MAX_SMALL_BYTES) if path.is_file() else Metadata({}, path=path)


def _read_tokenizer_json(path: Path) -> _Vocabulary:
    document = read_json(path, max_bytes=_MAX_VOCABULARY_BYTES)
    model = document.find_section("model")
    kind = None if model is None else model.find("type")
    if model is None or kind != "BPE" or model.find("byte_fallback") is True:
        raise CheckpointError(
            f"{path}: the tokenizer model is {shorten(kind)}, not byte-level BPE, which alone is supported"
        )
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.find(key):
            raise CheckpointError(f"{path}: {key} = {shorten(model.find(key))} is not supported")
    vocabulary = _Vocabulary(
        path=path,
        ids=_read_ids(model.find("vocab"), path),
        merges=_parse_merges(model.find_list("merges") or [], path),
        pre_tokenizer=pre_tokenizers.from_huggingface(document.find("pre_tokenizer"), path),
        normalization=_read_normalization(document.find("normalizer"), path),
        first_token=_read_edge_token(document.find("post_processor"), 0),
        last_token=_read_edge_token(document.find("post_processor"), -1),
        ignore_merges=model.boolean("ignore_merges", default=False),
        has_tokenizer_json=True,
    )
    if model.find("unk_token") is not None and not set(printable_bytes()) <= vocabulary.ids.keys():
        raise CheckpointError(
            f"{path}: unk_token {shorten(model.find('unk_token'))} stands for bytes that the vocabulary "
            "lacks, which is not supported"
        )
    for entry in document.find_list("added_tokens") or []:
        if not isinstance(entry, dict):
            raise document.error("added_tokens", "a list of objects", entry)
        _add_token(vocabulary, Metadata(entry, path=path), Metadata(entry, path=path).integer("id"))
    return vocabulary


def _add_token(vocabulary: _Vocabulary, entry: Metadata, token_id: int) -> None:
    token = entry.text("content")
    for key in ("lstrip", "rstrip", "single_word"):
        if entry.boolean(key, default=False):
            raise CheckpointError(f"{entry.path}: added token {shorten(token)} with {key} is not supported")
    vocabulary.add(token, token_id, special=entry.boolean("special", default=False))


def _read_vocab_and_merges(folder: Path, architecture: Architecture, settings: Metadata) -> _Vocabulary:
    if architecture.pre_tokenizer is None:
        raise CheckpointError(
            f"{folder}: tokenizer.json is missing; vocab.json and merges.txt do not say how a "
            f"{architecture.name} model splits text into words"
        )
    path = folder / "vocab.json"
    vocabulary = _Vocabulary(
        path=path,
        ids=_read_ids(read_json(path, max_bytes=_MAX_VOCABULARY_BYTES).values, path),
        merges=_read_merges_file(folder / "merges.txt"),
        pre_tokenizer=architecture.pre_tokenizer,
        normalization="nfc" if architecture.pre_tokenizer == "qwen2" else "none",
    )
    decoder = settings.find_section("added_tokens_decoder") or Metadata({}, path=settings.path)
    for key in decoder.values:
        entry = decoder.find_section(key)
        if entry is None or not key.isdecimal() or len(key) > 9:
            raise decoder.error("added_tokens_decoder", "objects by token id", key)
        _add_token(vocabulary, entry, int(key))
    added = _read_optional(folder / "added_tokens.json")
    for token in added.values:
        if token not in vocabulary.special:
            vocabulary.add(token, added.integer(token), special=False)
    return vocabulary


def _read_ids(vocab: object, path: Path) -> dict[str, int]:
    if not isinstance(vocab, Mapping) or not vocab:
        raise CheckpointError(f"{path}: the vocabulary is missing or empty")
    for token, token_id in vocab.items():
        if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id <= MAX_INTEGER:
            raise CheckpointError(f"{path}: token {shorten(token)} has the id {shorten(token_id)}")
    return dict(vocab)


def _read_merges_file(path: Path) -> tuple[tuple[str, str], ...]:
    try:
        if path.stat().st_size > _MAX_VOCABULARY_BYTES:
            raise CheckpointError(f"{path}: larger than {_MAX_VOCABULARY_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    lines = text.split("\n")
    start = 1 if lines[0].startswith("#version") else 0  # a later line may begin with "#", too
    return _parse_merges((line for line in lines[start:] if line.strip()), path)


def _parse_merges(merges: Iterable[object], path: Path) -> tuple[tuple[str, str], ...]:
    """Read merges written as "left right" or ["left", "right"]."""
    pairs = []
    for merge in merges:
        parts = merge.strip("\r").split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise CheckpointError(f"{path}: merge {shorten(merge)} is not a pair of tokens")
        pairs.append((parts[0], parts[1]))
    return tuple(pairs)


def _read_normalization(normalizer: object, path: Path) -> Literal["none", "nfc"]:
    steps: object = [normalizer]
    if isinstance(normalizer, dict) and normalizer.get("type") == "Sequence":
        steps = normalizer.get("normalizers")
    if steps in ([], [None]):
        return "none"
    if steps == [{"type": "NFC"}]:
        return "nfc"
    raise CheckpointError(
        f"{path}: normalizer {shorten(repr(normalizer))} is not supported; supported: none and NFC"
    )


def _read_edge_token(post_processor: object, place: int) -> str | None:
    """Return the special token that the post-processor puts before (place 0) or behind (-1) a text."""
    if not isinstance(post_processor, dict):
        return None
    if post_processor.get("type") == "Sequence":
        steps = post_processor.get("processors")
        found = (_read_edge_token(step, place) for step in steps) if isinstance(steps, list) else ()
        return next((token for token in found if token is not None), None)
    single = post_processor.get("single")
    if post_processor.get("type") != "TemplateProcessing" or not isinstance(single, list) or not single:
        return None
    special = single[place].get("SpecialToken") if isinstance(single[place], dict) else None
    token = special.get("id") if isinstance(special, dict) else None
    return token if isinstance(token, str) else None


def _find_token(
    vocabulary: _Vocabulary, sources: tuple[Metadata, ...], config: Metadata, kind: str
) -> str | None:
    """Find the begin or end token: by text in the tokenizer's files, else by id in config.json."""
    for source in sources:
        value = source.find(f"{kind}_token")
        token = value.get("content") if isinstance(value, dict) else value
        if isinstance(token, str):
            if token not in vocabulary.ids:
                raise source.error(f"{kind}_token", "a token of the vocabulary", token)
            return token
    token_id = config.find(f"{kind}_token_id")
    token_id = token_id[0] if isinstance(token_id, list) and token_id else token_id
    # config.json often has ids that only its class's defaults put there: take no ordinary token for special
    candidates = vocabulary.special | ({_GPT2_END} & vocabulary.ids.keys())
    return next((token for token in candidates if vocabulary.ids[token] == token_id), None)


def _additional_special_tokens(vocabulary: _Vocabulary, sources: tuple[Metadata, ...]) -> set[str]:
    """Return the tokens of the vocabulary that the tokenizer's files list as special besides those two."""
    found: set[str] = set()
    for source in sources:
        for value in source.find_list("additional_special_tokens") or []:
            token = value.get("content") if isinstance(value, dict) else value
            if isinstance(token, str) and token in vocabulary.ids:
                found.add(token)
    return found


def _adds_bos(vocabulary: _Vocabulary, settings: Metadata) -> bool:
    """Tell whether texts begin with the begin token, as transformers does.

    It reads add_bos_token only where there is no tokenizer.json. An end token that a post-processor puts
    behind a text is for embeddings alone: other texts are there to be continued.
    """
    if vocabulary.has_tokenizer_json:
        return vocabulary.first_token is not None
    return settings.boolean("add_bos_token", default=False)


def _gaps(vocabulary: _Vocabulary) -> frozenset[int]:
    """Return the ids below the highest one that no token has."""
    used = set(vocabulary.ids.values())
    num_gaps = max(used) + 1 - len(used)
    if num_gaps > _MAX_GAP:
        raise CheckpointError(
            f"{vocabulary.path}: the highest token id is {max(used)}, but there are only {len(used)} tokens"
        )
    return frozenset(range(max(used) + 1)) - used


def _tokens_by_id(vocabulary: _Vocabulary) -> tuple[str, ...]:
    """Return the tokens in order of their ids; an id without a token gets a name that no text contains."""
    by_id = {token_id: f"<|unused_{token_id}|>" for token_id in _gaps(vocabulary)}
    for token, token_id in vocabulary.ids.items():
        if token_id in by_id:
            raise CheckpointError(
                f"{vocabulary.path}: tokens {shorten(by_id[token_id])} and {shorten(token)} share the id "
                f"{token_id}"
            )
        by_id[token_id] = token
    return tuple(by_id[token_id] for token_id in range(len(by_id)))


def _read_chat_template(folder: Path, settings: Metadata) -> str | None:
    """Find the template in chat_template.jinja, chat_template.json or tokenizer_config.json."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            if path.stat().st_size > _MAX_SMALL_BYTES:
                raise CheckpointError(f"{path}: larger than {_MAX_SMALL_BYTES} bytes")
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
    template = _read_optional(folder / "chat_template.json").find_text("chat_template")
    if template is not None:
        return template
    value = settings.find("chat_template")
    if not isinstance(value, list):
        return settings.find_text("chat_template")
    for entry in value:
        if isinstance(entry, dict) and entry.get("name") == "default":
            return Metadata(entry, path=settings.path).find_text("template")
    return None
