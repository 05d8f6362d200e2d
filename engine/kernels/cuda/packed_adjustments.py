"""Packing what history and wishes do to rows of a step into one buffer, for the kernel that does it.

    [num_adjusted] then, for each adjusted row, ENTRY_WORDS numbers, then the lists that they point to.

Bans are settled here: which tokens they leave is a matter of lists alone, not of logits.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from engine.interface.sampled_row import RowHistory, SampledRow
from engine.sampling.row_processors import has_bans

Words = npt.NDArray[np.int32]

ENTRY_WORDS = 17
"""Numbers of an entry, in this order; an offset counts from the buffer's start, the length -1 is no mask."""

ROW, REPETITION, FREQUENCY, PRESENCE = 0, 1, 2, 3  # penalties: float bits
SEEN, NUM_SEEN = 4, 5  # token ids
COUNTED, NUM_COUNTED = 6, 7  # token ids, then as many counts
BIASED, NUM_BIASED = 8, 9  # token ids, then as many float bits
BANNED, NUM_BANNED = 10, 11  # token ids
ALLOWED, ALLOWED_WORDS = 12, 13  # a bit per token
GRAMMAR, GRAMMAR_WORDS = 14, 15  # a bit per token, as the grammar gives it
HAS_BANS = 16  # 1: where the grammar leaves nothing of the others, it alone decides


def pack_adjustments(rows: Sequence[tuple[int, SampledRow]], vocab_size: int) -> Words:
    """Return int32 words for rows that something changes, each with its number in the step.

    One that nothing changes may be among them. A step without any is the single word 0.
    """
    packer = _Packer(len(rows))
    for entry, (number, row) in enumerate(rows):
        packer.add(entry, number, row, vocab_size)
    return packer.words()


class _Packer:
    """Lists behind a table of entries."""

    def __init__(self, num_entries: int) -> None:
        self._entries = np.zeros((num_entries, ENTRY_WORDS), dtype=np.int32)
        self._lists: list[Words] = []
        self._end = 1 + num_entries * ENTRY_WORDS

    def add(self, entry: int, number: int, row: SampledRow, vocab_size: int) -> None:
        params, history = row.params, row.history or RowHistory()
        words = self._entries[entry]
        words[ROW] = number
        penalties = (params.repetition_penalty, params.frequency_penalty, params.presence_penalty)
        words[REPETITION : PRESENCE + 1] = np.array(penalties, dtype=np.float32).view(np.int32)
        seen = history.seen_token_ids if params.repetition_penalty != 1.0 else ()
        counts = history.answer_counts if params.has_penalties else ()
        words[SEEN : SEEN + 2] = self._append(len(seen), _integers(seen))
        pairs = np.array(counts, dtype=np.int32).reshape(-1, 2)
        words[COUNTED : COUNTED + 2] = self._append(len(pairs), pairs.T.reshape(-1))
        biases = np.array(list(params.logit_bias.values()), dtype=np.float32).view(np.int32)
        biased = np.concatenate([_integers(tuple(params.logit_bias)), biases])
        words[BIASED : BIASED + 2] = self._append(len(params.logit_bias), biased)
        banned, allowed = _bans(row, vocab_size)
        words[BANNED : BANNED + 2] = self._append(len(banned), _integers(banned))
        words[ALLOWED : ALLOWED + 2] = self._append_mask(allowed)
        words[HAS_BANS] = has_bans(row)
        words[GRAMMAR : GRAMMAR + 2] = self._append_mask(history.token_bitmask)

    def words(self) -> Words:
        header = np.array([len(self._entries)], dtype=np.int32)
        return np.concatenate([header, self._entries.reshape(-1), *self._lists])

    def _append(self, length: int, words: Words) -> tuple[int, int]:
        offset = self._end
        self._lists.append(words)
        self._end += len(words)
        return offset, length

    def _append_mask(self, mask: bytes | None) -> tuple[int, int]:
        if mask is None:
            return 0, -1
        words = np.frombuffer(mask, dtype=np.int32)
        return self._append(len(words), words)


def _bans(row: SampledRow, vocab_size: int) -> tuple[tuple[int, ...], bytes | None]:
    """Return the tokens to ban, and the mask of those allowed; bans that would leave nothing are left out."""
    if not has_bans(row):
        return (), None
    banned = () if row.history is None else row.history.banned_token_ids
    allowed = row.params.allowed_token_ids
    if allowed is None:
        return (banned if len(set(banned)) < vocab_size else ()), None
    bits = np.zeros(-(-vocab_size // 32) * 32, dtype=np.bool_)
    bits[list(allowed.difference(banned) or allowed)] = True
    return (), np.packbits(bits, bitorder="little").tobytes()


def _integers(values: Sequence[int]) -> Words:
    return np.array(values, dtype=np.int32)
