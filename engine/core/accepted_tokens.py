"""What a step chose for a request: which of it stays, and what is told of it."""

from collections.abc import Iterator

from engine.core.answer_end import append_run, finish_reason_after
from engine.core.request import Request
from engine.core.step_output import StepOutput
from engine.interface.batch import SamplerOutput, ScheduledChunk
from engine.interface.outputs import FinishReason, TokenLogprobs


def take_prompt_results(
    request: Request,
    chunk: ScheduledChunk,
    scores: Iterator[tuple[TokenLogprobs, ...]],
    sums: Iterator[bytes],
    *,
    counts: bool,
) -> None:
    """Take what a chunk brought beside a token, the next of `scores` and `sums`; add it if it counts."""
    prompt_logprobs = next(scores) if chunk.scored is not None else ()
    pooled = next(sums) if chunk.pooled_from is not None else None
    if request.finish_reason is not None or not counts:
        return
    request.prompt_logprobs.extend(prompt_logprobs)
    if pooled is not None and request.pooled_sum is not None:
        request.pooled_sum.add(pooled, end=chunk.first_position + len(chunk.token_ids))


def append_chosen(
    request: Request, chunk: ScheduledChunk, output: SamplerOutput, first_row: int, faults: frozenset[int]
) -> tuple[StepOutput, FinishReason | None]:
    """Append the accepted drafts and the target's own token after them; return them, and why it ends there.

    A draft token stays if it is what the target chose in its place; the tokens chosen after the first that
    does not are dropped.
    """
    if chunk.num_drafts:
        num_new, reason = append_run(request, chunk, output.token_ids, first_row, faults)
    else:
        num_new, token_id = 1, output.token_ids[first_row]
        request.append(token_id)
        reason = finish_reason_after(request, token_id)
    is_first = len(request.token_ids) - request.num_prompt_tokens == num_new
    step = StepOutput(request, output.token_ids[first_row : first_row + num_new], is_first)
    if request.params.logprobs is not None:
        logprobs = output.logprobs[first_row : first_row + num_new]
        step.logprobs = tuple([score for score in logprobs if score is not None])
    if chunk.num_drafts:
        step.num_draft_tokens = chunk.num_drafts
        pairs = zip(step.token_ids, chunk.draft_token_ids, strict=False)
        step.num_accepted_tokens = sum(new == draft for new, draft in pairs)
    return step, reason
