"""Conversation: what was said, how the next answer is to be generated, and both as a JSON file."""

import json
import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.interface.errors import DraftlineError
from server.terminal.backend import Message, Role
from server.terminal.clean import clean_line
from server.terminal.settings import AnswerParams

_MAX_FILE_BYTES = 16 * 2**20
_MAX_MESSAGES = 10_000


class ConversationFileError(DraftlineError):
    """A file that cannot be written, or read as a conversation."""


class Conversation:
    """The system message, the turns after it and the parameters.

    The turns are pairs of a question and its answer; an answer that never came leaves no turn, but its
    question can be asked again.
    """

    def __init__(self, *, system: str | None, params: AnswerParams) -> None:
        self.system = system
        self.params = params
        self._turns: list[Message] = []
        self._question: str | None = None  # that has no answer yet
        self._num_kept = 0  # turns that its answer leaves in place

    @property
    def messages(self) -> tuple[Message, ...]:
        """The whole conversation, the system message first."""
        return self._messages(len(self._turns))

    @property
    def num_turns(self) -> int:
        """Number of messages behind the system message."""
        return len(self._turns)

    def ask(self, question: str) -> tuple[Message, ...]:
        """Return the conversation with one more question, which counts once it is answered."""
        return self._ask(question, len(self._turns))

    def ask_again(self) -> tuple[Message, ...] | None:
        """Return the conversation up to the last question; its new answer will replace the old one.

        None if there was no question.
        """
        if self._question is not None:
            return self._ask(self._question, self._num_kept)
        if len(self._turns) < 2 or self._turns[-2].role != "user":
            return None
        return self._ask(self._turns[-2].content, len(self._turns) - 2)

    def answer(self, text: str) -> None:
        """Keep the last question and its answer."""
        if self._question is None:
            return
        pair = Message(role="user", content=self._question), Message(role="assistant", content=text)
        self._turns[self._num_kept :] = pair
        self._question = None

    def forget(self) -> None:
        """Forget everything but the system message and the parameters."""
        self._turns.clear()
        self._question = None

    def replace(self, saved: "SavedConversation") -> None:
        """Go on with another conversation."""
        messages = [Message(role=message.role, content=message.content) for message in saved.messages]
        has_system = bool(messages) and messages[0].role == "system"
        self.system = messages.pop(0).content if has_system else None
        self.params = saved.params
        self._question = messages.pop().content if messages and messages[-1].role == "user" else None
        self._turns, self._num_kept = messages, len(messages)

    def _ask(self, question: str, num_kept: int) -> tuple[Message, ...]:
        self._question, self._num_kept = question, num_kept
        return (*self._messages(num_kept), Message(role="user", content=question))

    def _messages(self, num_turns: int) -> tuple[Message, ...]:
        system = [] if self.system is None else [Message(role="system", content=self.system)]
        return (*system, *self._turns[:num_turns])


class SavedMessage(BaseModel):
    """A message in a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    content: str


class SavedConversation(BaseModel):
    """A conversation in a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["draftline-chat"]
    version: Literal[1]
    model: str = Field(max_length=1024)  # that answered; another one may go on
    messages: tuple[SavedMessage, ...] = Field(max_length=_MAX_MESSAGES)
    params: AnswerParams


def save(conversation: Conversation, path: Path, *, model: str, may_overwrite: bool) -> None:
    """Write a conversation, for its owner only; raises ConversationFileError.

    An existing file is replaced as a whole or not at all, and only if it may be overwritten.
    """
    content = {
        "format": "draftline-chat",
        "version": 1,
        "model": model,
        "messages": [{"role": one.role, "content": one.content} for one in conversation.messages],
        "params": conversation.params.model_dump(exclude_none=True),
    }
    data = (json.dumps(content, indent=2) + "\n").encode()
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if not may_overwrite:
            _write_new(path, data)
        else:
            _write_new(part, data)
            part.replace(path)
    except FileExistsError:
        raise ConversationFileError(f"{clean_line(str(path))} exists already") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConversationFileError(f"{clean_line(str(path))} cannot be written: {reason}") from error


def _write_new(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)


def load(path: Path) -> SavedConversation:
    """Read what save() wrote; raises ConversationFileError that names the first thing that is wrong."""
    shown = clean_line(str(path))
    try:
        if not path.is_file():  # a pipe would be waited for
            raise ConversationFileError(f"{shown}: no such file")
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConversationFileError(f"{shown} cannot be read: {reason}") from error
    if len(data) > _MAX_FILE_BYTES:
        raise ConversationFileError(f"{shown} has more than {_MAX_FILE_BYTES:,} bytes")
    try:
        return SavedConversation.model_validate_json(data, strict=True)
    except ValidationError as error:
        raise ConversationFileError(f"{shown} is no saved conversation: {explain(error)}") from None


def explain(error: ValidationError) -> str:
    """Return the first thing that is wrong: where, what is expected, what is there."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    message = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
    return clean_line(f"{where}: {message}" if where else message)
