"""What kernels read of a quantised matrix: a block of 32 or 16 elements of K of some rows, decoded.

A decoded element is T(v), v being the float32 that the `gguf` package computes. Every product of a scale and
a quant has at most 23 significant bits and so is exact in float32; formats with a minimum round once, in the
addition. Whether the compiler fuses the two therefore changes nothing.
"""

import triton
import triton.language as tl

from engine.kernels.cuda import quantized_formats as formats

_ROW_TILE = tl.constexpr(formats.ROW_TILE)
_BLOCK = tl.constexpr(formats.Scales.BLOCK.value)
_BLOCK_MIN = tl.constexpr(formats.Scales.BLOCK_MIN.value)
_SUPER_MIN = tl.constexpr(formats.Scales.SUPER_MIN.value)
_SUPER_16 = tl.constexpr(formats.Scales.SUPER_16.value)
_FLOAT = tl.constexpr(float(1 << 23))  # the bits of its mantissa count ones
_FLOAT_BITS = tl.constexpr(0x4B000000)


@triton.jit
def _row_words(words, rows, num_tiles, WIDTH: tl.constexpr):
    """Return where the words of each row's first tile begin: pointers [rows]."""
    tiles = (rows // _ROW_TILE).to(tl.int64) * num_tiles
    return words + tiles * (WIDTH * _ROW_TILE) + rows % _ROW_TILE * WIDTH


@triton.jit
def find_rows(low, high, scales, rows, low_tiles, high_tiles, num_steps, FORMAT: tl.constexpr):
    """Return where the low words, the high words (if there are any) and the scale words of each row begin."""
    words: tl.constexpr = FORMAT.num_scale_words
    width: tl.constexpr = FORMAT.width
    low_rows = _row_words(low, rows, low_tiles, width)
    high_rows = low_rows
    if FORMAT.high_bits > 0:
        high_rows = _row_words(high, rows, high_tiles, width)
    tiles = (rows // _ROW_TILE).to(tl.int64)
    scale_rows = scales + tiles * num_steps * (words * _ROW_TILE) + rows % _ROW_TILE
    return low_rows, high_rows, scale_rows


@triton.jit
def _load_words(word_rows, group, B: tl.constexpr, BITS: tl.constexpr, FORMAT: tl.constexpr):
    """Load the words [width, rows] that hold some bits of block B of a group."""
    width: tl.constexpr = FORMAT.width
    tiles: tl.constexpr = FORMAT.num_blocks * BITS // 16  # of a group
    tile = group * tiles + B * BITS // 16
    return tl.load(word_rows[None, :] + tile * (width * _ROW_TILE) + tl.arange(0, width)[:, None])


@triton.jit
def _load_scales(scale_rows, group, INDEX: tl.constexpr, A_GROUP: tl.constexpr, FORMAT: tl.constexpr):
    """Load a scale word of a step, int32 [rows]: INDEX for its first group, A_GROUP on for each next."""
    words: tl.constexpr = FORMAT.num_scale_words
    groups: tl.constexpr = FORMAT.num_groups
    index = group // groups * words + group % groups * A_GROUP + INDEX
    return tl.load(scale_rows + index * _ROW_TILE)


@triton.jit
def _half(word, INDEX: tl.constexpr):
    """Return one of the two float16 of a word, as float32."""
    return (word >> (16 * INDEX)).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _byte(word, INDEX: tl.constexpr):
    return (word >> (8 * INDEX)) & 255


@triton.jit
def _scale_and_minimum(scale_rows, group, unit, B: tl.constexpr, FORMAT: tl.constexpr):
    """Return what block B is multiplied by, times `unit`, and what is then added: float32 [rows]."""
    b: tl.constexpr = B * FORMAT.width // 32
    if FORMAT.scales == _BLOCK:
        scale = _half(_load_scales(scale_rows, group, b // 2, 0, FORMAT), b % 2) * unit
        minimum = tl.zeros_like(scale)
    elif FORMAT.scales == _BLOCK_MIN:
        word = _load_scales(scale_rows, group, b, 0, FORMAT)
        scale = _half(word, 0) * unit
        minimum = _half(word, 1)
    else:
        scale, minimum = _super_scale_and_minimum(scale_rows, group, unit, B, FORMAT)
    return scale, minimum


@triton.jit
def _super_scale_and_minimum(scale_rows, group, unit, B: tl.constexpr, FORMAT: tl.constexpr):
    """Return the same of a K-quant, whose factors are bytes."""
    blocks: tl.constexpr = FORMAT.num_blocks
    super_scales = _load_scales(scale_rows, group, 0, 0, FORMAT)
    d = _half(super_scales, 0) * unit
    dmin = _half(super_scales, 1)
    if FORMAT.scales == _SUPER_MIN:
        b: tl.constexpr = B * FORMAT.width // 32
        a_group: tl.constexpr = blocks * FORMAT.width // 128
        scale = d * _byte(_load_scales(scale_rows, group, 1 + b // 4, a_group, FORMAT), b % 4).to(tl.float32)
        factor = _byte(_load_scales(scale_rows, group, 3 + b // 4, a_group, FORMAT), b % 4)
        minimum = -(dmin * factor.to(tl.float32))
    else:
        factor = _byte(_load_scales(scale_rows, group, 1 + B // 4, blocks // 4, FORMAT), B % 4)
        if FORMAT.scales == _SUPER_16:
            scale = d * ((factor ^ 128) - 128).to(tl.float32)  # a signed byte
            minimum = tl.zeros_like(scale)
        else:
            scale = d * (factor & 15).to(tl.float32)
            minimum = -(dmin * (factor >> 4).to(tl.float32))
    return scale, minimum


@triton.jit
def _move_bits(words, BITS: tl.constexpr, FROM: tl.constexpr, TO: tl.constexpr):
    """Return int32 with BITS bits of 16-bit words, moved from one position to another; the others are 0."""
    wide = words.to(tl.int32)
    if TO > FROM:
        wide = wide << (TO - FROM)
    if TO < FROM:
        wide = wide >> (FROM - TO)
    return wide & (((1 << BITS) - 1) << TO)


@triton.jit
def load_block(rows, group, B: tl.constexpr, FORMAT: tl.constexpr, DTYPE: tl.constexpr):
    """Load block B of a group as T [width, rows]: `rows` of `find_rows`.

    The field of low bits stays where it is in the mantissa of 2^23, one `and` with an `or` for each weight
    instead of a shift and a conversion; the scale is divided by the field's unit. Only elementwise operations
    of loads and constants lie between the words and a product: only then does the compiler decode them in the
    lanes that multiply them, else it moves every tile through shared memory.
    """
    low_bits: tl.constexpr = FORMAT.low_bits
    high_bits: tl.constexpr = FORMAT.high_bits
    position: tl.constexpr = B * low_bits % 16
    quants = _move_bits(_load_words(rows[0], group, B, low_bits, FORMAT), low_bits, position, position)
    if high_bits > 0:
        high = _load_words(rows[1], group, B, high_bits, FORMAT)
        quants |= _move_bits(high, high_bits, B * high_bits % 16, position + low_bits)
    raised = (quants | _FLOAT_BITS).to(tl.float32, bitcast=True) - (_FLOAT + (FORMAT.offset << position))
    scale, minimum = _scale_and_minimum(rows[2], group, 1.0 / (1 << position), B, FORMAT)
    scale, raised = tl.broadcast(scale[None, :], raised)
    minimum, raised = tl.broadcast(minimum[None, :], raised)
    return tl.fma(raised, scale, minimum).to(DTYPE)
