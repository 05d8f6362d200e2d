"""Answers to conversations, whole and in chunks, and the tools that they call."""

from __future__ import annotations

from dataclasses import dataclass, field

from draftline_client.types._record import Delivered, Record, Reply
from draftline_client.types.completions import PromptLogprobs
from draftline_client.types.provenance import TokenProvenance
from draftline_client.types.usage import Usage


@dataclass(frozen=True, kw_only=True)
class TopLogprob(Record):
    """One alternative at a position."""

    token: str  # as text
    logprob: float  # natural logarithm
    bytes: tuple[int, ...] | None = None  # exactly, also where they are no whole characters


@dataclass(frozen=True, kw_only=True)
class TokenLogprob(TopLogprob):
    """The chosen token of a position with its alternatives."""

    top_logprobs: tuple[TopLogprob, ...] = ()  # likeliest first


@dataclass(frozen=True, kw_only=True)
class ChatLogprobs(Record):
    """Log probabilities of an answer's tokens."""

    content: tuple[TokenLogprob, ...] = ()  # token by token


@dataclass(frozen=True, kw_only=True)
class FunctionCall(Record):
    """A function that the model calls."""

    name: str  # of a tool of the request
    arguments: str  # JSON text of an object


@dataclass(frozen=True, kw_only=True)
class ToolCall(Record):
    """A call; its result goes back in a message of the role tool with its id."""

    id: str  # the tool_call_id of the result
    function: FunctionCall  # what is called


@dataclass(frozen=True, kw_only=True)
class FunctionCallDelta(Record):
    """What a chunk adds to a function's call."""

    name: str | None = None  # in the call's first chunk
    arguments: str = ""  # the next piece of the JSON text


@dataclass(frozen=True, kw_only=True)
class ToolCallDelta(Record):
    """What a chunk adds to a call; the first has the id and the name."""

    index: int  # of the call in its answer
    id: str | None = None  # in the call's first chunk
    function: FunctionCallDelta  # what is added


@dataclass(frozen=True, kw_only=True)
class ChatMessage(Record):
    """A message of a conversation; may be passed back in `messages` as it is."""

    role: str  # assistant
    content: str | None = None  # None where there are only calls
    reasoning_content: str | None = None  # what the model thought before it answered
    tool_calls: tuple[ToolCall, ...] = ()  # that the model asks for


@dataclass(frozen=True, kw_only=True)
class ChatChoice(Record):
    """One answer."""

    index: int  # counted from 0
    message: ChatMessage  # the answer itself
    finish_reason: str | None = None  # stop, length or tool_calls
    logprobs: ChatLogprobs | None = None  # with logprobs
    seed: int | None = None  # gives this answer again
    token_ids: tuple[int, ...] | None = None  # with return_token_ids
    provenance: tuple[TokenProvenance, ...] = ()  # of token_ids, with return_provenance


@dataclass(frozen=True, kw_only=True)
class ChatCompletion(Reply):
    """The reply of `chat.create`."""

    choices: tuple[ChatChoice, ...]  # n of them
    usage: Usage  # of all choices
    prompt_token_ids: tuple[int, ...] | None = None  # with return_token_ids
    prompt_logprobs: PromptLogprobs | None = field(default=None, hash=False)  # with prompt_logprobs

    @property
    def text(self) -> str:
        """The text of the first choice, empty where it has none."""
        return self.choices[0].message.content or ""

    @property
    def seed(self) -> int | None:
        """The seed that was used, given or drawn: with it, the same request has the same answers."""
        return self.choices[0].seed


@dataclass(frozen=True, kw_only=True)
class Delta(Record):
    """What a chunk adds to a message."""

    role: str | None = None  # in the first chunk
    content: str | None = None  # the next piece of text
    reasoning_content: str | None = None  # the next piece of the thought
    tool_calls: tuple[ToolCallDelta, ...] = ()  # what is added to calls


@dataclass(frozen=True, kw_only=True)
class ChatChunkChoice(Record):
    """The next piece of one answer."""

    index: int  # of the answer
    delta: Delta  # what is added to its message
    finish_reason: str | None = None  # in the answer's last chunk
    logprobs: ChatLogprobs | None = None  # of the tokens of this chunk
    seed: int | None = None  # in the answer's last chunk: gives this answer again
    token_ids: tuple[int, ...] | None = None  # with return_token_ids
    provenance: tuple[TokenProvenance, ...] = ()  # of token_ids, with return_provenance


@dataclass(frozen=True, kw_only=True)
class ChatCompletionChunk(Reply):
    """One event of a streamed answer; the usage chunk has no choices."""

    choices: tuple[ChatChunkChoice, ...]  # what this chunk adds to them
    usage: Usage | None = None  # of the last chunk, with stream_options include_usage
    prompt_token_ids: tuple[int, ...] | None = None  # of the first chunk, with return_token_ids
    prompt_logprobs: PromptLogprobs | None = field(default=None, hash=False)  # of one chunk


@dataclass(frozen=True, kw_only=True)
class RenderedPrompt(Delivered):
    """The prompt that a conversation makes; the reply of `chat.render`."""

    prompt: str  # the conversation in the model's chat template
    token_ids: tuple[int, ...]  # what the model reads
    count: int  # of token_ids
