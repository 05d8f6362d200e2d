"""Fakes with scripts: an engine that says what it is told, and a vocabulary of the 256 bytes."""

import asyncio
import contextlib
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from engine.bridge.output_stream import OutputStream
from engine.checkpoint.checkpoint import TokenizerData
from engine.interface.cache_explanation import CacheEnd, CacheExplanation
from engine.interface.cancellation import Cancellation
from engine.interface.errors import EngineDeadError, EngineUnavailableError, QueueFullError
from engine.interface.grammar_spec import GrammarSpec
from engine.interface.limits import EngineLimits
from engine.interface.outputs import FinishReason, GenerationRequest, RequestOutput, TokenLogprobs
from engine.interface.speculation import DraftSource, SpeculationOutput
from engine.interface.stats import EngineStats

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EOS = 256
IM_START = 257
IM_END = 258


def byte_tokenizer_data() -> TokenizerData:
    """Ids 0 to 255 are the bytes; then <|endoftext|>, <|im_start|> and <|im_end|>."""
    return TokenizerData(
        tokens=(*_byte_alphabet(), "<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        merges=(),
        special_token_ids=frozenset({EOS, IM_START, IM_END}),
        bos_token_id=None,
        eos_token_id=EOS,
        chat_template=CHAT_TEMPLATE,
    )


def _byte_alphabet() -> list[str]:
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    extra = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(extra)) for byte in range(256)]


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Script:
    """What one request says, step by step."""

    steps: tuple[tuple[int, ...], ...]
    finish_reason: FinishReason = FinishReason.LENGTH
    stop_token_id: int | None = None
    num_cached_tokens: int = 0
    source: DraftSource = DraftSource.NGRAM
    cache_explanation: CacheExplanation | None = None
    drafts: tuple[int, ...] = ()  # tokens drafted in each step; all that a step brings but the last are right


def say(
    text: str,
    *,
    tokens_per_step: int = 1,
    cached: int = 0,
    eos: bool = False,
    num_drafted: int = 0,
    source: DraftSource = DraftSource.NGRAM,
) -> Script:
    """Say `text` byte by byte; with `eos`, end with the end token instead of at the limit."""
    ids = [*text.encode(), *([EOS] if eos else [])]
    steps = tuple(tuple(ids[i : i + tokens_per_step]) for i in range(0, len(ids), tokens_per_step))
    return Script(
        steps=steps,
        finish_reason=FinishReason.STOP if eos else FinishReason.LENGTH,
        stop_token_id=EOS if eos else None,
        num_cached_tokens=cached,
        source=source,
        drafts=(num_drafted,) * len(steps),
    )


def echo_seed(request: GenerationRequest) -> Script:
    """Say the choice and the seed, cut to max_tokens: a pure function of the request."""
    return cut(say(f"c{request.choice}s{request.params.seed}."), request.params.max_tokens)


def cut(script: Script, max_tokens: int) -> Script:
    """Cut a script to a number of tokens; cut short it ends with `length`."""
    steps, left = [], max_tokens
    for step in script.steps:
        if left <= 0:
            return replace(script, steps=tuple(steps), finish_reason=FinishReason.LENGTH, stop_token_id=None)
        steps.append(step[:left])
        left -= len(step)
    return replace(script, steps=tuple(steps))


def fake_logprobs(token_id: int, position: int, num_top: int) -> TokenLogprobs:
    """Say something of a token that depends on it and its position in prompt and answer alone.

    The likeliest tokens are the ones after it, so the token itself is never among them.
    """
    logprob = -2.0 - (token_id * 7 + position * 3) % 40 / 8
    top = tuple(((token_id + 1 + rank) % 256, -0.5 - rank / 16) for rank in range(num_top))
    return TokenLogprobs(token_id, logprob, top)


def fake_prompt_logprobs(request: GenerationRequest) -> tuple[TokenLogprobs, ...] | None:
    """Score a prompt from its second token on, if it asks for that."""
    num_top = request.params.prompt_logprobs
    if num_top is None:
        return None
    scored = list(enumerate(request.prompt_token_ids))[1:]
    return tuple(fake_logprobs(token_id, position, num_top) for position, token_id in scored)


def fake_speculation(script: Script, place: int, num_tokens: int) -> SpeculationOutput | None:
    """Say of a step that all of its tokens but the last were drafted; twice as fast as without."""
    num_drafted = script.drafts[place] if 0 <= place < len(script.drafts) else 0
    if num_drafted == 0:
        return None
    return SpeculationOutput(
        source=script.source,
        num_draft_tokens=num_drafted,
        num_accepted_tokens=min(num_drafted, num_tokens - 1),
        seconds=1.0 + place,
        plain_seconds=2.0 + 2 * place,
    )


def fake_embedding(request: GenerationRequest) -> bytes | None:
    """Pool a prompt to four values that say its tenant, length, first and last token."""
    if request.params.pooling is None:
        return None
    token_ids = request.prompt_token_ids
    return struct.pack("<4f", len(request.cache_salt), len(token_ids), token_ids[0], -token_ids[-1])


@dataclass
class _Running:
    stream: OutputStream
    index: int
    steps: deque[tuple[int, ...]]
    script: Script
    request: GenerationRequest
    num_tokens: int = 0  # of the answer

    def score(self, token_ids: tuple[int, ...]) -> tuple[TokenLogprobs, ...]:
        """Return the logprobs of the next tokens, if asked for."""
        start = len(self.request.prompt_token_ids) + self.num_tokens
        self.num_tokens += len(token_ids)
        num_top = self.request.params.logprobs
        if num_top is None:
            return ()
        scores = [fake_logprobs(token_id, start + i, num_top) for i, token_id in enumerate(token_ids)]
        if self.request.params.all_logprobs:
            scores = [replace(score, all_logprobs=struct.pack("<259f", *range(259))) for score in scores]
        return tuple(scores)


class FakeEngine:
    """AsyncEngine's interface over scripts.

    Steps run by themselves on the event loop, or one by one with step() after hold(). Tests call it from
    another thread than the server's; wait_until() waits for what the server does to it.
    """

    info = None
    is_restarting = False

    def __init__(
        self,
        script: Callable[[GenerationRequest], Script] = echo_seed,
        *,
        max_model_len: int = 4096,
        vocab_size: int = 259,
        max_open: int = 1000,
        compile_grammar: Callable[[GrammarSpec, Cancellation], None] = lambda *_: None,
    ) -> None:
        self.script = script
        self.pooled_script: Callable[[GenerationRequest], Script] = lambda _: Script(steps=((),))
        self.compile_grammar = compile_grammar  # called on a worker thread
        self.limits = EngineLimits(max_model_len=max_model_len, vocab_size=vocab_size)
        self.max_open = max_open
        self.seconds_since_step = 0.0
        self.requests: list[GenerationRequest] = []
        self.num_aborted = 0
        self.num_delivered_steps = 0
        self.is_closed = False
        self.hangs = False  # as with a step that does not end
        self._running: list[_Running] = []
        self._is_held = False
        self._error: EngineUnavailableError | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle: asyncio.Event | None = None  # set while draining, when nothing is left
        self._changed = threading.Condition()
        self._finished = dict.fromkeys(FinishReason, 0)
        self._num_prompt_tokens = 0
        self._num_cached_tokens = 0

    # The interface of AsyncEngine.

    @property
    def is_dead(self) -> bool:
        return isinstance(self._error, EngineDeadError)

    def generate(self, requests: Sequence[GenerationRequest]) -> OutputStream:
        if self._error is not None:
            raise self._error
        for request in requests:
            self.limits.check(request)
        if len(self._running) + len(requests) > self.max_open:
            raise QueueFullError(f"the queue is full: {len(self._running)} are open")
        self._loop = asyncio.get_running_loop()
        stream = OutputStream(len(self.requests), len(requests), on_abort=self._forget)
        for index, request in enumerate(requests):
            is_pooled = request.params.pooling is not None
            script = self.pooled_script(request) if is_pooled else self.script(request)
            self._num_prompt_tokens += len(request.prompt_token_ids)
            self._num_cached_tokens += script.num_cached_tokens
            self._running.append(
                _Running(
                    stream=stream, index=index, steps=deque(script.steps), script=script, request=request
                )
            )
        self.requests.extend(requests)
        self._notify()
        if not self._is_held:
            self._loop.call_soon(self._step_while_free)
        return stream

    async def look_up_cache(self, request: GenerationRequest) -> CacheExplanation:
        if self._error is not None:
            raise self._error
        self.limits.check(request)
        if not self.max_open:
            raise QueueFullError("64 lookups of the cache are open already")
        return CacheExplanation(
            num_prompt_tokens=len(request.prompt_token_ids),
            num_cached_tokens=0,
            block_size=16,
            end=CacheEnd.NEVER_SEEN,
        )

    def stats(self) -> EngineStats:
        return EngineStats(
            num_requests_running=len(self._running),
            num_kv_blocks=100,
            num_free_kv_blocks=100 - len(self._running),
            prefix_cache_queries=self._num_prompt_tokens,
            prefix_cache_hits=self._num_cached_tokens,
            prompt_tokens=self._num_prompt_tokens,
            requests_finished=dict(self._finished),
            step_started=time.monotonic() - self.seconds_since_step if self.seconds_since_step else None,
        )

    async def drain(self, timeout: float) -> bool:
        self._error = self._error or EngineUnavailableError("the server is shutting down")
        self._idle = asyncio.Event()
        if self._running:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._idle.wait(), timeout)
        finished = not self._running
        for running in list(self._running):
            running.stream.abort()
            running.stream.fail(EngineUnavailableError("the server shut down before the answer was complete"))
        return finished

    def close(self, timeout: float | None = None) -> bool:
        self.is_closed = not self.hangs
        self._notify()
        return self.is_closed

    # The strings of the puppet.

    def hold(self) -> None:
        """Stop stepping by itself."""
        self._is_held = True

    def release(self) -> None:
        """Step by itself again."""
        self._is_held = False
        self._on_loop(self._step_while_free)

    def step(self, count: int = 1) -> None:
        """Run `count` steps of every open request, before the server gets to look at any of them."""

        def run() -> None:
            for _ in range(count):
                self._step_once()

        self._on_loop(run)

    def when_open(self, num_open: int, action: Callable[[], None]) -> None:
        """Act from a thread once `num_open` requests are there: for a test that waits for an answer."""

        def run() -> None:
            self.wait_until(lambda: self.num_open == num_open)
            action()

        threading.Thread(target=run).start()

    def die(self) -> None:
        """Fail every open request, and all that come."""
        self._error = EngineDeadError("the engine died: scripted")
        self._on_loop(self._fail_all)

    def wait_until(self, condition: Callable[[], bool], timeout: float = 10.0) -> None:
        """Wait until `condition`, which may look at this engine only, is true."""
        with self._changed:
            assert self._changed.wait_for(condition, timeout), "the engine never got there"

    @property
    def num_open(self) -> int:
        return len(self._running)

    def _forget(self, stream: OutputStream, indices: Iterable[int]) -> None:
        """Drop aborted requests; called by their stream."""
        aborted = set(indices)
        gone = [r for r in self._running if r.stream is stream and r.index in aborted]
        self._running = [r for r in self._running if r not in gone]
        self.num_aborted += len(gone)
        self._notify()

    def _on_loop(self, callback: Callable[[], None]) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(callback)

    def _notify(self) -> None:
        if self._idle is not None and not self._running:
            self._idle.set()
        with self._changed:
            self._changed.notify_all()

    def _step_while_free(self) -> None:
        if self._running and not self._is_held and self._loop is not None:
            self._step_once()
            self._loop.call_soon(self._step_while_free)

    def _step_once(self) -> None:
        for running in list(self._running):
            token_ids = running.steps.popleft() if running.steps else ()
            is_last = not running.steps
            script = running.script
            is_first = running.num_tokens == 0
            place = len(script.steps) - len(running.steps) - 1
            running.stream.deliver(
                RequestOutput(
                    index=running.index,
                    new_token_ids=token_ids,
                    logprobs=running.score(token_ids),
                    prompt_logprobs=fake_prompt_logprobs(running.request) if is_first else None,
                    num_cached_tokens=script.num_cached_tokens,
                    finish_reason=script.finish_reason if is_last else None,
                    stop_token_id=script.stop_token_id if is_last else None,
                    cache_explanation=script.cache_explanation if is_first else None,
                    queue_seconds=0.001,
                    steps=(self.num_delivered_steps + 1,) * len(token_ids),
                    speculation=fake_speculation(script, place, len(token_ids)),
                    embedding=fake_embedding(running.request) if is_last else None,
                )
            )
            if is_last:
                self._running.remove(running)
                self._finished[script.finish_reason] += 1
        self.num_delivered_steps += 1
        self._notify()

    def _fail_all(self) -> None:
        assert self._error is not None
        for running in self._running:
            running.stream.fail(self._error)
        self._running = []
        self._notify()
