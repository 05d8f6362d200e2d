"""What accumulators of every kind of stream have, and the parts that all choices have."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from draftline_client._parse.common import HeadFields
from draftline_client.errors import ProtocolError, Received
from draftline_client.types import (
    ChatChunkChoice,
    ChatCompletionChunk,
    CompletionChoice,
    CompletionChunk,
    ResponseUsage,
    TokenProvenance,
    Usage,
)

T_contra = TypeVar("T_contra", contravariant=True)
ChunkT = TypeVar("ChunkT", CompletionChunk, ChatCompletionChunk)
ItemT = TypeVar("ItemT")
StateT = TypeVar("StateT", bound="ChoiceState")


class Accumulator(ABC, Generic[T_contra]):
    """Takes the chunks of a stream as they are read."""

    def __init__(self) -> None:
        self.num_chunks = 0
        self.is_complete = False  # for streams that end with an event of their own

    @abstractmethod
    def add(self, chunk: T_contra) -> bool:
        """Take a chunk; return whether the reader of the stream is to see it."""

    @abstractmethod
    def text_of(self, chunk: T_contra) -> str:
        """Return what a chunk adds to the text of the first choice."""

    @property
    @abstractmethod
    def text(self) -> str:
        """The text of the first choice up to now."""

    @property
    @abstractmethod
    def usage(self) -> Usage | ResponseUsage | None:
        """The last usage that was seen."""

    @abstractmethod
    def received(self, request_id: str | None) -> Received:
        """Return what has come up to now, for an error."""


@dataclass(kw_only=True)
class ChoiceState:
    """One choice up to now."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] | None = None
    provenance: list[TokenProvenance] = field(default_factory=list)
    finish_reason: str | None = None
    seed: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The text up to now."""
        return "".join(self.texts)

    def add_common(self, choice: CompletionChoice | ChatChunkChoice) -> None:
        """Take what choices of both kinds of generation have."""
        if choice.token_ids is not None:
            self.token_ids = extended(self.token_ids, choice.token_ids)
        self.provenance += choice.provenance
        self.finish_reason = choice.finish_reason or self.finish_reason
        self.seed = self.seed if choice.seed is None else choice.seed
        self.extra |= choice.extra


def extended(so_far: list[ItemT] | None, more: Sequence[ItemT]) -> list[ItemT]:
    """Return the list with more items at its end, a new one if there was none."""
    items = [] if so_far is None else so_far
    items.extend(more)
    return items


class ChoicesAccumulator(Accumulator[ChunkT], Generic[ChunkT, StateT]):
    """Takes the chunks of completions and chat, whose choices grow side by side.

    With `hides_usage` the reader does not see the chunk of the usage, for which it did not ask.
    """

    def __init__(self, *, hides_usage: bool) -> None:
        super().__init__()
        self._hides_usage = hides_usage
        self._head: HeadFields | None = None
        self._usage: Usage | None = None
        self._states: dict[int, StateT] = {}
        self._extra: dict[str, Any] = {}

    @property
    def usage(self) -> Usage | None:
        """The last usage that was seen."""
        return self._usage

    @property
    def text(self) -> str:
        """The text of the first choice up to now."""
        return self._states[0].text if 0 in self._states else ""

    def received(self, request_id: str | None) -> Received:
        """Return what has come up to now, for an error."""
        states = self._in_order()
        first = self._states.get(0)
        return Received(
            text=self.text,
            texts=tuple(state.text for state in states),
            num_chunks=self.num_chunks,
            request_id=request_id,
            usage=self._usage,
            finish_reasons=tuple(state.finish_reason for state in states),
            prompt_token_ids=self._first_prompt_token_ids(),
            token_ids=() if first is None else tuple(first.token_ids or ()),
        )

    @abstractmethod
    def _first_prompt_token_ids(self) -> tuple[int, ...]: ...

    def _add_head(self, chunk: ChunkT) -> bool:
        """Take what is not of a choice; return whether the reader is to see the chunk."""
        self._usage = chunk.usage or self._usage
        self._extra |= chunk.extra
        if self._head is None:
            self._head = _head_of(chunk)
        self._head["warnings"] += chunk.warnings if self.num_chunks else ()
        is_hidden = self._hides_usage and not chunk.choices and chunk.usage is not None
        self.num_chunks += not is_hidden
        return not is_hidden

    def _in_order(self) -> list[StateT]:
        return [self._states[index] for index in sorted(self._states)]

    def _finished(self) -> tuple[HeadFields, Usage]:
        """Return what a whole reply has besides its choices; raises ProtocolError where it is missing."""
        if self._head is None or self._usage is None:
            raise ProtocolError("the stream had no usage; leave stream_options out, or ask for include_usage")
        return self._head, self._usage


def _head_of(chunk: CompletionChunk | ChatCompletionChunk) -> HeadFields:
    return {
        "id": chunk.id,
        "created": chunk.created,
        "model": chunk.model,
        "system_fingerprint": chunk.system_fingerprint,
        "warnings": chunk.warnings,
        "request_id": chunk.request_id,
        "rate_limits": chunk.rate_limits,
    }
