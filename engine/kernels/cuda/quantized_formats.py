"""How each block format of a GGUF file lies on the device, so that a kernel reads it aligned and in order.

A matrix [N, K] is cut into *steps* along K (128 or 256 elements) and these into *blocks* of 32 or 16. A word
of 16 bits holds element k of several consecutive blocks in its fields: field p of word k of a tile is element
k of block p. So a tile of words [rows, width of a block], loaded once, gives one such tile of weights for
each block by a mask: no element changes its lane, K keeps its ascending order, and a tensor core adds the
same groups of 16 elements as it does in a plain product of the dequantised matrix. (Bytes would not do:
Triton permutes K across groups of 32 for operands that were loaded as 8 bits.)

The low 2, 4 or 8 bits of the quants are in one tensor of words, the bits above in another. Rows lie in tiles
of 16, whose words for ascending K are contiguous: a program streams whole kilobytes and needs no mask,
because N is padded to a multiple of 64 and K to whole steps, with scales of zero.

Scales keep the bits of the file (float16 d and dmin, 6-bit or 8-bit factors as bytes). Multiplied out they
would need float32: 6 instead of 4.6 bits a weight for Q4_K.
"""

import enum
from dataclasses import dataclass

ROW_TILE = 16
"""Rows whose words lie together."""

ROW_PADDING = 64
"""Every part of a matrix has a multiple of this many rows, the columns of the widest tile of a product."""

_WORD_BITS = 16
_SUPER_BLOCK = 256
_GROUP = 128


class Scales(enum.IntEnum):
    """What the 32-bit words of a row's step hold; q is a quant less its offset."""

    BLOCK = 0  # d, float16, of 32 elements, two a word: d * q
    BLOCK_MIN = 1  # d and m, float16, of 32 elements: d * q + m
    SUPER_MIN = 2  # word 0: d, dmin; bytes of words 1-2 and 3-4: s, m of 32: (d * s) * q - dmin * m
    SUPER_16 = 3  # word 0: d; bytes of words 1-4: signed s of 16 elements: (d * s) * q
    SUPER_MIN_16 = 4  # as before, a byte being s + 16 m: (d * s) * q - dmin * m


@dataclass(frozen=True)
class QuantizedFormat:
    """The layout of one GGUF format on the device."""

    low_bits: int  # of a quant, in the words of the first tensor
    high_bits: int  # in those of the second; 0: there is none
    offset: int  # subtracted from the unsigned quant
    scales: Scales
    width: int  # elements of a block; 16 where scales are of 16, and where high_bits is 1
    step: int  # elements of K that share the scale words

    @property
    def num_groups(self) -> int:
        """Groups of blocks in a step; a kernel's loop goes over groups.

        128 elements each: loops over 256 take three times as long to compile. Words of single bits hold 256.
        """
        return 1 if self.high_bits == 1 else self.step // _GROUP

    @property
    def num_blocks(self) -> int:
        """Blocks in a group."""
        return self.step // self.num_groups // self.width

    @property
    def low_tile(self) -> int:
        """Elements of K in one tile of low words."""
        return self.width * (_WORD_BITS // self.low_bits)

    @property
    def high_tile(self) -> int:
        """Elements of K in one tile of high words."""
        return self.width * (_WORD_BITS // self.high_bits)

    @property
    def num_scale_words(self) -> int:
        """32-bit words for each row and step."""
        if self.scales is Scales.BLOCK:
            return self.step // 64
        return self.step // 32 if self.scales is Scales.BLOCK_MIN else 5

    @property
    def bits_per_weight(self) -> float:
        """Bits that the device reads for each weight of a row of whole steps."""
        return self.low_bits + self.high_bits + 32 * self.num_scale_words / self.step


FORMATS = {
    "Q4_0": QuantizedFormat(4, 0, 8, Scales.BLOCK, 32, 128),
    "Q4_1": QuantizedFormat(4, 0, 0, Scales.BLOCK_MIN, 32, 128),
    "Q5_0": QuantizedFormat(4, 1, 16, Scales.BLOCK, 16, _SUPER_BLOCK),
    "Q5_1": QuantizedFormat(4, 1, 0, Scales.BLOCK_MIN, 16, _SUPER_BLOCK),
    "Q8_0": QuantizedFormat(8, 0, 128, Scales.BLOCK, 32, 128),
    "Q2_K": QuantizedFormat(2, 0, 0, Scales.SUPER_MIN_16, 16, _SUPER_BLOCK),
    "Q3_K": QuantizedFormat(2, 1, 4, Scales.SUPER_16, 16, _SUPER_BLOCK),
    "Q4_K": QuantizedFormat(4, 0, 0, Scales.SUPER_MIN, 32, _SUPER_BLOCK),
    "Q5_K": QuantizedFormat(4, 1, 0, Scales.SUPER_MIN, 16, _SUPER_BLOCK),
    "Q6_K": QuantizedFormat(4, 2, 32, Scales.SUPER_16, 16, _SUPER_BLOCK),
}
"""GGUF formats that the device multiplies as stored; of Q8_0 the sign bits are turned."""
