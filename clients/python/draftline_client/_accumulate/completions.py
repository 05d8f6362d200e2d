"""A streamed completion put together again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from draftline_client._accumulate.base import ChoicesAccumulator, ChoiceState
from draftline_client._calls import says_stream_options
from draftline_client.options import CompletionOptions
from draftline_client.types import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
    PromptLogprobs,
)


@dataclass(kw_only=True)
class CompletionState(ChoiceState):
    """One continuation up to now."""

    logprobs: LogprobsState | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    prompt_logprobs: PromptLogprobs | None = None


@dataclass(kw_only=True)
class LogprobsState:
    """The four lists of a completion's logprobs up to now."""

    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[Mapping[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def add(self, logprobs: CompletionLogprobs) -> None:
        """Take those of a chunk."""
        self.tokens += logprobs.tokens
        self.token_logprobs += logprobs.token_logprobs
        self.top_logprobs += logprobs.top_logprobs or ()
        self.text_offset += logprobs.text_offset or ()
        self.extra |= logprobs.extra

    def whole(self) -> CompletionLogprobs:
        """Return them as a record."""
        return CompletionLogprobs(
            tokens=tuple(self.tokens),
            token_logprobs=tuple(self.token_logprobs),
            top_logprobs=tuple(self.top_logprobs),
            text_offset=tuple(self.text_offset),
            extra=self.extra,
        )


class CompletionAccumulator(ChoicesAccumulator[CompletionChunk, CompletionState]):
    """Takes the chunks of a completion.

    `has_logprobs` and `has_token_ids`, which were asked for, are there even where an answer has no token.
    """

    def __init__(self, *, hides_usage: bool, has_logprobs: bool, has_token_ids: bool) -> None:
        super().__init__(hides_usage=hides_usage)
        self._has_logprobs = has_logprobs
        self._has_token_ids = has_token_ids

    @classmethod
    def of(cls, options: CompletionOptions) -> CompletionAccumulator:
        """Return one for a request with these options."""
        return cls(
            hides_usage=not says_stream_options(options),
            has_logprobs=isinstance(options.get("logprobs"), int),
            has_token_ids=bool(options.get("return_token_ids")),
        )

    def add(self, chunk: CompletionChunk) -> bool:
        """Take a chunk; return whether the reader of the stream is to see it."""
        for choice in chunk.choices:
            self._add_choice(choice)
        return self._add_head(chunk)

    def text_of(self, chunk: CompletionChunk) -> str:
        """Return what a chunk adds to the text of the first choice."""
        return "".join(choice.text for choice in chunk.choices if choice.index == 0)

    def completion(self) -> Completion:
        """Return the whole reply; raises ProtocolError for a stream without usage."""
        head, usage = self._finished()
        choices = tuple(_whole(index, self._states[index]) for index in sorted(self._states))
        return Completion(**head, choices=choices, usage=usage, extra=self._extra)

    def _add_choice(self, choice: CompletionChoice) -> None:
        state = self._states.get(choice.index)
        if state is None:
            state = self._states[choice.index] = CompletionState(
                logprobs=LogprobsState() if self._has_logprobs else None,
                token_ids=[] if self._has_token_ids else None,
            )
        state.texts.append(choice.text)
        state.add_common(choice)
        if choice.logprobs is not None:
            state.logprobs = state.logprobs or LogprobsState()
            state.logprobs.add(choice.logprobs)
        if choice.prompt_token_ids is not None:
            state.prompt_token_ids = choice.prompt_token_ids
        if choice.prompt_logprobs is not None:
            state.prompt_logprobs = choice.prompt_logprobs

    def _first_prompt_token_ids(self) -> tuple[int, ...]:
        return (self._states[0].prompt_token_ids or ()) if 0 in self._states else ()


def _whole(index: int, state: CompletionState) -> CompletionChoice:
    return CompletionChoice(
        index=index,
        text=state.text,
        finish_reason=state.finish_reason,
        logprobs=None if state.logprobs is None else state.logprobs.whole(),
        seed=state.seed,
        token_ids=None if state.token_ids is None else tuple(state.token_ids),
        provenance=tuple(state.provenance),
        prompt_token_ids=state.prompt_token_ids,
        prompt_logprobs=state.prompt_logprobs,
        extra=state.extra,
    )
