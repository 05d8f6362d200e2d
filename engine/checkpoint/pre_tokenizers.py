"""Pre-tokeniser names: from llama.cpp's words and Hugging Face's objects to `TokenizerData.pre_tokenizer`."""

from pathlib import Path

from engine.checkpoint.metadata import shorten
from engine.interface.errors import CheckpointError

GGUF_NAMES = {
    "gpt-2": "gpt-2",
    "phi-2": "gpt-2",
    "mpt": "gpt-2",
    "olmo": "gpt-2",
    "jais": "gpt-2",
    "smollm": "smollm",
    "starcoder": "smollm",
    "refact": "smollm",
    "command-r": "smollm",
    "codeshell": "smollm",
    "exaone": "smollm",
    "minerva-7b": "smollm",
    "llama-bpe": "llama-bpe",
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "falcon3": "llama-bpe",
    "smaug-bpe": "llama-bpe",
    "dbrx": "llama-bpe",
    "qwen2": "qwen2",
    "stablelm2": "qwen2",
    "deepseek-r1-qwen": "qwen2",
}
"""`tokenizer.ggml.pre` values that stand for one of our patterns."""

GGUF_LLAMA3 = frozenset({"llama-bpe", "llama3", "llama-v3", "falcon3"})
"""Those for which llama.cpp ignores merges for whole tokens, and begins texts with the begin token."""

_GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LATER_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_OTHER_IN_ONIGURUMA = ("\\h", "\\H", "\\R", "\\O", "\\K", "\\Z", "\\y", "\\Y", "&&")
_KNOWN_PATTERNS = {
    _GPT2_PATTERN: "gpt-2",
    _LATER_PATTERN.format(digits="{1,3}"): "llama-bpe",
    _LATER_PATTERN.format(digits=""): "qwen2",
}


def from_gguf(name: str, path: Path) -> str:
    """Return our name of a GGUF pre-tokeniser; raises CheckpointError for one we have no pattern of."""
    if name not in GGUF_NAMES:
        raise CheckpointError(
            f"{path}: tokenizer.ggml.pre {shorten(name)} is not supported (a wrong pattern would tokenise "
            f"silently wrong); supported: {', '.join(GGUF_NAMES)}"
        )
    return GGUF_NAMES[name]


def from_huggingface(pre_tokenizer: object, path: Path) -> str:
    """Return our name, or `regex:<pattern>`, for the `pre_tokenizer` object of a tokenizer.json.

    Raises CheckpointError for one that is not byte-level, or whose pieces no single pattern describes.
    """
    steps = _flatten(pre_tokenizer)
    kinds = [step.get("type") for step in steps]
    if not steps or kinds[-1] != "ByteLevel":
        raise _unsupported(path, f"is not byte-level: {kinds}")
    byte_level = steps[-1]
    if byte_level.get("add_prefix_space") is True:
        raise _unsupported(path, "puts a space before every text (add_prefix_space)")
    splits_words = byte_level.get("use_regex", True) is not False
    if kinds == ["ByteLevel"] and splits_words:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and splits_words and steps[0].get("individual_digits") is True:
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not splits_words:
        pattern = _split_pattern(steps[0], path)
        if pattern in _KNOWN_PATTERNS:
            return _KNOWN_PATTERNS[pattern]
        if steps[0].get("behavior") == "Removed":
            raise _unsupported(path, "removes the text that its pattern does not match")
        for construct in _OTHER_IN_ONIGURUMA:
            if construct in pattern:
                raise _unsupported(
                    path, f"has {construct} in its pattern, which our regular expressions lack"
                )
        return f"regex:{pattern}"
    raise _unsupported(path, f"is a sequence we have no single pattern for: {kinds}")


def _flatten(pre_tokenizer: object) -> list[dict[str, object]]:
    """Return the steps of a pre-tokeniser; a plain one is one step."""
    if not isinstance(pre_tokenizer, dict):
        return []
    if pre_tokenizer.get("type") != "Sequence":
        return [pre_tokenizer]
    steps = pre_tokenizer.get("pretokenizers")
    return [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []


def _split_pattern(split: dict[str, object], path: Path) -> str:
    """Return the pattern whose matches are the pieces."""
    pattern = split.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    keeps_matches = (split.get("behavior"), split.get("invert")) in (("Isolated", False), ("Removed", True))
    if not isinstance(regex, str) or not keeps_matches:
        raise _unsupported(path, f"splits by {shorten(split)}")
    return regex


def _unsupported(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: the pre-tokenizer {what}; supported are byte-level BPE tokenizers with one pattern "
        "(GPT-2, Llama 3, Qwen, SmolLM and their like)"
    )
