"""StepOutput: what a step brought for one request."""

from dataclasses import dataclass

from engine.core.request import Request
from engine.interface.outputs import TokenLogprobs
from engine.interface.speculation import SpeculationOutput


@dataclass(slots=True)
class StepOutput:
    """What a step brought for a request, which may have finished with it."""

    request: Request
    token_ids: tuple[int, ...] = ()  # none for a request that only scores its prompt
    is_first: bool = False  # nothing came before it
    logprobs: tuple[TokenLogprobs, ...] = ()  # one per token, if asked for
    num_draft_tokens: int = 0  # that were verified
    num_accepted_tokens: int = 0  # of them; the first so many of token_ids
    speculation: SpeculationOutput | None = None  # filled in when the step has been timed
