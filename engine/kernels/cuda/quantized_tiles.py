"""What kernels read of a quantised matrix: a block of 32 elements of K of some rows, decoded in registers.

A decoded element is T(v), v being the float32 that the `gguf` package computes. Every product of a scale and a
quant has at most 23 significant bits and so is exact in float32; formats with a minimum round once, in the
addition. Whether the compiler fuses the two therefore changes nothing.
"""

import triton
import triton.language as tl

from engine.kernels.cuda import quantized_formats as formats

BLOCK = tl.constexpr(formats.BLOCK)
_ROW_TILE = tl.constexpr(formats.ROW_TILE)
_TILE_WORDS = tl.constexpr(formats.ROW_TILE * formats.BLOCK)
_BLOCK_SCALES = tl.constexpr(formats.Scales.BLOCK.value)
_BLOCK_MIN = tl.constexpr(formats.Scales.BLOCK_MIN.value)
_SUPER_MIN = tl.constexpr(formats.Scales.SUPER_MIN.value)
_SUPER_HALVES = tl.constexpr(formats.Scales.SUPER_HALVES.value)
_FLOAT = tl.constexpr(float(1 << 23))  # the bits of its mantissa count ones
_FLOAT_BITS = tl.constexpr(0x4B000000)


@triton.jit
def _row_words(words, rows, num_tiles):
    """Return where the words [32] of each row's first tile begin: pointers [rows]."""
    return words + (rows // _ROW_TILE).to(tl.int64) * num_tiles * _TILE_WORDS + rows % _ROW_TILE * BLOCK


@triton.jit
def find_rows(low, high, scales, rows, low_tiles, high_tiles, num_steps, FORMAT: tl.constexpr):
    """Return where the low words, the high words (if there are any) and the scale words of each row begin."""
    words: tl.constexpr = FORMAT.num_scale_words
    low_rows = _row_words(low, rows, low_tiles)
    high_rows = low_rows
    if FORMAT.high_bits > 0:
        high_rows = _row_words(high, rows, high_tiles)
    tiles = (rows // _ROW_TILE).to(tl.int64)
    scale_rows = scales + tiles * num_steps * (words * _ROW_TILE) + rows % _ROW_TILE
    return low_rows, high_rows, scale_rows


@triton.jit
def _load_low(low_rows, step, B: tl.constexpr, FORMAT: tl.constexpr):
    """Load the low words [32, rows] that hold block B of a step."""
    tiles: tl.constexpr = FORMAT.num_blocks * FORMAT.low_bits // 16
    tile = step * tiles + B * FORMAT.low_bits // 16
    return tl.load(low_rows[None, :] + tile * _TILE_WORDS + tl.arange(0, BLOCK)[:, None])


@triton.jit
def _load_high(high_rows, step, FORMAT: tl.constexpr):
    """Load the high words [32, rows] of a step, whose block b is in the field b."""
    fields: tl.constexpr = FORMAT.num_blocks * FORMAT.high_bits
    steps: tl.constexpr = 16 // fields  # one or two share the words
    places = high_rows[None, :] + step // steps * _TILE_WORDS + tl.arange(0, BLOCK)[:, None]
    words = tl.load(places)
    if steps > 1:
        words = words >> (step % steps * fields)
    return words


@triton.jit
def _load_scales(scale_rows, step, INDEX: tl.constexpr, FORMAT: tl.constexpr):
    """Load one scale word of a step: int32 [rows]."""
    words: tl.constexpr = FORMAT.num_scale_words
    return tl.load(scale_rows + (step * words + INDEX) * _ROW_TILE)


@triton.jit
def _half(word, INDEX: tl.constexpr):
    """Return one of the two float16 of a word, as float32."""
    return (word >> (16 * INDEX)).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _byte(word, INDEX: tl.constexpr):
    return (word >> (8 * INDEX)) & 255


@triton.jit
def _halves(first, second):
    """Return [32, rows]: one value for the first 16 elements of K, one for the others."""
    return tl.where(tl.arange(0, BLOCK)[:, None] < BLOCK // 2, first[None, :], second[None, :])


@triton.jit
def _scale_and_minimum(scale_rows, step, unit, B: tl.constexpr, FORMAT: tl.constexpr):
    """Return what block B is multiplied by, times `unit`, and what is then added.

    Both are float32 [1, rows] or [32, rows].
    """
    if FORMAT.scales == _BLOCK_SCALES:
        scale = (_half(_load_scales(scale_rows, step, B // 2, FORMAT), B % 2) * unit)[None, :]
        minimum = tl.zeros_like(scale)
    elif FORMAT.scales == _BLOCK_MIN:
        word = _load_scales(scale_rows, step, B, FORMAT)
        scale = (_half(word, 0) * unit)[None, :]
        minimum = _half(word, 1)[None, :]
    elif FORMAT.scales == _SUPER_MIN:
        super_scales = _load_scales(scale_rows, step, 0, FORMAT)
        factor = _byte(_load_scales(scale_rows, step, 1 + B // 4, FORMAT), B % 4).to(tl.float32)
        below = _byte(_load_scales(scale_rows, step, 3 + B // 4, FORMAT), B % 4).to(tl.float32)
        scale = (_half(super_scales, 0) * unit * factor)[None, :]
        minimum = -(_half(super_scales, 1) * below)[None, :]
    else:
        scale, minimum = _halves_scales(scale_rows, step, unit, B, FORMAT)
    return scale, minimum


@triton.jit
def _halves_scales(scale_rows, step, unit, B: tl.constexpr, FORMAT: tl.constexpr):
    """Return the same of formats whose factors are for 16 elements."""
    super_scales = _load_scales(scale_rows, step, 0, FORMAT)
    d = _half(super_scales, 0) * unit
    word = _load_scales(scale_rows, step, 1 + B // 2, FORMAT)
    first = _byte(word, 2 * B % 4)
    second = _byte(word, 2 * B % 4 + 1)
    if FORMAT.scales == _SUPER_HALVES:  # signed bytes
        scale = _halves(d * ((first ^ 128) - 128).to(tl.float32), d * ((second ^ 128) - 128).to(tl.float32))
        minimum = tl.zeros_like(scale)
    else:
        scale = _halves(d * (first & 15).to(tl.float32), d * (second & 15).to(tl.float32))
        dmin = _half(super_scales, 1)
        minimum = -_halves(dmin * (first >> 4).to(tl.float32), dmin * (second >> 4).to(tl.float32))
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
def load_block(rows, step, B: tl.constexpr, FORMAT: tl.constexpr, DTYPE: tl.constexpr):
    """Load block B of a step as T [32, rows]: `rows` of `find_rows`.

    The field of low bits stays where it is in the mantissa of 2^23: one `and` with an `or` for each weight, where
    a shift and a conversion would cost three times that; the scale is divided by the field's unit instead.
    """
    low_bits: tl.constexpr = FORMAT.low_bits
    high_bits: tl.constexpr = FORMAT.high_bits
    position: tl.constexpr = B * low_bits % 16
    quants = _move_bits(_load_low(rows[0], step, B, FORMAT), low_bits, position, position)
    if high_bits > 0:
        quants |= _move_bits(_load_high(rows[1], step, FORMAT), high_bits, B * high_bits, position + low_bits)
    raised = (quants | _FLOAT_BITS).to(tl.float32, bitcast=True) - (_FLOAT + (FORMAT.offset << position))
    scale, minimum = _scale_and_minimum(rows[2], step, 1.0 / (1 << position), B, FORMAT)
    scale, raised = tl.broadcast(scale, raised)
    minimum, raised = tl.broadcast(minimum, raised)
    return tl.fma(raised, scale, minimum).to(DTYPE)
