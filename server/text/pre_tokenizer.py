"""PreTokenizer: cuts text into the pieces that byte-pair encoding works on one by one."""

import unicodedata
from itertools import groupby
from typing import Literal

import regex

from engine.interface.errors import CheckpointError
from server.text.errors import TextError

_CONTRACTIONS = r"'(?:[sdmt]|ll|ve|re)"
_CASELESS_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LATER_PATTERN = (
    _CASELESS_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS = {
    "gpt-2": _CONTRACTIONS + r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    # Digits are split off first and the GPT-2 pattern cuts what is between: a digit ends the text for it.
    "smollm": r"\p{N}|" + _CONTRACTIONS + r"| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+",
    "llama-bpe": _LATER_PATTERN % r"\p{N}{1,3}",
    "qwen2": _LATER_PATTERN % r"\p{N}",
}
_CUSTOM = "regex:"
_TIMEOUT_SECONDS = 5.0
_MAX_PATTERN_CHARS = 4096
_LONG_RUN = r"\p{M}{32,}"


class PreTokenizer:
    """Splits text by the pattern called `name`, or by P for the name `regex:P`.

    What a pattern leaves between its matches is a piece, too, so that no text is lost. The `regex` module
    does it rather than tiktoken's own engine, which panics on a million spaces.
    Raises CheckpointError for an unknown name or a pattern that does not compile.
    """

    def __init__(
        self,
        name: str,
        *,
        normalization: Literal["none", "nfc"] = "none",
        timeout_seconds: float = _TIMEOUT_SECONDS,
    ) -> None:
        pattern = name[len(_CUSTOM) :] if name.startswith(_CUSTOM) else _PATTERNS.get(name)
        if pattern is None:
            raise CheckpointError(
                f"pre-tokenizer {name[:60]!r} is not known; known are {', '.join(_PATTERNS)} and "
                f"{_CUSTOM}PATTERN"
            )
        if len(pattern) > _MAX_PATTERN_CHARS:
            raise CheckpointError(
                f"the pre-tokenizer's pattern has {len(pattern)} characters, more than {_MAX_PATTERN_CHARS}"
            )
        try:
            self._pattern = regex.compile(pattern)
            self._long_run = regex.compile(_LONG_RUN)
        except (regex.error, RecursionError) as error:
            raise CheckpointError(f"the pre-tokenizer's pattern does not compile: {error}") from error
        self.is_linear = name in _PATTERNS  # as much cannot be said of what a checkpoint brings
        self._normalization = normalization
        self._timeout_seconds = timeout_seconds

    def split(self, text: str) -> list[str]:
        """Return the pieces of a text in order; together they are the (normalised) text.

        Raises TextError when the pattern, which comes with the checkpoint, takes forever.
        """
        if self._normalization == "nfc" and not text.isascii():
            text = unicodedata.normalize("NFC", self._long_run.sub(_order_marks, text))
        try:
            if not self._pattern.groups:  # else `findall` would return groups
                pieces: list[str] = self._pattern.findall(
                    text, timeout=self._timeout_seconds, concurrent=not self.is_linear
                )
                if sum(map(len, pieces)) == len(text):
                    return [piece for piece in pieces if piece]
            return self._split_with_gaps(text)
        except TimeoutError as error:
            raise TextError(
                f"the checkpoint's pre-tokenizer did not split the text within {self._timeout_seconds:g} s"
            ) from error

    def _split_with_gaps(self, text: str) -> list[str]:
        pieces = []
        end = 0
        matches = self._pattern.finditer(text, timeout=self._timeout_seconds, concurrent=not self.is_linear)
        for match in matches:
            pieces += [text[end : match.start()], match.group()]
            end = match.end()
        pieces.append(text[end:])
        return [piece for piece in pieces if piece]


def _order_marks(match: "regex.Match[str]") -> str:
    """Put a run of combining marks in canonical order, which changes no normal form.

    `unicodedata.normalize` sorts by insertion, so that a long unordered run costs it quadratic time.
    """
    marks = "".join(unicodedata.normalize("NFD", mark) for mark in match.group())
    ordered: list[str] = []
    for _, run in groupby(marks, key=lambda mark: unicodedata.combining(mark) == 0):  # starters stay put
        ordered.extend(sorted(run, key=unicodedata.combining))
    return "".join(ordered)
