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
_FLOAT_256 = tl.constexpr(0x43800000)  # 256.0, whose upper eight bits of mantissa count in ones
_FLOAT_SHIFT = tl.constexpr(15)


@triton.jit
def _row_words(words, rows, num_tiles):
    """Return where the words [32] of each row's first tile begin: pointers [rows]."""
    return words + (rows // _ROW_TILE).to(tl.int64) * num_tiles * _TILE_WORDS + rows % _ROW_TILE * BLOCK


@triton.jit
def find_rows(low, high, scales, rows, low_tiles, high_tiles, num_steps, FORMAT: tl.constexpr):
    """Return where the low words, the high words (or None) and the scale words of each row begin."""
    words: tl.constexpr = FORMAT.num_scale_words
    high_rows = None
    if FORMAT.high_bits > 0:
        high_rows = _row_words(high, rows, high_tiles)
    tiles = (rows // _ROW_TILE).to(tl.int64)
    scale_rows = scales + tiles * num_steps * (words * _ROW_TILE) + rows % _ROW_TILE
    return _row_words(low, rows, low_tiles), high_rows, scale_rows


@triton.jit
def load_high(high_rows, step, FORMAT: tl.constexpr):
    """Load the high words [32, rows] of a step, block b in the field b; None where the format has none."""
    high = None
    if FORMAT.high_bits > 0:
        fields: tl.constexpr = FORMAT.num_blocks * FORMAT.high_bits
        steps: tl.constexpr = 16 // fields  # one or two share the words
        places = high_rows[None, :] + step // steps * _TILE_WORDS + tl.arange(0, BLOCK)[:, None]
        high = tl.load(places) >> (step % steps * fields).to(tl.int16)
    return high


@triton.jit
def _load_low(low_rows, step, B: tl.constexpr, FORMAT: tl.constexpr):
    """Load the low words [32, rows] that hold block B of a step."""
    tiles: tl.constexpr = FORMAT.num_blocks * FORMAT.low_bits // 16
    tile = step * tiles + B * FORMAT.low_bits // 16
    return tl.load(low_rows[None, :] + tile * _TILE_WORDS + tl.arange(0, BLOCK)[:, None])


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
def _scale_and_minimum(scale_rows, step, B: tl.constexpr, FORMAT: tl.constexpr):
    """Return what block B is multiplied by and what is then added: float32 [1, rows] or [32, rows]."""
    if FORMAT.scales == _BLOCK_SCALES:
        scale = _half(_load_scales(scale_rows, step, B // 2, FORMAT), B % 2)[None, :]
        return scale, tl.zeros_like(scale)
    if FORMAT.scales == _BLOCK_MIN:
        word = _load_scales(scale_rows, step, B, FORMAT)
        return _half(word, 0)[None, :], _half(word, 1)[None, :]
    super_scales = _load_scales(scale_rows, step, 0, FORMAT)
    d, dmin = _half(super_scales, 0), _half(super_scales, 1)
    if FORMAT.scales == _SUPER_MIN:
        factor = _byte(_load_scales(scale_rows, step, 1 + B // 4, FORMAT), B % 4).to(tl.float32)
        minimum = _byte(_load_scales(scale_rows, step, 3 + B // 4, FORMAT), B % 4).to(tl.float32)
        return (d * factor)[None, :], -(dmin * minimum)[None, :]
    word = _load_scales(scale_rows, step, 1 + B // 2, FORMAT)
    first, second = _byte(word, 2 * B % 4), _byte(word, 2 * B % 4 + 1)
    if FORMAT.scales == _SUPER_HALVES:  # signed bytes
        first, second = (first ^ 128) - 128, (second ^ 128) - 128
        scale = _halves(d * first.to(tl.float32), d * second.to(tl.float32))
        return scale, tl.zeros_like(scale)
    scale = _halves(d * (first & 15).to(tl.float32), d * (second & 15).to(tl.float32))
    return scale, -_halves(dmin * (first >> 4).to(tl.float32), dmin * (second >> 4).to(tl.float32))


@triton.jit
def load_block(rows, high, step, B: tl.constexpr, FORMAT: tl.constexpr, DTYPE: tl.constexpr):
    """Load block B of a step as T [32, rows]: `rows` of `find_rows`, `high` of `load_high`.

    A quant becomes 256 + q by an `or`; a conversion of integers has half the rate.
    """
    low_bits: tl.constexpr = FORMAT.low_bits
    high_bits: tl.constexpr = FORMAT.high_bits
    quants = (_load_low(rows[0], step, B, FORMAT) >> (B * low_bits % 16)) & ((1 << low_bits) - 1)
    if high_bits > 0:
        quants |= ((high >> (B * high_bits)) & ((1 << high_bits) - 1)) << low_bits
    raised = (quants.to(tl.int32) << _FLOAT_SHIFT | _FLOAT_256).to(tl.float32, bitcast=True)
    scale, minimum = _scale_and_minimum(rows[2], step, B, FORMAT)
    if FORMAT.scales == _BLOCK_SCALES:  # one operation: (256 + q) d has 20 bits
        minimum = scale * -(256.0 + FORMAT.offset)
    else:
        raised -= 256.0 + FORMAT.offset
    scale, raised = tl.broadcast(scale, raised)
    minimum, raised = tl.broadcast(minimum, raised)
    return tl.fma(raised, scale, minimum).to(DTYPE)
