"""Request: one generation as the scheduler keeps it."""

import time
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from engine.core.pooled_sum import PooledSum
from engine.interface.cache_explanation import CacheExplanation
from engine.interface.outputs import FinishReason, TokenLogprobs
from engine.interface.pooling import Pooling
from engine.interface.sampling_params import SamplingParams
from engine.interface.speculation import NOT_SPECULATING, SpeculationMode, SpeculationParams
from engine.kv_cache.block import Block


class RequestStatus(Enum):
    """Where a request stands; a preempted request is WAITING again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class GrammarState(Protocol):
    """Where an answer stands in its grammar (engine/sampling/grammar.py)."""

    def token_bitmask(self) -> bytes | None:
        """Return a bit per token, the lowest of a byte first: 1 if it may come next. None: any may."""

    def accept(self, token_id: int) -> None:
        """Advance by a token that was allowed."""

    def allows(self, token_id: int) -> bool:
        """Tell whether a token may come next."""

    def copy(self) -> "GrammarState":
        """Return a state that goes its own way from here."""

    def forced_tokens(self, limit: int) -> list[int]:
        """Return up to `limit` tokens that must come next, without an end token."""

    @property
    def is_complete(self) -> bool:
        """True when nothing but an end token may follow."""

    @property
    def error(self) -> str | None:
        """Why the grammar could not be followed to its end; then `is_complete` is true as well."""


@dataclass(slots=True, eq=False, kw_only=True)
class Request:
    """One choice being generated; belongs to the engine thread once it is added.

    token_ids = prompt + answer so far; behind it stand the tokens that steps under way are choosing.
    [0, num_computed_tokens) have their KV in the blocks of block_table once the steps launched so far are
    over; the rest is to be computed. There is no prefill or decode phase: the counter chases the number of
    tokens and, while there are drafts, of them too.

        | prompt | answer so far | in flight | drafts |
                       ^ num_committed_tokens: the steps that computed them are over
                                           ^ num_computed_tokens
    """

    request_id: int
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    seed: int
    choice: int
    root_hash: bytes
    stop_token_ids: frozenset[int]
    max_total_tokens: int  # prompt and answer together: max_tokens and max_model_len in one bound
    tenant: bytes = b""  # whose turns it takes in the queue
    weight: float = 1.0  # of its tenant
    priority: int = 0  # within its tenant; lower is sooner
    starts_before: float | None = None  # monotonic time at which it has waited too long
    arrival_time: float = field(default_factory=time.monotonic)
    status: RequestStatus = RequestStatus.WAITING
    finish_reason: FinishReason | None = None
    is_step_error: bool = False  # steps fail whenever they run it
    token_ids: list[int] = field(init=False)
    num_computed_tokens: int = 0
    num_committed_tokens: int = 0
    num_in_flight: int = 0  # tokens that steps under way are choosing
    num_steps_in_flight: int = 0
    speculation: SpeculationParams = NOT_SPECULATING  # its mode is never None here
    prediction: tuple[int, ...] = ()  # what the caller expects of the answer, for drafts alone
    draft_token_ids: tuple[int, ...] = ()  # proposed for the next step, never part of the answer by itself
    num_model_drafts: int = 0  # that the draft model is to make for the next step
    num_cached_tokens: int = 0  # of the prompt, when the request first ran
    explains_cache: bool = False
    cache_explanation: CacheExplanation | None = None  # of that moment, if it explains_cache
    first_run_time: float | None = None
    block_table: list[Block] = field(default_factory=list)
    block_ids: tuple[int, ...] = ()  # of block_table; a new tuple when it changes: steps keep theirs
    block_hashes: list[bytes] = field(default_factory=list)  # of the full blocks of token_ids
    num_cached_full_blocks: int = 0
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)  # from the second prompt token on
    pooled_sum: PooledSum | None = field(init=False, default=None)
    answer_counts: Counter[int] = field(default_factory=Counter)  # kept only for penalties
    grammar_state: GrammarState | None = None
    looks_back: bool = field(init=False)  # choosing a token needs the tokens before it, here on the host
    has_penalties: bool = field(init=False)
    needs_its_tokens: bool = field(init=False)  # its next step is made of tokens known here on the host
    decodes_plainly: bool = field(
        init=False
    )  # a step brings it one token and nothing beside, made of no other
    num_prompt_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        """Start with the prompt as the tokens to compute."""
        self.token_ids = list(self.prompt_token_ids)
        self.num_prompt_tokens = len(self.prompt_token_ids)
        self.has_penalties = self.params.has_penalties
        self.looks_back = self.params.looks_back or self.grammar_state is not None
        self.needs_its_tokens = self.looks_back or self.speculation.mode is not SpeculationMode.OFF
        self.decodes_plainly = (
            not self.needs_its_tokens and self.params.logprobs is None and self.params.pooling is None
        )
        if self.params.pooling is not None:
            is_last = self.params.pooling is Pooling.LAST
            self.pooled_sum = PooledSum(self.num_prompt_tokens - 1 if is_last else 0)

    def append(self, token_id: int) -> None:
        """Add a token to the answer."""
        self.token_ids.append(token_id)
        if self.has_penalties:
            self.answer_counts[token_id] += 1
        if self.grammar_state is not None:
            self.grammar_state.accept(token_id)

    def forget_drafts(self) -> None:
        """Have no drafts in the next step."""
        self.draft_token_ids, self.num_model_drafts = (), 0

    @property
    def wants_token(self) -> bool:
        """False for a request that only scores or pools its prompt."""
        return self.num_tokens < self.max_total_tokens

    @property
    def wants_whole_prompt(self) -> bool:
        """True until every prompt token that is to have a logprob, or is to be averaged, is computed."""
        params = self.params
        if params.pooling is Pooling.MEAN and self.pooled_sum is not None:
            return self.pooled_sum.next_position < self.num_prompt_tokens
        return params.prompt_logprobs is not None and len(self.prompt_logprobs) < self.num_prompt_tokens - 1

    @property
    def num_tokens(self) -> int:
        """Length of prompt and answer, with the tokens that are in flight."""
        return len(self.token_ids) + self.num_in_flight

    @property
    def num_output_tokens(self) -> int:
        """Length of the answer so far, without what is in flight."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def queue_seconds(self) -> float:
        """Time from arrival to the first step that ran the request."""
        return (self.first_run_time or self.arrival_time) - self.arrival_time
