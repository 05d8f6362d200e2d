"""EngineStats: a snapshot of the engine's counters, read by /metrics and /ready."""

import time
from collections.abc import Mapping
from typing import NamedTuple

from engine.interface.outputs import FinishReason


class EngineStats(NamedTuple):
    """What the engine is doing and has done since it started; counters never go down."""

    num_requests_running: int = 0
    num_requests_waiting: int = 0
    num_kv_blocks: int = 0
    num_free_kv_blocks: int = 0  # blocks that a new request could take, cached ones included
    prefix_cache_queries: int = 0  # prompt tokens looked up
    prefix_cache_hits: int = 0  # prompt tokens found
    num_preemptions: int = 0
    prompt_tokens: int = 0  # of requests that started to run
    generation_tokens: int = 0
    requests_finished: Mapping[FinishReason, int] = {}
    num_steps: int = 0
    num_drafts: int = 0  # verified
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    drafted_by_position: tuple[int, ...] = ()  # tokens at each position of a draft
    accepted_by_position: tuple[int, ...] = ()
    execute_seconds: float = 0.0  # spent in drafting and executing; what else a step takes is bookkeeping
    step_started: float | None = None  # time.monotonic() at the beginning of the present step; None when idle

    @property
    def kv_cache_usage(self) -> float:
        """Share of the blocks that running requests hold, from 0 to 1."""
        return 1.0 - self.num_free_kv_blocks / self.num_kv_blocks if self.num_kv_blocks else 0.0

    @property
    def seconds_since_step(self) -> float:
        """How long the present step has been running; 0 when idle."""
        return 0.0 if self.step_started is None else time.monotonic() - self.step_started
