"""The kernel of attention: query tokens of one request against its keys, split by split.

What could order or round a sum otherwise from batch to batch is fixed: splits and key blocks lie at absolute
positions, a block or split of which a row sees nothing leaves its numbers as they are, and every multiply-add
that a compiler might round once or twice is written as fma().
"""

import triton
import triton.language as tl

# Below every score. Finite, as inf - inf is NaN; a power of two, so that scaled it leaves fma() no remainder.
_UNSEEN = tl.constexpr(-(2.0**100))
_ONES = tl.constexpr(16)  # columns of ones that the weights are multiplied by: all hold their sum


@triton.jit(do_not_specialize=["window", "table_width", "tile_programs", "program_tokens", "max_splits"])
def attend_tiles(
    query,
    keys,
    values,
    block_tables,
    token_requests,
    positions,
    tile_starts,
    tile_lengths,
    out,
    partials,
    counters,
    score_scale,
    window,
    table_width,
    tile_programs,
    program_tokens,
    max_splits,
    plan: tl.constexpr,
    PDL: tl.constexpr,
):
    """Attend a tile's tokens, or some of them, with one head of keys and values, to a share of the splits."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    program = tl.num_programs(0) - 1 - tl.program_id(0)  # the last tiles of a prompt see the most keys
    tile = program // tile_programs
    skipped = program % tile_programs * program_tokens
    start = tl.load(tile_starts + tile)
    count = tl.minimum(tl.load(tile_lengths + tile) - skipped, program_tokens)
    first = tl.load(positions + start) + skipped
    first_key = tl.maximum(first - window + 1, 0) if plan.has_window else 0
    splits = (first_key // plan.split, (first + count - 1) // plan.split + 1)
    num_sharing = tl.minimum(splits[1] - splits[0], tl.num_programs(2))
    if (count <= 0) | (tl.program_id(2) >= num_sharing):
        return
    table = block_tables + tl.load(token_requests + start).to(tl.int64) * table_width
    span = (first, first_key, first + count, window)
    scratch = _scratch(partials, counters, program, max_splits, program_tokens * plan.group, plan)
    _attend(
        (query, out, start + skipped),
        (keys, values, table),
        span,
        splits,
        num_sharing,
        scratch,
        score_scale,
        plan,
    )


@triton.jit
def _attend(tokens, pool, span, splits, num_sharing, scratch, score_scale, plan: tl.constexpr):
    """Attend the tokens to this program's share of the splits; whoever is last writes the result."""
    query, out, start = tokens
    first, _, end, _ = span
    row = tl.arange(0, plan.rows)
    token = row // plan.group
    dim = tl.arange(0, plan.head_block)
    head = tl.program_id(1) * plan.group + row % plan.group
    number = ((start + token).to(tl.int64) * (tl.num_programs(1) * plan.group) + head) * plan.head_dim
    place = number[:, None] + dim[None, :]
    is_row = token < end - first
    is_number = is_row[:, None] & (dim < plan.head_dim)[None, :]
    q = tl.load(query + place, mask=is_number, other=0.0)
    position = tl.minimum(first + token, end - 1)
    maximum, total, acc = _nothing(plan)
    for split in range(splits[0] + tl.program_id(2), splits[1], tl.num_programs(2)):
        split_maximum, split_total, split_acc = _attend_split(
            q, pool, position, span, split, score_scale, plan
        )
        if plan.is_parallel:
            if num_sharing > 1:
                _store_partial(scratch, split, is_row, split_maximum, split_total, split_acc, plan)
        maximum, total, acc = _merge(maximum, total, acc, split_maximum, split_total, split_acc)
    num_stored = end - first
    if plan.is_parallel:
        if num_sharing > 1:
            is_last = _is_last(scratch, num_sharing)
            num_stored = tl.where(is_last, num_stored, 0)
            if is_last:
                maximum, total, acc = _merge_partials(scratch, splits, is_row, plan)
    result = acc / tl.where(total > 0.0, total, 1.0)[:, None]  # 0 for rows that others, or nobody, will store
    mask = is_number & (token < num_stored)[:, None]
    tl.store(out + place, result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _nothing(plan: tl.constexpr):
    """Return the maximum, the sum and the weighted values of no keys at all."""
    maximum = tl.full([plan.rows], _UNSEEN, tl.float32)
    total = tl.full([plan.rows], 0.0, tl.float32)
    return maximum, total, tl.full([plan.rows, plan.head_block], 0.0, tl.float32)


@triton.jit
def _attend_split(q, pool, position, span, split, score_scale, plan: tl.constexpr):
    """Return maximum, sum and weighted values of one split, whichever programs do the others.

    With many rows, blocks that every row sees whole skip the masks. With few, time is latency: one loop
    keeps loads in flight from the first block to the last.
    """
    first, first_key, end, window = span
    maximum, _, acc = _nothing(plan)
    total = tl.full([plan.rows, _ONES], 0.0, tl.float32)
    begin = tl.maximum(split * plan.split, first_key // plan.key_block * plan.key_block)
    stop = tl.minimum(split * plan.split + plan.split, end)
    if plan.skips_masks:
        full_begin = begin
        if plan.has_window:
            full_begin = tl.cdiv(tl.maximum(end - window, 0), plan.key_block) * plan.key_block
            full_begin = tl.minimum(tl.maximum(full_begin, begin), stop)
            for key in range(begin, full_begin, plan.key_block):
                maximum, total, acc = _add_keys(
                    q, pool, position, span, key, score_scale, maximum, total, acc, plan, True
                )
        begin = tl.minimum(tl.maximum((first + 1) // plan.key_block * plan.key_block, full_begin), stop)
        for key in range(full_begin, begin, plan.key_block):
            maximum, total, acc = _add_keys(
                q, pool, position, span, key, score_scale, maximum, total, acc, plan, False
            )
    for key in range(begin, stop, plan.key_block):
        maximum, total, acc = _add_keys(
            q, pool, position, span, key, score_scale, maximum, total, acc, plan, True
        )
    return maximum, tl.max(total, 1), acc


@triton.jit
def _add_keys(
    q,
    pool,
    position,
    span,
    first,
    score_scale,
    maximum,
    total,
    acc,
    plan: tl.constexpr,
    is_masked: tl.constexpr,
):
    """Add a block of keys to a split (online softmax, arXiv 1805.02867), in powers of two."""
    keys, values, table = pool
    key = first + tl.arange(0, plan.key_block)
    dim = tl.arange(0, plan.head_block)
    place, is_key = _places(table, key, span, plan, is_masked)
    is_number = is_key[:, None] & (dim < plan.head_dim)[None, :]
    k = _load(keys + place[:, None] + dim[None, :], is_number, plan, is_masked)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if is_masked:
        is_seen = _is_seen(key, position, span, plan)
        scores = tl.where(is_seen, scores, _UNSEEN)
    new_maximum = tl.maximum(maximum, tl.max(scores, 1) * score_scale)
    weights = tl.exp2(tl.fma(scores, score_scale, -new_maximum[:, None]))
    if is_masked:
        weights = tl.where(is_seen, weights, 0.0)
    decay = tl.exp2(maximum - new_maximum)
    v = _load(values + place[:, None] + dim[None, :], is_number, plan, is_masked)
    weights = weights.to(v.dtype)
    ones = tl.full([plan.key_block, _ONES], 1.0, v.dtype)
    total = tl.dot(weights, ones, total * decay[:, None], input_precision="ieee")
    acc = tl.dot(weights, v, acc * decay[:, None], input_precision="ieee")
    return new_maximum, total, acc


@triton.jit
def _places(table, key, span, plan: tl.constexpr, is_masked: tl.constexpr):
    """Return where the keys of this program's head lie, and which of them are there for any of its rows."""
    is_key = key >= 0
    if is_masked:
        is_key = (key >= span[1]) & (key < span[2])
        block = tl.load(table + key // plan.block_size, mask=is_key, other=0)
    else:
        block = tl.load(table + key // plan.block_size)
    head = block.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)  # may pass 2**31 in numbers
    return (head * plan.block_size + key % plan.block_size) * plan.head_dim, is_key


@triton.jit
def _load(pointers, mask, plan: tl.constexpr, is_masked: tl.constexpr):
    """Load keys or values; 0 for those that nobody may have written, since 0 * NaN is NaN."""
    if is_masked or plan.head_dim != plan.head_block:
        return tl.load(pointers, mask=mask, other=0.0)
    else:  # noqa: RET505 - Triton compiles only the branch taken
        return tl.load(pointers)


@triton.jit
def _is_seen(key, position, span, plan: tl.constexpr):
    is_seen = key[None, :] <= position[:, None]
    if plan.has_window:
        is_seen = is_seen & (key[None, :] > position[:, None] - span[3])
    return is_seen


@triton.jit
def _merge(maximum, total, acc, other_maximum, other_total, other_acc):
    """Merge a split into those before it; every program does it in ascending order."""
    new_maximum = tl.maximum(maximum, other_maximum)
    decay = tl.exp2(maximum - new_maximum)
    other_decay = tl.exp2(other_maximum - new_maximum)
    total = tl.fma(total, decay, other_total * other_decay)
    return new_maximum, total, tl.fma(acc, decay[:, None], other_acc * other_decay[:, None])


@triton.jit
def _scratch(partials, counters, program, max_splits, num_rows, plan: tl.constexpr):
    """Return where the partial results of a tile begin, weighted values and then sums, and its counter."""
    number = program.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    num_programs = tl.num_programs(0).to(tl.int64) * tl.num_programs(1)
    outputs = partials + number * max_splits * num_rows * plan.head_dim
    sums = (
        partials + num_programs * max_splits * num_rows * plan.head_dim + number * max_splits * num_rows * 2
    )
    return outputs, sums, counters + number, num_rows


@triton.jit
def _partial(scratch, split, plan: tl.constexpr):
    """Return pointers to the sums [rows] and the weighted values [rows, head_block] of a split."""
    outputs, sums, _, num_rows = scratch
    row = split * num_rows + tl.arange(0, plan.rows)
    return sums + row * 2, outputs + row[:, None] * plan.head_dim + tl.arange(0, plan.head_block)[None, :]


@triton.jit
def _store_partial(scratch, split, is_row, maximum, total, acc, plan: tl.constexpr):
    sums, outputs = _partial(scratch, split, plan)
    tl.store(sums, maximum, mask=is_row)
    tl.store(sums + 1, total, mask=is_row)
    is_number = is_row[:, None] & (tl.arange(0, plan.head_block) < plan.head_dim)[None, :]
    tl.store(outputs, acc, mask=is_number)


@triton.jit
def _is_last(scratch, num_sharing):
    """Say whether all others have stored their partial results; if so, reset the counter."""
    tl.debug_barrier()  # the whole program has stored before its one thread says so
    counter = scratch[2]
    is_last = tl.atomic_add(counter, 1, sem="acq_rel") == num_sharing - 1
    tl.store(counter, 0, mask=is_last)
    return is_last


@triton.jit
def _merge_partials(scratch, splits, is_row, plan: tl.constexpr):
    maximum, total, acc = _nothing(plan)
    is_number = is_row[:, None] & (tl.arange(0, plan.head_block) < plan.head_dim)[None, :]
    for split in tl.range(splits[0], splits[1], loop_unroll_factor=plan.merge_unroll):
        sums, outputs = _partial(scratch, split, plan)
        split_maximum = tl.load(sums, mask=is_row, other=0.0, cache_modifier=".cg")
        split_total = tl.load(sums + 1, mask=is_row, other=1.0, cache_modifier=".cg")
        split_acc = tl.load(outputs, mask=is_number, other=0.0, cache_modifier=".cg")
        maximum, total, acc = _merge(maximum, total, acc, split_maximum, split_total, split_acc)
    return maximum, total, acc
