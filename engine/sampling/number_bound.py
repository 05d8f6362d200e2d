"""Numbers that end: how many digits a number of a JSON answer may have where the grammar sets no limit.

Weak models and high temperatures keep adding digits for ever. So where a number could end and has as many
digits as a 64-bit integer, two more than a double tells apart, no token that begins with another is allowed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Words: TypeAlias = npt.NDArray[np.uint32]

MAX_NUMBER_DIGITS = 19
MAX_EXPONENT_DIGITS = 3
MAX_LEADING_ZEROS = 17  # behind the point

_DIGITS = frozenset(b"0123456789")


class DigitTokens:
    """The tokens of a vocabulary by the number of digits that they begin with."""

    def __init__(self, token_bytes: Sequence[bytes], pack: Callable[[Sequence[bool]], Words]) -> None:
        counts = [len(text) - len(text.lstrip(b"0123456789")) for text in token_bytes]
        most = max(counts, default=0)
        self._without = [~pack([count > limit for count in counts]) for limit in range(most)]

    def without_more_than(self, num_digits: int, words: Words) -> Words:
        """Take the tokens from `words` that begin with more than so many digits."""
        return words & self._without[num_digits] if num_digits < len(self._without) else words


@dataclass(slots=True)
class NumberPlace:
    """Where a JSON text stands: in a string or not, and how many digits its present number has."""

    in_string: bool = False
    is_escaped: bool = False
    in_number: bool = False
    in_exponent: bool = False
    num_digits: int = 0  # without leading zeros; of the exponent, once it has begun
    num_zeros: int = 0  # leading ones

    def advance(self, text: bytes) -> None:
        """Read what a token adds."""
        for byte in text:
            if self.in_string:
                self._read_string(byte)
            elif byte in _DIGITS:
                self._read_digit(byte)
            elif self.in_number and byte in b"eE":
                self.in_exponent, self.num_digits = True, 0
            elif not (self.in_number and byte in b".+-"):
                self.in_string = byte == ord('"')
                self.in_number = self.in_exponent = False
                self.num_digits = self.num_zeros = 0

    @property
    def num_digits_left(self) -> int | None:
        """Return how many digits may follow; None outside of numbers."""
        if not self.in_number:
            return None
        if self.in_exponent:
            return max(0, MAX_EXPONENT_DIGITS - self.num_digits)
        if self.num_digits == 0 and self.num_zeros >= MAX_LEADING_ZEROS:
            return 0
        return max(0, MAX_NUMBER_DIGITS - self.num_digits)

    def copy(self) -> "NumberPlace":
        """Return a place that goes its own way from here."""
        return NumberPlace(
            self.in_string, self.is_escaped, self.in_number, self.in_exponent, self.num_digits, self.num_zeros
        )

    def _read_string(self, byte: int) -> None:
        if self.is_escaped:
            self.is_escaped = False
        elif byte == ord("\\"):
            self.is_escaped = True
        elif byte == ord('"'):
            self.in_string = False

    def _read_digit(self, byte: int) -> None:
        self.in_number = True
        if byte == ord("0") and self.num_digits == 0 and not self.in_exponent:
            self.num_zeros += 1
        else:
            self.num_digits += 1
