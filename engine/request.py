"""Request: the only mutable state of one generation."""

import time
from dataclasses import dataclass, field
from enum import Enum

from engine.kv_cache.block import Block
from engine.outputs import FinishReason
from engine.sampling_params import SamplingParams


class RequestStatus(Enum):
    """Where a request stands; a preempted request is WAITING again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False, kw_only=True)
class Request:
    """One choice being generated; belongs to the engine thread once it is added.

    token_ids = prompt + answer so far. [0, num_computed_tokens) have their KV in the blocks of
    block_table; the rest is to be computed. There is no prefill or decode phase: the counter chases
    the number of tokens.
    """

    request_id: int
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    seed: int
    choice: int
    root_hash: bytes
    stop_token_ids: frozenset[int]
    max_total_tokens: int  # prompt and answer together: max_tokens and max_model_len in one bound
    arrival_time: float = field(default_factory=time.monotonic)
    status: RequestStatus = RequestStatus.WAITING
    finish_reason: FinishReason | None = None
    token_ids: list[int] = field(init=False)
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0  # of the prompt, when the request first ran
    first_run_time: float | None = None
    block_table: list[Block] = field(default_factory=list)
    block_ids: list[int] = field(default_factory=list)  # ids of block_table, kept for the model input
    block_hashes: list[bytes] = field(default_factory=list)  # of the full blocks of token_ids
    num_published_blocks: int = 0

    def __post_init__(self) -> None:
        """Start with the prompt as the tokens to compute."""
        self.token_ids = list(self.prompt_token_ids)

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.prompt_token_ids)

    @property
    def num_tokens(self) -> int:
        """Length of prompt and answer so far."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Length of the answer so far."""
        return len(self.token_ids) - len(self.prompt_token_ids)

    @property
    def queue_seconds(self) -> float:
        """Time from arrival to the first step that ran the request."""
        return (self.first_run_time or self.arrival_time) - self.arrival_time
