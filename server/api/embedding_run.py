"""EmbeddingRun: many texts through the engine, of which a few wait in its queue at a time."""

import asyncio
from collections.abc import Sequence

from engine.interface.engine_client import EngineClient, OutputStream
from engine.interface.errors import EngineUnavailableError, NonFiniteError, QueueFullError, StepError
from engine.interface.outputs import FinishReason, GenerationRequest, RequestOutput
from server.admission import Admission
from server.api.scheduling import Deadline, queued_too_long
from server.api.usage import Usage
from server.metrics import ServerMetrics

_MAX_WINDOW = 32  # texts that are submitted together
_NUM_WORKERS = 2  # while one window comes to its end, the next fills the engine's steps
_RETRY_SECONDS = 0.05


class EmbeddingRun:
    """Runs texts window by window, so that others find room in the queue beside a long list."""

    def __init__(
        self,
        requests: Sequence[GenerationRequest],
        engine: EngineClient,
        *,
        admission: Admission,
        metrics: ServerMetrics,
        deadline: Deadline,
    ) -> None:
        self._requests = requests
        self._engine = engine
        self._admission = admission
        self._metrics = metrics
        self._deadline = deadline
        self._window = max(1, min(_MAX_WINDOW, admission.max_open // (2 * _NUM_WORKERS)))
        self._starts = iter(range(0, len(requests), self._window))
        self._outputs: dict[int, RequestOutput] = {}
        self._error: Exception | None = None
        self._workers: list[asyncio.Future[None]] = []

    @property
    def usage(self) -> Usage:
        """Token counts, of cached ones up to now."""
        return Usage(
            prompt_tokens=sum(len(request.prompt_token_ids) for request in self._requests),
            completion_tokens=0,
            cached_tokens=sum(output.num_cached_tokens for output in self._outputs.values()),
        )

    @property
    def has_started(self) -> bool:
        """True once the engine has brought something."""
        return bool(self._outputs)

    def end(self, error: Exception) -> None:
        """End it with an error."""
        self._error = error
        for worker in self._workers:
            worker.cancel()

    async def outputs(self) -> list[RequestOutput]:
        """Return an output with an embedding for each text.

        Raises ApiError 429 if the queue cannot hold the first, NonFiniteError, EngineUnavailableError.
        """
        self._workers = [asyncio.ensure_future(self._work()) for _ in range(_NUM_WORKERS)]
        timer = self._deadline.watch(self)
        try:
            await asyncio.gather(*self._workers)
        except asyncio.CancelledError:
            raise self._error or asyncio.CancelledError from None
        finally:
            timer.cancel()
            for worker in self._workers:
                worker.cancel()
            await asyncio.gather(*self._workers, return_exceptions=True)
        return [self._outputs[number] for number in range(len(self._requests))]

    async def _work(self) -> None:
        """Take the next window until there is none; the workers share what is left."""
        for start in self._starts:
            stream = await self._submit(start)
            num_open = stream.num_open
            self._admission.rate.begin(num_open)
            try:
                async for output in stream:
                    self._take(output, start + output.index)
                    num_open -= 1
            finally:
                for _ in range(num_open):
                    self._metrics.count_finished(FinishReason.ABORT)
                self._admission.rate.abandon(num_open)
                stream.abort()

    async def _submit(self, start: int) -> OutputStream:
        """Submit a window; with a full queue the first one is refused, the others wait for their turn."""
        requests = self._requests[start : start + self._window]
        while True:
            try:
                return self._engine.generate(requests)
            except QueueFullError as error:
                if start == 0:
                    raise self._admission.refusal(
                        str(error), self._engine.stats(), num_choices=len(requests)
                    ) from None
            await asyncio.sleep(_RETRY_SECONDS)

    def _take(self, output: RequestOutput, number: int) -> None:
        if output.finish_reason is FinishReason.TIMEOUT:
            retry_after = self._admission.rate.seconds_for(1.0)
            raise queued_too_long(output.queue_seconds, retry_after=retry_after)
        if output.is_step_error:
            raise StepError(f"a step of the engine fails with input[{number}]; the server's log says more")
        if output.finish_reason is FinishReason.ERROR:
            raise NonFiniteError(
                f"the model's values for input[{number}] are NaN or infinite: a weight is damaged, or "
                "numbers overflow the dtype"
            )
        if output.embedding is None:
            raise EngineUnavailableError("the request was aborted by the server")
        self._outputs[number] = output
        self._metrics.request_queue_time.observe(output.queue_seconds)
        self._metrics.count_finished(FinishReason.LENGTH)
        self._admission.rate.finish()
