"""Detokenizer: token ids to text as they come, UTF-8 safe."""

import codecs
from collections.abc import Sequence

from server.text.tokenizer import Tokenizer


class Detokenizer:
    """The text of one growing answer; each token costs its own bytes, however long the answer is.

    Invariant: what `push` returned and `flush` returns together equal `Tokenizer.decode` of all ids.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        shown_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        self._tokenizer = tokenizer
        self._shown_token_ids = shown_token_ids  # special tokens that are not skipped
        self._skip_special_tokens = skip_special_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # holds back three bytes at most

    def push(self, token_ids: Sequence[int]) -> str:
        """Return the text that these tokens complete; an incomplete character waits for its rest."""
        return self._decoder.decode(
            self._tokenizer.decode_bytes(
                token_ids,
                skip_special_tokens=self._skip_special_tokens,
                shown_token_ids=self._shown_token_ids,
            )
        )

    def flush(self) -> str:
        """Return what is left at the end: U+FFFD for a character that never became complete."""
        return self._decoder.decode(b"", final=True)
