"""One generation: engine outputs to text, stop strings, latencies, and the abort at the end of it all."""

from collections import Counter
from collections.abc import Sequence
from types import TracebackType

from engine.interface.cache_explanation import CacheExplanation
from engine.interface.engine_client import OutputStream
from engine.interface.errors import EngineUnavailableError, NonFiniteError, StepError
from engine.interface.outputs import FinishReason, RequestOutput
from server.admission import ServiceRate
from server.answers import AnswerPart, merge
from server.api.cache_explanation import explanation_to_json
from server.api.preparation import PreparedRequest, TextOptions
from server.api.scheduling import Deadline, queued_too_long
from server.api.speculation import SpeculationTally, provenance, total
from server.api.text_delta import PromptScores, TextDelta
from server.api.token_scores import ScoredText
from server.api.usage import Usage
from server.metrics import ServerMetrics
from server.text import Detokenizer, Tokenizer
from server.tracing import Timings


class ChoiceText:
    """The text of one choice as it grows: detokenised, cut at the first stop string.

    With `scored`, the tokens' logprobs come along, cut at the same token.
    """

    def __init__(self, tokenizer: Tokenizer, options: TextOptions, scored: ScoredText | None = None) -> None:
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.stop: str | None = None  # the stop string that ended it
        self.speculation = SpeculationTally()
        self._options = options
        answer = options.answer
        self._detokenizer = Detokenizer(
            tokenizer,
            skip_special_tokens=options.skip_special_tokens,
            shown_token_ids=frozenset() if answer is None else answer.shown_token_ids,
        )
        self._matcher = options.new_matcher()
        self._parser = None if answer is None else answer.new_parser()
        self.num_reasoning_tokens = 0
        self._scored = scored
        self._sum_logprobs = 0.0

    @property
    def mean_logprob(self) -> float:
        """Of the tokens that were generated, hidden ones too; 0 before there are any or without logprobs."""
        return self._sum_logprobs / max(1, self.num_tokens)

    def push(self, output: RequestOutput) -> TextDelta:
        """Add an output of the engine; a stop string ends the choice at the token that completed it."""
        token_ids = output.new_token_ids
        num_before = self.num_tokens
        visible = len(token_ids)
        if output.stop_token_id is not None and not self._options.include_stop:
            visible -= 1  # the token that ended the request is counted, not shown
        parts: list[AnswerPart] = []
        if self._matcher is None and self._parser is None:
            self.num_tokens += len(token_ids)
            text = self._detokenizer.push(token_ids[:visible])
        else:
            text = self._push_until_stop(token_ids, visible, parts)
        if self.finish_reason is None and output.finish_reason is not None:
            self.finish_reason = output.finish_reason
            rest = self._flush()
            text += rest
            self._parse(rest, parts)
        if self._parser is not None and self.finish_reason is not None:
            parts += self._parser.finish()
            if self._parser.has_calls and self.finish_reason is FinishReason.STOP:
                self.finish_reason = FinishReason.TOOL_CALLS
        num_new = self.num_tokens - num_before
        delta = TextDelta(
            index=output.index,
            text=text,
            token_ids=token_ids[:num_new],
            finish_reason=self.finish_reason,
            parts=None if self._parser is None else merge(parts),
            stop=self.stop,
        )
        self.speculation.add(output, num_new)
        if self._options.with_provenance:
            delta.provenance = provenance(output, num_new)
        if output.logprobs:
            delta.all_logprobs = output.logprobs[0].all_logprobs
            self._sum_logprobs += sum([score.logprob for score in output.logprobs[:num_new]])
        if self._scored is not None:
            self._scored.push(output.logprobs[: min(num_new, visible)])
            delta.logprobs = self._scored.release(len(text), is_last=self.finish_reason is not None)
        return delta

    def _push_until_stop(self, token_ids: Sequence[int], visible: int, parts: list[AnswerPart]) -> str:
        """Add tokens one by one, so that each ends the text or the answer where it does."""
        texts = []
        for place, token_id in enumerate(token_ids):
            self.num_tokens += 1
            if place < visible:
                texts.append(self._match(self._detokenizer.push((token_id,))))
                self._parse(texts[-1], parts)
            if self.finish_reason is not None:
                break
        return "".join(texts)

    def _parse(self, text: str, parts: list[AnswerPart]) -> None:
        """Read text as the parser does; the last call that an answer may have ends it."""
        if self._parser is None:
            return
        parts += self._parser.push(text)
        self.num_reasoning_tokens += self._parser.in_reasoning
        if self._parser.is_over and self.finish_reason is None:
            self.finish_reason = FinishReason.STOP

    def _match(self, text: str) -> str:
        # What comes before min_tokens is not searched, so that no stop string ends the answer there.
        if self._matcher is None or self.num_tokens < self._options.min_tokens:
            return text
        match = self._matcher.push(text)
        if match.stopped:
            self.finish_reason, self.stop = FinishReason.STOP, match.stop
        return match.text

    def _flush(self) -> str:
        text = self._detokenizer.flush()
        if self._matcher is None:
            return text
        match = self._matcher.push(text)
        if match.stopped:
            self.finish_reason, self.stop = FinishReason.STOP, match.stop
            return match.text
        return match.text + self._matcher.flush()


class Generation:
    """The open requests of one HTTP request; leaving its `with` block frees them in the engine.

    Choices are numbered prompt by prompt: choice i belongs to prompt i // n.
    """

    def __init__(
        self,
        stream: OutputStream,
        preparation: PreparedRequest,
        *,
        tokenizer: Tokenizer,
        metrics: ServerMetrics,
        rate: ServiceRate,
        arrived: float,
        deadline: Deadline,
    ) -> None:
        self._stream = stream
        self._preparation = preparation
        self._metrics = metrics
        self._rate = rate
        self._arrived = arrived
        num_choices = len(preparation.requests)
        self._choices = [
            ChoiceText(tokenizer, preparation.options, _scored_text(preparation, index, tokenizer))
            for index in range(num_choices)
        ]
        self._prompt_scores = PromptScores(preparation.n) if preparation.logprobs.scores_prompt else None
        self._last_token_times = [0.0] * num_choices  # 0: no token yet
        self._num_new = Counter[int]()  # tokens of each choice whose gaps are not counted yet
        self._num_open = num_choices
        self._tokenizer = tokenizer
        self._cached_tokens = [0] * len(preparation.prompts)
        self._explanations: list[CacheExplanation | None] = [None] * len(preparation.prompts)
        self._timer = deadline.watch(stream)
        self._submitted, self._queue_seconds = metrics.clock(), 0.0
        self._first_token_time = 0.0  # of any choice
        rate.begin(num_choices)

    def __enter__(self) -> "Generation":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Free whatever still runs."""
        self._timer.cancel()
        self._stream.abort()
        for _ in range(self._num_open):
            self._metrics.count_finished(FinishReason.ABORT)
        self._rate.abandon(self._num_open)
        self._num_open = 0

    @property
    def is_finished(self) -> bool:
        """True once every choice has its finish reason."""
        return self._num_open == 0

    @property
    def has_started(self) -> bool:
        """True once the engine has brought something."""
        return any(self._last_token_times)

    def end(self, error: Exception) -> None:
        """End it with an error, after what is here already."""
        self._stream.end(error)

    @property
    def usage(self) -> Usage:
        """Token counts up to now."""
        return Usage(
            prompt_tokens=sum(len(prompt.token_ids) for prompt in self._preparation.prompts),
            completion_tokens=sum(choice.num_tokens for choice in self._choices),
            cached_tokens=sum(self._cached_tokens),
            speculation=total(choice.speculation for choice in self._choices),
            reasoning_tokens=sum(choice.num_reasoning_tokens for choice in self._choices),
            cache=self._explain_cache(),
        )

    def _explain_cache(self) -> object:
        """Return what is known of each prompt up to now, of a single one without a list."""
        if not any(self._explanations):
            return None
        shown = [one and explanation_to_json(one, self._tokenizer) for one in self._explanations]
        return shown if len(shown) > 1 else shown[0]

    @property
    def timings(self) -> Timings | None:
        """When the engine did what; None before its first token."""
        if not self._first_token_time:
            return None
        return Timings(
            submitted=self._submitted,
            queue_seconds=self._queue_seconds,
            first_token=self._first_token_time,
            last_token=max(self._last_token_times),
        )

    def mean_logprob(self, index: int) -> float:
        """Return the mean logprob of a choice's tokens; needs logprobs from the engine."""
        return self._choices[index].mean_logprob

    async def next_deltas(self) -> list[TextDelta]:
        """Wait for the engine, then return all that it has brought meanwhile, which may say nothing yet.

        Raises EngineUnavailableError when the engine or the server ends before the choices do, NonFiniteError
        when the model fails on one of them.
        """
        try:
            first = await self._stream.__anext__()
        except StopAsyncIteration:
            raise EngineUnavailableError("the answer was cut short") from None
        now = self._metrics.clock()
        deltas: list[TextDelta] = []
        merged: dict[int, TextDelta] = {}
        for output in (first, *self._stream.get_ready()):
            choice = self._choices[output.index]
            if choice.finish_reason is not None:
                continue
            delta = self._absorb(choice, output, now)
            if self._prompt_scores is not None:
                deltas += self._prompt_scores.join(delta, output.prompt_logprobs)
            elif output.index in merged:
                merged[output.index].extend(delta)
            else:
                merged[output.index] = delta
        self._observe_gaps(now)
        return deltas or list(merged.values())

    def _absorb(self, choice: ChoiceText, output: RequestOutput, now: float) -> TextDelta:
        if output.finish_reason is FinishReason.ABORT:
            raise EngineUnavailableError("the request was aborted by the server")
        if output.finish_reason is FinishReason.TIMEOUT:
            self._num_open -= 1
            self._rate.abandon(1)
            self._metrics.count_finished(FinishReason.TIMEOUT)
            raise queued_too_long(output.queue_seconds, retry_after=self._rate.seconds_for(1.0))
        if output.finish_reason is FinishReason.ERROR:
            self._num_open -= 1
            self._rate.abandon(1)
            self._metrics.count_finished(FinishReason.ERROR)
            if output.is_step_error:
                raise StepError("a step of the engine fails with this request; the server's log says more")
            raise NonFiniteError(
                f"the model's values are NaN or infinite after {choice.num_tokens} tokens of the answer: "
                "a weight is damaged, or numbers overflow the dtype"
            )
        self._observe(output, now)
        delta = choice.push(output)
        if delta.finish_reason is not None:
            if output.finish_reason is None:  # a stop string, of which the engine knows nothing
                self._stream.abort(output.index)
            self._num_open -= 1
            self._metrics.count_finished(delta.finish_reason)
            if choice.speculation.num_verifications:
                self._metrics.speedup.observe(choice.speculation.estimated_speedup)
            self._metrics.e2e_request_latency.observe(now - self._arrived)
            self._rate.finish()
        return delta

    def _observe(self, output: RequestOutput, now: float) -> None:
        if self._last_token_times[output.index]:
            self._num_new[output.index] += len(output.new_token_ids)
            return
        self._last_token_times[output.index] = now
        if not self._first_token_time:
            self._first_token_time, self._queue_seconds = now, output.queue_seconds
        self._metrics.time_to_first_token.observe(now - self._arrived)
        self._metrics.request_queue_time.observe(output.queue_seconds)
        prompt, choice = divmod(output.index, self._preparation.n)
        if choice == 0:
            self._cached_tokens[prompt] = output.num_cached_tokens
            self._explanations[prompt] = output.cache_explanation

    def _observe_gaps(self, now: float) -> None:
        """Tokens that came together have shared the time since the one before them."""
        for index, count in self._num_new.items():
            if count:
                gap = now - self._last_token_times[index]
                self._metrics.inter_token_latency.observe(gap / count, count)
                self._last_token_times[index] = now
        self._num_new.clear()


def _scored_text(preparation: PreparedRequest, index: int, tokenizer: Tokenizer) -> ScoredText | None:
    """Return the scores of one choice, whose text follows the echo of its prompt; None if not asked for."""
    if preparation.logprobs.answer is None:
        return None
    echo = preparation.prompts[index // preparation.n].echo
    skip = preparation.options.skip_special_tokens
    return ScoredText(tokenizer, skip_special_tokens=skip, start=len(echo))
