"""From a continuation to the whole batch that it stands for: the slow twin of executors that continue."""

from engine.interface.batch import PENDING_TOKEN, Batch, Continuation, ScheduledChunk


def expand(launched: Batch, continuation: Continuation) -> Batch:
    """Return the batch that goes on from the launch before, itself expanded if it was a continuation.

    Every token in it is PENDING_TOKEN, whether the step that chooses it is over or not.
    """
    assert len(launched.chunks) == continuation.num_rows
    new_blocks = dict(continuation.new_blocks)
    assert len(new_blocks) == len(continuation.new_blocks)
    return Batch(tuple([_go_on(chunk, new_blocks.get(row)) for row, chunk in enumerate(launched.chunks)]))


def _go_on(chunk: ScheduledChunk, new_block: int | None) -> ScheduledChunk:
    """Return the chunk of the next token."""
    [row] = chunk.rows
    return ScheduledChunk(
        chunk.request_id,
        chunk.first_position + 1,
        (PENDING_TOKEN,),
        chunk.block_ids if new_block is None else (*chunk.block_ids, new_block),
        (row._replace(position=row.position + 1),),
    )
