"""AnswerBackend: where answers come from, an engine in this process or a server elsewhere."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from engine.interface.errors import DraftlineError
from server.terminal.settings import AnswerParams

Role: TypeAlias = Literal["system", "user", "assistant"]


class AnswerError(DraftlineError):
    """An answer that did not come, or not to its end; the message is one line without control characters."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class TextPiece:
    """A piece of an answer, or of the thought before it; may hold control characters."""

    text: str
    is_reasoning: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerStats:
    """What is known of a complete answer; None: the server does not say."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None  # of the prompt
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None  # of the drafted ones
    seed: int | None = None  # the answer can be repeated with
    finish_reason: str | None = None


AnswerEvent: TypeAlias = TextPiece | AnswerStats


class AnswerBackend(Protocol):
    """Generates answers, one at a time.

    Both methods yield pieces of text and, last, an AnswerStats; they raise DraftlineError. Closing the
    generator early ends the answer where it is generated, too.
    """

    @property
    def name(self) -> str:
        """The model's name, on one line without control characters."""

    @property
    def description(self) -> str:
        """The model or where it is served, likewise."""

    def chat(self, messages: Sequence[Message], params: AnswerParams) -> AsyncGenerator[AnswerEvent, None]:
        """Answer a conversation."""

    def complete(self, prompt: str, params: AnswerParams) -> AsyncGenerator[AnswerEvent, None]:
        """Continue a text."""

    async def close(self) -> None:
        """Free what it holds."""
