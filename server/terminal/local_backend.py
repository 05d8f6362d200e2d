"""LocalBackend: answers from an engine in this process, prepared as the server prepares them."""

import time
from collections.abc import AsyncGenerator, Sequence

from engine.interface.errors import DraftlineError
from server.admission import ServiceRate
from server.answers import ReasoningDelta
from server.api.errors import ApiError
from server.api.fields import ChatMessage, Prompt
from server.api.generation import Generation
from server.api.preparation import PreparedRequest, prepare_chat, prepare_completion
from server.api.scheduling import Deadline
from server.api.schemas import ChatCompletionRequest, CompletionRequest
from server.api.text_delta import TextDelta
from server.metrics import ServerMetrics
from server.serving import ServedModel
from server.terminal.backend import AnswerError, AnswerEvent, AnswerStats, Message, TextPiece
from server.terminal.clean import clean_line
from server.terminal.settings import AnswerParams


class LocalBackend:
    """A loaded model."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        self._metrics = ServerMetrics()
        self.name = clean_line(model.name)
        self.description = clean_line(model.description)

    def chat(self, messages: Sequence[Message], params: AnswerParams) -> AsyncGenerator[AnswerEvent, None]:
        """Answer a conversation; raises DraftlineError."""
        body = ChatCompletionRequest.model_construct(
            messages=tuple(ChatMessage(role=message.role, content=message.content) for message in messages),
            **params.model_dump(),
        )
        return self._generate(prepare_chat(body, self._model, max_choices=1, salt=b""))

    def complete(self, prompt: str, params: AnswerParams) -> AsyncGenerator[AnswerEvent, None]:
        """Continue a text; raises DraftlineError."""
        body = CompletionRequest.model_construct(prompt=(Prompt(text=prompt),), **params.model_dump())
        return self._generate(prepare_completion(body, self._model, max_choices=1, salt=b""))

    async def close(self) -> None:
        """End the engine."""
        self._model.engine.close()

    async def _generate(self, preparation: PreparedRequest) -> AsyncGenerator[AnswerEvent, None]:
        try:
            with self._start(preparation) as generation:
                while not generation.is_finished:
                    for delta in await generation.next_deltas():
                        for piece in _pieces(delta):
                            yield piece
                        finish_reason = delta.finish_reason
        except ApiError as error:
            raise AnswerError(clean_line(error.message)) from error
        except DraftlineError as error:
            raise AnswerError(clean_line(str(error))) from error
        usage = generation.usage
        yield AnswerStats(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
            drafted_tokens=usage.speculation.num_draft_tokens,
            accepted_tokens=usage.speculation.num_accepted_tokens,
            seed=preparation.requests[0].params.seed,
            finish_reason=None if finish_reason is None else finish_reason.value,
        )

    def _start(self, preparation: PreparedRequest) -> Generation:
        arrived = time.perf_counter()
        return Generation(
            self._model.engine.generate(preparation.requests),
            preparation,
            tokenizer=self._model.tokenizer,
            metrics=self._metrics,
            rate=ServiceRate(),
            arrived=arrived,
            deadline=Deadline(None, arrived=arrived),
        )


def _pieces(delta: TextDelta) -> list[TextPiece]:
    """Return what is to be seen of a delta; no tools were offered, so a call is none."""
    if delta.parts is None:
        return [TextPiece(delta.text)] if delta.text else []
    pieces = []
    for part in delta.parts:
        if isinstance(part, str):
            pieces.append(TextPiece(part))
        elif isinstance(part, ReasoningDelta):
            pieces.append(TextPiece(part.text, is_reasoning=True))
    return pieces
