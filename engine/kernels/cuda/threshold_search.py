"""The highest threshold that leaves enough of a row, without a sort.

Each token has a value and a weight (1, or its share in fixed point). Wanted is the highest value v at which
the weights of all tokens of value v or more reach `need`. Float32 values map to ordered integers, among which
a search brackets v: some pivots a pass over the row until few values are left in the bracket, then among
those in registers. Weights are integers, so neither the order of adding nor the pivots matter to the result.

What value and weight are is the constant MODE: of top-k, top-p or typical-p.
"""

import triton
import triton.language as tl

from engine.kernels.cuda.exact_math import share_of

COUNT: tl.constexpr = tl.constexpr(0)  # value: the logit; weight 1
NUCLEUS: tl.constexpr = tl.constexpr(1)  # value: the logit; weight: its share
TYPICAL: tl.constexpr = tl.constexpr(2)  # value: minus the distance from the mean surprise; weight: the share

_REACH: tl.constexpr = tl.constexpr(64.0)  # how far below the bracket's top the first pivots lie
_LOWEST: tl.constexpr = tl.constexpr(-2139095041)  # ordered(-inf)
_HIGHEST: tl.constexpr = tl.constexpr(2139095040)  # ordered(inf)


@triton.jit
def ordered(value):
    """Map float32 to int64 in the same order; -0 comes before 0."""
    bits = value.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def from_ordered(key):
    """Map back to float32."""
    bits = key.to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def scaled_logits(pointer, tokens, vocab_size, temperature):
    """Return logits divided by the temperature as torch does, and -inf beyond the vocabulary."""
    x = tl.load(pointer + tokens, mask=tokens < vocab_size, other=float("-inf"))
    return tl.div_rn(x, temperature)


@triton.jit
def surprise_distance(x, highest, mean):
    """Return how far a token's surprise is from the mean, both less the likeliest's: that cancels."""
    return tl.abs((highest - x) - mean)


@triton.jit
def _measure(x, is_token, highest, least, mean, MODE: tl.constexpr):
    """Return the values and weights of scaled logits; those below `least` are gone."""
    is_left = is_token & (x >= least)
    weight = is_left.to(tl.int64)
    value = x
    if MODE != COUNT:
        weight = tl.where(is_left, share_of(highest - x), 0)
    if MODE == TYPICAL:
        value = tl.where(is_left, -surprise_distance(x, highest, mean), float("-inf"))
    return value, weight


@triton.jit
def _pivots(low, high, num_passes, NUM_PIVOTS: tl.constexpr):
    """Return ascending keys strictly between two keys more than 1 apart.

    In the first pass each is half as far from the top as the one before, for most tokens are far below it; in
    the second they are evenly spaced in value, later in order, so that a search ends after some more.
    """
    number = tl.arange(0, NUM_PIVOTS) + 1
    top = from_ordered(high)
    span = top - tl.maximum(from_ordered(low), top - _REACH)
    even = 1.0 - number.to(tl.float32) / (NUM_PIVOTS + 1)
    by_value = ordered(top - span * tl.where(num_passes == 0, tl.exp2(-number.to(tl.float32)), even))
    in_order = low + (high - low) * number // (NUM_PIVOTS + 1)
    return tl.minimum(tl.maximum(tl.where(num_passes < 2, by_value, in_order), low + 1), high - 1)


@triton.jit
def _narrow(low, high, above, inside, need, pivots, weights, counts):
    """Return the next bracket, what weighs above it and how many are inside.

    weights, counts: of the values from each pivot up to the bracket's top.
    """
    totals = weights + above
    is_reached = totals >= need
    next_low = tl.maximum(low, tl.max(tl.where(is_reached, pivots, low), 0))
    next_high = tl.minimum(high, tl.min(tl.where(is_reached, high, pivots), 0))
    next_above = tl.maximum(above, tl.max(tl.where(is_reached, above, totals), 0))
    from_low = tl.minimum(inside, tl.min(tl.where(is_reached, counts, inside), 0))
    from_high = tl.maximum(0, tl.max(tl.where(is_reached, 0, counts), 0))
    return next_low, next_high, next_above, from_low - from_high


@triton.jit
def _weigh(value, weight, is_token, low, high, pivots):
    """Return weights and counts [num_values, num_pivots] of the values from each pivot up to the top."""
    is_inside = is_token & (value >= from_ordered(low)) & (value < from_ordered(high))
    is_above = is_inside[:, None] & (value[:, None] >= from_ordered(pivots)[None, :])
    return tl.where(is_above, weight[:, None], 0), is_above.to(tl.int32)


@triton.jit
def _weigh_row(
    pointer, vocab_size, temperature, highest, least, mean, low, high, pivots,
    MODE: tl.constexpr, NUM_PIVOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return weights and counts [num_pivots] of the whole row."""
    weights = tl.zeros((BLOCK, NUM_PIVOTS), dtype=tl.int64)
    counts = tl.zeros((BLOCK, NUM_PIVOTS), dtype=tl.int32)
    for start in range(0, vocab_size, BLOCK):
        tokens = start + tl.arange(0, BLOCK)
        x = scaled_logits(pointer, tokens, vocab_size, temperature)
        value, weight = _measure(x, tokens < vocab_size, highest, least, mean, MODE)
        more_weights, more_counts = _weigh(value, weight, tokens < vocab_size, low, high, pivots)
        weights += more_weights
        counts += more_counts
    return tl.sum(weights, 0), tl.sum(counts, 0)


@triton.jit
def _gather(
    pointer, vocab_size, temperature, highest, least, mean, low, high, candidates,
    MODE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the scaled logits whose values are in the bracket to `candidates`, which has room for them."""
    num_found = 0
    for start in range(0, vocab_size, BLOCK):
        tokens = start + tl.arange(0, BLOCK)
        x = scaled_logits(pointer, tokens, vocab_size, temperature)
        value, _ = _measure(x, tokens < vocab_size, highest, least, mean, MODE)
        is_inside = (tokens < vocab_size) & (value >= from_ordered(low)) & (value < from_ordered(high))
        if tl.max(is_inside.to(tl.int32), 0) > 0:
            place = num_found + tl.cumsum(is_inside.to(tl.int32), 0) - 1
            tl.store(candidates + place, x, mask=is_inside)
            num_found += tl.sum(is_inside.to(tl.int32), 0)
    tl.debug_barrier()  # this program's threads read each other's


@triton.jit
def find_threshold(
    pointer, vocab_size, temperature, highest, least, mean, need, candidates,
    MODE: tl.constexpr, NUM_PIVOTS: tl.constexpr, NUM_CANDIDATES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the highest value at which the weights reach `need`, int64, which those of all tokens do.

    pointer: a row of logits; highest: the highest logit after the temperature; candidates: float32
    [NUM_CANDIDATES] that belong to this program.
    """
    low = tl.full((), _LOWEST, tl.int64)
    high = tl.full((), 1, tl.int64)  # no value is above 0
    if MODE != TYPICAL:
        high = tl.minimum(ordered(highest) + 1, _HIGHEST)
    above = tl.full((), 0, tl.int64)
    inside = tl.full((), 0, tl.int32) + vocab_size
    num_passes = 0
    while (high - low > 1) & (inside > NUM_CANDIDATES):
        pivots = _pivots(low, high, num_passes, NUM_PIVOTS)
        weights, counts = _weigh_row(
            pointer, vocab_size, temperature, highest, least, mean, low, high, pivots, MODE, NUM_PIVOTS, BLOCK
        )
        low, high, above, inside = _narrow(low, high, above, inside, need, pivots, weights, counts)
        num_passes += 1
    if high - low > 1:
        _gather(pointer, vocab_size, temperature, highest, least, mean, low, high, candidates, MODE, BLOCK)
        place = tl.arange(0, NUM_CANDIDATES)
        x = tl.load(candidates + place, mask=place < inside, other=float("-inf"))
        value, weight = _measure(x, place < inside, highest, least, mean, MODE)
        while high - low > 1:
            pivots = _pivots(low, high, num_passes, NUM_PIVOTS)
            weights, counts = _weigh(value, weight, place < inside, low, high, pivots)
            low, high, above, _ = _narrow(
                low, high, above, inside, need, pivots, tl.sum(weights, 0), tl.sum(counts, 0)
            )
            num_passes += 1
    return from_ordered(low)
