"""Tokenizer: text to token ids and back, from the checkpoint's own vocabulary."""

from collections.abc import Mapping, Sequence

from engine.checkpoint import TokenizerData
from engine.checkpoint.vocabulary import token_bytes
from engine.interface.errors import CheckpointError
from server.text.added_tokens import AddedTokens
from server.text.byte_pair_encoder import BytePairEncoder
from server.text.character_encoder import CharacterEncoder
from server.text.errors import TextError


class Tokenizer:
    """Encodes as the `tokenizers` library does with the same vocabulary; safe to share between threads.

    Ids that no token has, such as the padding of a model's last layer, decode to nothing.
    Raises CheckpointError when the vocabulary contradicts itself.
    """

    def __init__(self, data: TokenizerData) -> None:
        self._bytes = token_bytes(data)
        self._data = data
        for name, token_id in (("bos_token_id", data.bos_token_id), ("eos_token_id", data.eos_token_id)):
            if token_id is not None and not 0 <= token_id < len(data.tokens):
                raise CheckpointError(f"{name} is {token_id}, outside a vocabulary of {len(data.tokens)}")
        if data.add_bos and data.bos_token_id is None:
            raise CheckpointError("the vocabulary wants a begin token before every text, but names none")
        self._special_token_ids = frozenset(data.special_token_ids)
        self._added = AddedTokens({data.tokens[i]: i for i in data.added_token_ids})
        self._added_and_special = AddedTokens(
            {data.tokens[i]: i for i in data.added_token_ids | data.special_token_ids}
        )
        self._encoder = (
            CharacterEncoder(data.tokens) if data.kind == "char" else BytePairEncoder(data, self._bytes)
        )

    @property
    def vocab_size(self) -> int:
        """The number of tokens that have a text; the model's own vocabulary may be padded beyond."""
        return len(self._bytes)

    @property
    def is_linear(self) -> bool:
        """False when the checkpoint brings a pattern of its own, with which a short text may take long."""
        return self._encoder.is_linear

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text, if the checkpoint names one."""
        return self._data.bos_token_id

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a text, if the checkpoint names one."""
        return self._data.eos_token_id

    def find_special(self, text: str) -> int | None:
        """Return the control token of this text, if there is one."""
        return next((i for i in self._special_token_ids if self._data.tokens[i] == text), None)

    def find_whole(self, text: str) -> int | None:
        """Return the control or added token of this text, which is never split, if there is one."""
        whole = self._data.special_token_ids | self._data.added_token_ids
        return next((i for i in whole if self._data.tokens[i] == text), None)

    def first_lost(self, text: str) -> str | None:
        """Return the first character of a text that loses bytes, for the vocabulary lacks them."""
        if self._encoder.spells_all:
            return None
        parts = (part for part in self._added_and_special.split(text) if isinstance(part, str))
        return next((lost for part in parts if (lost := self._encoder.first_lost(part)) is not None), None)

    @property
    def special_tokens(self) -> list[str]:
        """The texts of the control tokens."""
        return [self._data.tokens[token_id] for token_id in sorted(self._special_token_ids)]

    def encode(
        self,
        text: str,
        *,
        add_bos: bool | None = None,
        allow_special: bool = True,
        stand_ins: Mapping[str, str] | None = None,
    ) -> list[int]:
        """Return the token ids of a text.

        `add_bos` None follows the checkpoint's habit. With `allow_special` False, "<|im_start|>" in the
        text is plain text; tokens that are added but not special are matched either way. `stand_ins` are
        characters to put back between special tokens (ContentGuard).
        Raises TextError for a lone surrogate, for a begin token where there is none, and for a character
        that a character vocabulary lacks.
        """
        _check_encodable(text)
        token_ids = self._begin(add_bos)
        added = self._added_and_special if allow_special else self._added
        for part in added.split(text):
            if isinstance(part, int):
                token_ids.append(part)
            elif stand_ins:
                written = part.translate({ord(stand_in): text for stand_in, text in stand_ins.items()})
                token_ids += self.encode(written, add_bos=False, allow_special=False)
            else:
                token_ids += self._encoder.encode(part)
        return token_ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of the ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(token_ids, skip_special_tokens=skip_special_tokens).decode(errors="replace")

    def decode_bytes(
        self,
        token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = True,
        shown_token_ids: frozenset[int] = frozenset(),
    ) -> bytes:
        """Return the exact bytes of the ids, which may begin or end inside a character.

        Of the special tokens that are skipped, `shown_token_ids` are not.
        """
        skipped = self._special_token_ids if skip_special_tokens else frozenset[int]()
        if shown_token_ids:
            skipped -= shown_token_ids
        return b"".join([self.token_bytes(token_id) for token_id in token_ids if token_id not in skipped])

    def token_bytes(self, token_id: int) -> bytes:
        """Return the exact bytes of one token."""
        return self._bytes[token_id] if 0 <= token_id < len(self._bytes) else b""

    def is_special(self, token_id: int) -> bool:
        """Tell whether a token is a control token, which decoding skips."""
        return token_id in self._special_token_ids

    def _begin(self, add_bos: bool | None) -> list[int]:
        if not (self._data.add_bos if add_bos is None else add_bos):
            return []
        if self.bos_token_id is None:
            raise TextError("a begin token is asked for, but the checkpoint has none")
        return [self.bos_token_id]


def _check_encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TextError(
            f"the text has a lone surrogate (U+{ord(text[error.start]):04X}) at offset {error.start}; "
            "it is not valid Unicode"
        ) from error
