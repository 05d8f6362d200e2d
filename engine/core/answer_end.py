"""Where an answer ends, token by token."""

import logging
from collections.abc import Sequence

from engine.core.request import Request
from engine.interface.batch import ScheduledChunk
from engine.interface.outputs import FinishReason

logger = logging.getLogger(__name__)


def finish_reason_after(request: Request, token_id: int) -> FinishReason | None:
    """Tell whether the request ends with the token just appended; a stop wins over the length."""
    state = request.grammar_state
    if state is not None and state.is_complete:
        if state.error is None:
            return FinishReason.STOP
        logger.warning("an answer was cut short: %s", state.error)
        return FinishReason.LENGTH
    if token_id in request.stop_token_ids and request.num_output_tokens > request.params.min_tokens:
        return FinishReason.STOP
    if len(request.token_ids) >= request.max_total_tokens:
        return FinishReason.LENGTH
    return None


def append_run(
    request: Request,
    chunk: ScheduledChunk,
    token_ids: Sequence[int],
    first_row: int,
    faults: frozenset[int],
) -> tuple[int, FinishReason | None]:
    """Append tokens as long as they are the drafts, and one more; return how many, and why it ends."""
    drafts, last_known = chunk.draft_token_ids, len(chunk.token_ids) - chunk.num_drafts - 1
    num_new, reason = 0, None
    for place in range(1 + len(drafts)):
        if faults and last_known + place in faults:
            break  # a draft without a finite value: as a token of the answer it will fail in its own step
        token_id = token_ids[first_row + place]
        request.append(token_id)
        num_new += 1
        reason = finish_reason_after(request, token_id)
        if reason is not None or place == len(drafts) or token_id != drafts[place]:
            break
    return num_new, reason
