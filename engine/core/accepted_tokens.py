"""What a step chose for a request: which of it stays, and what is told of it."""

from engine.core.answer_end import append_run, finish_reason_after
from engine.core.request import Request
from engine.core.step_output import StepOutput
from engine.interface.batch import SamplerOutput, ScheduledChunk
from engine.interface.outputs import FinishReason


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
