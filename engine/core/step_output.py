"""StepOutput: what a step brought for a request; StepTokens: for all of them, where that is a token each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

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


class StepTokens(Sequence[StepOutput]):
    """What a step brought that brought each request one token: no first, no end, nothing beside it.

    The outputs are made as somebody looks at them. Steps of the same requests have the same `requests`.
    """

    __slots__ = ("requests", "token_ids")

    def __init__(self, requests: Sequence[Request], token_ids: Sequence[int]) -> None:
        self.requests = requests
        self.token_ids = token_ids

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[StepOutput]:
        for request, token_id in zip(self.requests, self.token_ids, strict=True):
            yield StepOutput(request, (token_id,))

    @overload
    def __getitem__(self, index: int) -> StepOutput: ...
    @overload
    def __getitem__(self, index: slice) -> list[StepOutput]: ...
    def __getitem__(self, index: int | slice) -> StepOutput | list[StepOutput]:
        return list(self)[index]
