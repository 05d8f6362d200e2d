"""Engine: the synchronous heart. Token ids in, token ids out; no thread, no text, no HTTP."""

import logging
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from engine.core.executor import Executor, PendingStep
from engine.core.request import GrammarState, Request
from engine.core.scheduler import Scheduler
from engine.core.speculation import NoSpeculation, Speculation
from engine.core.step_output import StepOutput, StepTokens
from engine.interface.batch import Batch, Continuation, SamplerOutput
from engine.interface.cache_explanation import CacheExplanation
from engine.interface.cancellation import Cancellation
from engine.interface.errors import RequestError
from engine.interface.grammar_spec import GrammarSpec
from engine.interface.limits import EngineLimits
from engine.interface.outputs import FinishReason, GenerationRequest
from engine.interface.sampling_params import SamplingParams
from engine.interface.stats import EngineStats
from engine.kv_cache.block_hash import hash_root
from engine.kv_cache.kv_cache_manager import KVCacheManager

logger = logging.getLogger(__name__)

_WRITTEN_IN_A_STEP, _WRITTEN_AT_ONCE = 4, 16  # blocks
_MAX_FAILURES, _FAILURE_WINDOW = 3, 60.0
"""So many steps that fail, in so many seconds, are no single request's fault."""


class CompiledGrammar(Protocol):
    """A grammar that answers can be started in."""

    def start(self) -> GrammarState:
        """Return the state before the first token."""


class GrammarSource(Protocol):
    """What the engine needs of a grammar compiler (engine/sampling/grammar_compiler.py)."""

    def close(self) -> None:
        """Release what compiling holds."""

    def find(self, spec: GrammarSpec) -> CompiledGrammar | None:
        """Return the grammar if it is compiled."""

    def compile(self, spec: GrammarSpec, *, cancellation: Cancellation | None = None) -> CompiledGrammar:
        """Return the grammar, from a cache if it was compiled before; raises RequestError, CancelledError."""


class _StepInFlight(NamedTuple):
    """A step that was launched, and the seconds that count as its own so far."""

    batch: Batch | Continuation
    pending: PendingStep
    between: float  # since the step before, 0 if there was nothing to do
    drafting: float
    scheduling: float
    launching: float


class Engine:
    """Requests over one model: add, abort, step until nothing is left."""

    def __init__(
        self,
        executor: Executor,
        kv_cache_manager: KVCacheManager,
        *,
        max_model_len: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        vocab_size: int,
        eos_token_ids: frozenset[int],
        fingerprint: bytes = b"",
        kv_dtype: str = "",
        grammar_source: GrammarSource | None = None,
        speculator: Speculation | None = None,
        secret: bytes | None = None,
    ) -> None:
        self.executor = executor
        self.kv_cache_manager = kv_cache_manager
        self.scheduler = Scheduler(
            kv_cache_manager, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens
        )
        self.limits = EngineLimits(
            max_model_len=max_model_len,
            vocab_size=vocab_size,
            has_draft_model=executor.max_draft_positions > 0,
        )
        self.eos_token_ids = eos_token_ids
        self._fingerprint = fingerprint
        self._kv_dtype = kv_dtype
        self._grammar_source = grammar_source
        self.speculator: Speculation = speculator or NoSpeculation()
        self._secret = secret or secrets.token_bytes(32)
        self._next_request_id = 0
        self._finished: Counter[FinishReason] = Counter()
        self._prompt_tokens = self._generation_tokens = self.num_steps = 0
        self._execute_seconds = 0.0
        self._step_started: float | None = None
        self._last_ended: float | None = None
        self._in_flight: deque[_StepInFlight] = deque()
        self._failures: deque[float] = deque(maxlen=_MAX_FAILURES)
        self.on_step: Callable[[Sequence[int]], None] | None = (
            None  # told the ids of a step's requests, then none
        )
        self.latest_stats = self.stats()  # of the last dispatch, commit or abort; any thread may read it

    def add_request(
        self, generation: GenerationRequest, *, grammar: CompiledGrammar | None = None
    ) -> Request:
        """Put a request into the queue; raises RequestError as limits.check() does.

        `grammar` is the compiled form of params.grammar; without it this compiles, which takes a while.
        """
        self.limits.check(generation)
        params = generation.params
        state = None
        if params.grammar is not None:
            state = (grammar or self.compile_grammar(params.grammar)).start()
        patience = generation.max_queue_seconds
        request = Request(
            request_id=self._next_request_id,
            prompt_token_ids=generation.prompt_token_ids,
            params=params,
            seed=secrets.randbits(63) if params.seed is None else params.seed,
            choice=generation.choice,
            root_hash=self._root_hash(generation),
            stop_token_ids=self._stop_token_ids(params),
            max_total_tokens=len(generation.prompt_token_ids) + params.max_tokens,
            speculation=self.speculator.resolve(generation.speculation),
            prediction=generation.prediction,
            explains_cache=generation.explain_cache,
            grammar_state=state,
            tenant=generation.tenant,
            weight=generation.weight,
            priority=generation.priority,
            starts_before=None if patience is None else time.monotonic() + patience,
        )
        self._next_request_id += 1
        self.scheduler.add(request)
        return request

    def look_up_cache(self, generation: GenerationRequest) -> CacheExplanation:
        """Explain what the prefix cache has of a request's prompt now; starts and changes nothing."""
        request = Request(
            request_id=-1,
            prompt_token_ids=generation.prompt_token_ids,
            params=generation.params,
            seed=0,
            choice=0,
            root_hash=self._root_hash(generation),
            stop_token_ids=frozenset(),
            max_total_tokens=len(generation.prompt_token_ids),
        )
        return self.kv_cache_manager.look_up(request)

    def _root_hash(self, generation: GenerationRequest) -> bytes:
        return hash_root(
            secret=self._secret,
            fingerprint=self._fingerprint,
            kv_dtype=self._kv_dtype,
            cache_salt=generation.cache_salt,
        )

    def compile_grammar(self, spec: GrammarSpec, cancellation: Cancellation | None = None) -> CompiledGrammar:
        """Compile a grammar or find it compiled, which any thread may do.

        Raises RequestError, and CancelledError once `cancellation` says so.
        """
        if self._grammar_source is None:
            raise RequestError("this model cannot constrain its answers", param="response_format")
        return self._grammar_source.compile(spec, cancellation=cancellation)

    def find_grammar(self, spec: GrammarSpec) -> CompiledGrammar | None:
        """Return the grammar if it was compiled lately; takes no time."""
        return None if self._grammar_source is None else self._grammar_source.find(spec)

    def abort(self, request: Request) -> None:
        """End a request in whatever state it is and free its blocks; finished ones stay as they are."""
        if request.finish_reason is None:
            self.scheduler.finish(request, FinishReason.ABORT)
            self.speculator.forget(request)
            self._finished[FinishReason.ABORT] += 1
            self.latest_stats = self.stats()

    @property
    def has_work(self) -> bool:
        """True while a request waits or runs, or a step is under way."""
        return bool(self.scheduler.waiting or self.scheduler.running or self._in_flight)

    def step(self) -> Sequence[StepOutput]:
        """Launch what may run, up to the executor's steps ahead, and take in the oldest step under way.

        Where that raises, the requests that ran are tried one at a time, and the one with which alone a step
        fails ends with an error; the others go on, with the same tokens. Raises if it happens time and again.
        """
        expired = self._expire() if self.scheduler.impatient else []
        try:
            while len(self._in_flight) <= self.executor.steps_ahead and self._may_launch():
                if not self._launch():
                    break
            begun = time.monotonic()
            output = self._in_flight[0].pending.result() if self._in_flight else None
        except Exception as error:  # noqa: BLE001 - logged there, or raised
            return expired + self._isolate(error)
        if output is None:
            return expired
        outputs = self._commit(output, begun)
        return [*expired, *outputs] if expired else outputs

    def _expire(self) -> list[StepOutput]:
        """End the requests that have waited too long."""
        expired = self.scheduler.expire(time.monotonic())
        if expired:
            self._finished[FinishReason.TIMEOUT] += len(expired)
            self.latest_stats = self.stats()
        return expired

    def _may_launch(self) -> bool:
        return not self._in_flight or self.scheduler.can_run_ahead

    def _launch(self) -> bool:
        """Propose, schedule, draft, dispatch; False where steps under way must be over first."""
        begun = time.monotonic()
        between = 0.0 if self._last_ended is None or self._in_flight else begun - self._last_ended
        self._step_started = self._step_started or begun
        if not self._in_flight:
            self.speculator.propose(self.scheduler.schedulable)
        proposed = time.monotonic()
        schedule = self.scheduler.schedule(may_continue=self.executor.continues)
        request_ids = schedule.request_ids
        if not request_ids:
            self._step_started = self._step_started if self._in_flight else None
            return False
        if self.on_step is not None:
            self.on_step(request_ids)
        scheduled = time.monotonic()
        self.speculator.make_drafts(schedule.claims, self.executor)
        drafted = time.monotonic()
        batch = self.scheduler.dispatch(schedule)
        self.latest_stats = self.stats()
        dispatched = time.monotonic()
        pending = self.executor.launch(batch)
        launched = time.monotonic()
        drafting = proposed - begun + drafted - scheduled
        scheduling = scheduled - proposed + dispatched - drafted
        self._in_flight.append(
            _StepInFlight(batch, pending, between, drafting, scheduling, launched - dispatched)
        )
        return True

    def _isolate(self, error: Exception) -> list[StepOutput]:
        """Find out with which request steps fail; nothing of the steps under way was taken in."""
        suspect = self.scheduler.suspect
        self._in_flight.clear()
        self._step_started = self._last_ended = None
        if self.on_step is not None:
            self.on_step(())
        if suspect is None:
            now = time.monotonic()
            self._failures.append(now)
            if len(self._failures) == _MAX_FAILURES and now - self._failures[0] < _FAILURE_WINDOW:
                raise error
            logger.exception("a step of %d requests failed: trying them alone", len(self.scheduler.running))
            self.scheduler.suspect_all()
            return []
        logger.error("a step fails with request %d alone, which ends: %s", suspect.request_id, error)
        self.scheduler.fail_suspect(suspect)
        self.speculator.forget(suspect)
        self._finished[FinishReason.ERROR] += 1
        self.latest_stats = self.stats()
        return [StepOutput(suspect, is_first=suspect.num_output_tokens == 0)]

    def _commit(self, output: SamplerOutput, begun: float) -> Sequence[StepOutput]:
        """Take in the result of the oldest step under way, for which the engine waited since `begun`."""
        executed = time.monotonic()
        step = self._in_flight.popleft()
        outputs = self.scheduler.commit(step.batch, output)
        if self.on_step is not None and not self._in_flight:
            self.on_step(())
        ended = time.monotonic()
        self._execute_seconds += step.drafting + step.launching + executed - begun
        target = step.scheduling + step.launching + ended - begun
        learned = () if isinstance(outputs, StepTokens) else outputs  # no request learns from such a step
        self.speculator.record(
            step.batch, learned, between=step.between, drafting=step.drafting, target=target
        )
        has_ended = self._count(outputs)
        self._step_started = ended if self._in_flight else None
        self._last_ended = ended if self.has_work else None  # what follows is no work then
        self.write_back(_WRITTEN_IN_A_STEP)
        if has_ended or not self.has_work:  # else the next dispatch says it
            self.latest_stats = self.stats()
        return outputs

    def write_back(self, max_blocks: int = _WRITTEN_AT_ONCE) -> bool:
        """Save some of the cached blocks that are to outlive the process; True if more are left."""
        persistence = self.kv_cache_manager.persistence
        return persistence is not None and persistence.write_back(max_blocks)

    def close(self) -> None:
        """Release what is not memory of this process, and save what is to outlive it."""
        if self.kv_cache_manager.persistence is not None:
            self.kv_cache_manager.persistence.close()
        if self._grammar_source is not None:
            self._grammar_source.close()

    def stats(self) -> EngineStats:
        """Return a snapshot of the counters."""
        counters = self.speculator.counters
        return EngineStats(
            num_requests_running=len(self.scheduler.running),
            num_requests_waiting=len(self.scheduler.waiting),
            num_kv_blocks=self.kv_cache_manager.pool.num_blocks,
            num_free_kv_blocks=self.kv_cache_manager.pool.num_free,
            prefix_cache_queries=self.scheduler.prefix_cache_queries,
            prefix_cache_hits=self.scheduler.prefix_cache_hits,
            num_preemptions=self.scheduler.num_preemptions,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            requests_finished=dict(self._finished),
            num_steps=self.num_steps,
            num_drafts=counters.num_drafts,
            num_draft_tokens=counters.num_draft_tokens,
            num_accepted_tokens=counters.num_accepted_tokens,
            drafted_by_position=tuple(counters.drafted_at),
            accepted_by_position=tuple(counters.accepted_at),
            execute_seconds=self._execute_seconds,
            step_started=self._step_started,
        )

    def check_invariants(self) -> None:
        """Check the bookkeeping of blocks and the published snapshot; raises AssertionError."""
        self.kv_cache_manager.check_invariants(self.scheduler.requests)
        latest = self.latest_stats
        assert self.has_work or (latest.num_requests_running, latest.step_started) == (0, None)

    def _stop_token_ids(self, params: SamplingParams) -> frozenset[int]:
        # A grammar allows an end token only where the answer is whole: then it must end.
        if params.ignore_eos and params.grammar is None:
            return params.stop_token_ids
        return params.stop_token_ids | self.eos_token_ids

    def _count(self, outputs: Sequence[StepOutput]) -> bool:
        """Count what a step brought; True if a request ended with it."""
        self.num_steps += 1
        if isinstance(outputs, StepTokens):
            self._generation_tokens += len(outputs)
            return False
        has_ended = False
        for output in outputs:
            request = output.request
            self._generation_tokens += len(output.token_ids)
            if output.is_first:
                self._prompt_tokens += request.num_prompt_tokens
            if request.finish_reason is not None:
                self._finished[request.finish_reason] += 1
                has_ended = True
        return has_ended
