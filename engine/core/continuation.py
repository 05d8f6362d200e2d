"""From a continuation to the whole batch that it stands for: the slow twin of executors that continue."""

from engine.interface.batch import PENDING_TOKEN, Batch, Continuation, ScheduledChunk


def expand(launched: Batch, continuation: Continuation) -> Batch:
    """Return the batch that goes on from the launch before, itself expanded if it was a continuation.

    Every token in it is PENDING_TOKEN, whether the step that chooses it is over or not.
    """
    ended, new_blocks = frozenset(continuation.ended), dict(continuation.new_blocks)
    chunks = [chunk for row, chunk in enumerate(launched.chunks) if row not in ended]
    assert len(chunks) == continuation.num_rows == len(launched.chunks) - len(continuation.ended)
    assert len(new_blocks) == len(continuation.new_blocks)
    return Batch(tuple([_go_on(chunk, new_blocks.get(row)) for row, chunk in enumerate(chunks)]))


def _go_on(chunk: ScheduledChunk, new_block: int | None) -> ScheduledChunk:
    """Return the chunk of the next token."""
    [row] = chunk.rows
    return ScheduledChunk(
        chunk.request_id,
        chunk.first_position + chunk.num_tokens,
        (PENDING_TOKEN,),
        chunk.block_ids if new_block is None else (*chunk.block_ids, new_block),
        (row._replace(position=row.position + 1),),
    )
