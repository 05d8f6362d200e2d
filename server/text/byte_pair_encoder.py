"""BytePairEncoder: text without special tokens to ids, through tiktoken."""

import logging
from collections.abc import Sequence

import tiktoken

from engine.checkpoint import TokenizerData
from engine.checkpoint.vocabulary import NUM_BYTES, printable_bytes
from engine.interface.errors import CheckpointError
from server.text.merge_table import MergeTable
from server.text.pre_tokenizer import PreTokenizer

_logger = logging.getLogger(__name__)


class BytePairEncoder:
    """Byte-level BPE with the checkpoint's own vocabulary.

    Bytes that the vocabulary lacks are dropped from their piece, as the `tokenizers` library does, and
    never reach tiktoken, which would panic.
    """

    def __init__(self, data: TokenizerData, spellings: Sequence[bytes]) -> None:
        self._pre_tokenizer = PreTokenizer(data.pre_tokenizer, normalization=data.normalization)
        plain_text_ids = data.special_token_ids | data.added_token_ids
        ordinary = {
            token: token_id for token_id, token in enumerate(data.tokens) if token_id not in plain_text_ids
        }
        token_ids = {token: token_id for token_id, token in enumerate(data.tokens)} | ordinary
        self._byte_ids = {
            byte: token_ids[character]
            for character, byte in printable_bytes().items()
            if character in ordinary or (character.isascii() and character in token_ids)
        }
        if not self._byte_ids:
            raise CheckpointError("the vocabulary has no token of a single byte: it is not byte-level BPE")
        self._present = bytes(self._byte_ids)
        self._missing = bytes(byte for byte in range(NUM_BYTES) if byte not in self._byte_ids)
        self._has_warned = False
        self._merge_table = MergeTable(token_ids, data.merges)
        self._whole_pieces = (
            {spellings[token_id]: token_id for token_id in ordinary.values()} if data.ignore_merges else {}
        )
        self._ids_by_rank = self._rank(spellings)
        self._encoding = tiktoken.Encoding(
            "checkpoint",
            pat_str="(?s).+",  # it is given single pieces
            mergeable_ranks={spellings[token_id]: rank for rank, token_id in enumerate(self._ids_by_rank)},
            special_tokens={},
        )

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text that UTF-8 can hold; special tokens are text like any other."""
        ids_by_piece: dict[str, list[int]] = {}
        token_ids: list[int] = []
        for piece in self._pre_tokenizer.split(text):
            piece_ids = ids_by_piece.get(piece)
            if piece_ids is None:
                piece_ids = ids_by_piece[piece] = self._encode_piece(piece)
            token_ids += piece_ids
        return token_ids

    @property
    def is_linear(self) -> bool:
        """True when no text takes much longer than its length says."""
        return self._pre_tokenizer.is_linear

    @property
    def spells_all(self) -> bool:
        """True when the vocabulary has every byte, so that no text loses any."""
        return not self._missing

    def first_lost(self, text: str) -> str | None:
        """Return the first character with a byte that the vocabulary lacks."""
        pieces = self._pre_tokenizer.split(text)  # normalised
        return next((c for piece in pieces for c in piece if self._is_lost(c)), None)

    def _is_lost(self, character: str) -> bool:
        spelling = character.encode()
        return len(spelling.translate(None, self._missing)) < len(spelling)

    def _rank(self, spellings: Sequence[bytes]) -> list[int]:
        """Return the ids that encoding can give: those of bytes, then the others as they are merged."""
        symbols = {
            token_id: [self._byte_ids[byte] for byte in spelling]
            for token_id, spelling in enumerate(spellings)
            if not spelling.translate(None, self._present)
        }
        ranks = self._merge_table.formation_ranks(symbols)
        return [*self._byte_ids.values(), *sorted(ranks, key=ranks.__getitem__)]

    def _encode_piece(self, piece: str) -> list[int]:
        spelling = piece.encode()
        if spelling in self._whole_pieces:
            return [self._whole_pieces[spelling]]
        kept = spelling.translate(None, self._missing)
        if len(kept) == len(spelling):
            return [self._ids_by_rank[rank] for rank in self._encoding.encode_ordinary(piece)]
        self._warn(piece)
        return self._merge_table.encode([self._byte_ids[byte] for byte in kept])

    def _warn(self, piece: str) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        first = next(c for c in piece if self._is_lost(c))
        _logger.warning(
            "the vocabulary lacks %d of the 256 bytes; text loses those it has (first seen in U+%04X)",
            len(self._missing),
            ord(first),
        )
