"""A streamed answer put together again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from draftline_client._accumulate.base import ChoicesAccumulator, ChoiceState, extended
from draftline_client._calls import says_stream_options
from draftline_client.options import ChatOptions
from draftline_client.types import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatLogprobs,
    ChatMessage,
    FunctionCall,
    PromptLogprobs,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
)


@dataclass(kw_only=True)
class ToolCallState:
    """One call of a tool up to now."""

    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    function_extra: dict[str, Any] = field(default_factory=dict)

    def add(self, delta: ToolCallDelta) -> None:
        """Take what a chunk adds."""
        self.id = delta.id or self.id
        self.name = delta.function.name or self.name
        self.arguments.append(delta.function.arguments)
        self.extra |= delta.extra
        self.function_extra |= delta.function.extra

    def whole(self) -> ToolCall:
        """Return it as a record."""
        arguments = "".join(self.arguments)
        function = FunctionCall(name=self.name, arguments=arguments, extra=self.function_extra)
        return ToolCall(id=self.id, function=function, extra=self.extra)


@dataclass(kw_only=True)
class AnswerState(ChoiceState):
    """One answer up to now."""

    role: str = "assistant"
    thoughts: list[str] = field(default_factory=list)
    calls: dict[int, ToolCallState] = field(default_factory=dict)
    logprobs: list[TokenLogprob] | None = None
    message_extra: dict[str, Any] = field(default_factory=dict)
    logprobs_extra: dict[str, Any] = field(default_factory=dict)

    def message(self) -> ChatMessage:
        """Return the message; one that only calls has no content."""
        calls = tuple(self.calls[index].whole() for index in sorted(self.calls))
        return ChatMessage(
            role=self.role,
            content=self.text if self.text or not calls else None,
            reasoning_content="".join(self.thoughts) if self.thoughts else None,
            tool_calls=calls,
            extra=self.message_extra,
        )


class ChatAccumulator(ChoicesAccumulator[ChatCompletionChunk, AnswerState]):
    """Takes the chunks of an answer.

    `has_logprobs` and `has_token_ids`, which were asked for, are there even where an answer has no token.
    """

    def __init__(self, *, hides_usage: bool, has_logprobs: bool, has_token_ids: bool) -> None:
        super().__init__(hides_usage=hides_usage)
        self._has_logprobs = has_logprobs
        self._has_token_ids = has_token_ids
        self._prompt_token_ids: tuple[int, ...] | None = None
        self._prompt_logprobs: PromptLogprobs | None = None

    @classmethod
    def of(cls, options: ChatOptions) -> ChatAccumulator:
        """Return one for a request with these options."""
        return cls(
            hides_usage=not says_stream_options(options),
            has_logprobs=bool(options.get("logprobs")),
            has_token_ids=bool(options.get("return_token_ids")),
        )

    def add(self, chunk: ChatCompletionChunk) -> bool:
        """Take a chunk; return whether the reader of the stream is to see it."""
        for choice in chunk.choices:
            self._add_choice(choice)
        if chunk.prompt_token_ids is not None:
            self._prompt_token_ids = chunk.prompt_token_ids
        if chunk.prompt_logprobs is not None:
            self._prompt_logprobs = chunk.prompt_logprobs
        return self._add_head(chunk)

    def text_of(self, chunk: ChatCompletionChunk) -> str:
        """Return what a chunk adds to the text of the first choice."""
        return "".join(choice.delta.content or "" for choice in chunk.choices if choice.index == 0)

    def completion(self) -> ChatCompletion:
        """Return the whole reply; raises ProtocolError for a stream without usage."""
        head, usage = self._finished()
        return ChatCompletion(
            **head,
            choices=tuple(_whole(index, self._states[index]) for index in sorted(self._states)),
            usage=usage,
            prompt_token_ids=self._prompt_token_ids,
            prompt_logprobs=self._prompt_logprobs,
            extra=self._extra,
        )

    def _add_choice(self, choice: ChatChunkChoice) -> None:
        state = self._states.get(choice.index)
        if state is None:
            state = self._states[choice.index] = AnswerState(
                logprobs=[] if self._has_logprobs else None,
                token_ids=[] if self._has_token_ids else None,
            )
        delta = choice.delta
        state.role = delta.role or state.role
        state.texts += [delta.content] if delta.content else []
        state.thoughts += [delta.reasoning_content] if delta.reasoning_content else []
        state.message_extra |= delta.extra
        for call in delta.tool_calls:
            state.calls.setdefault(call.index, ToolCallState()).add(call)
        if choice.logprobs is not None:
            state.logprobs = extended(state.logprobs, choice.logprobs.content)
            state.logprobs_extra |= choice.logprobs.extra
        state.add_common(choice)

    def _first_prompt_token_ids(self) -> tuple[int, ...]:
        return self._prompt_token_ids or ()


def _whole(index: int, state: AnswerState) -> ChatChoice:
    logprobs = None
    if state.logprobs is not None:
        logprobs = ChatLogprobs(content=tuple(state.logprobs), extra=state.logprobs_extra)
    return ChatChoice(
        index=index,
        message=state.message(),
        finish_reason=state.finish_reason,
        logprobs=logprobs,
        seed=state.seed,
        token_ids=None if state.token_ids is None else tuple(state.token_ids),
        provenance=tuple(state.provenance),
        extra=state.extra,
    )
