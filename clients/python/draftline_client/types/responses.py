"""Responses, OpenAI's newer form of an answer, and the events in which one is streamed."""

from __future__ import annotations

from dataclasses import dataclass, field

from draftline_client.types._record import Delivered, JsonObject, Record
from draftline_client.types.cache import CacheExplanation
from draftline_client.types.chat import TokenLogprob
from draftline_client.types.usage import DraftlineUsage, SpeculationUsage


@dataclass(frozen=True, kw_only=True)
class ResponsePart(Record):
    """A piece of a message or of a thought."""

    type: str  # output_text or reasoning_text
    text: str  # of the piece
    logprobs: tuple[TokenLogprob, ...] = ()  # with top_logprobs, or included message.output_text.logprobs


@dataclass(frozen=True, kw_only=True)
class ResponseItem(Record):
    """One item of a response's output; may be passed back in `input` as it is.

    An item of a kind newer than this library is of this class, its members in `extra`.
    """

    type: str  # message, reasoning or function_call
    id: str | None = None  # of the item
    status: str | None = None  # in_progress, completed or incomplete


@dataclass(frozen=True, kw_only=True)
class ResponseMessage(ResponseItem):
    """What the model says."""

    role: str  # assistant
    content: tuple[ResponsePart, ...] = ()  # usually one part

    @property
    def text(self) -> str:
        """The text of all parts."""
        return "".join(part.text for part in self.content)


@dataclass(frozen=True, kw_only=True)
class ResponseReasoning(ResponseItem):
    """What the model thinks before it answers."""

    content: tuple[ResponsePart, ...] = ()  # usually one part
    summary: tuple[JsonObject, ...] = field(default=(), hash=False)  # always empty: there is no summary

    @property
    def text(self) -> str:
        """The text of all parts."""
        return "".join(part.text for part in self.content)


@dataclass(frozen=True, kw_only=True)
class ResponseFunctionCall(ResponseItem):
    """A function that the model calls; its result goes back as an item `function_call_output`."""

    call_id: str  # what the result names
    name: str  # of a tool of the request
    arguments: str  # JSON text of an object


@dataclass(frozen=True, kw_only=True)
class InputTokensDetails(Record):
    """Where the tokens of a response's input came from."""

    cached_tokens: int | None = None  # taken from the prefix cache


@dataclass(frozen=True, kw_only=True)
class OutputTokensDetails(Record):
    """What the tokens of a response's output were."""

    reasoning_tokens: int | None = None  # thought before the answer


@dataclass(frozen=True, kw_only=True)
class ResponseUsage(Record):
    """Token counts of one response."""

    input_tokens: int  # of the prompt
    output_tokens: int  # generated
    total_tokens: int  # both together
    input_tokens_details: InputTokensDetails | None = None  # where they came from
    output_tokens_details: OutputTokensDetails | None = None  # what they were
    draftline: DraftlineUsage | None = None  # what only this server counts

    @property
    def speculation(self) -> SpeculationUsage | None:
        """What speculation did: `draftline.speculation`."""
        return None if self.draftline is None else self.draftline.speculation

    @property
    def cache(self) -> tuple[CacheExplanation, ...]:
        """What the prefix cache had of the prompt, with `cache_explain`: `draftline.cache`."""
        return () if self.draftline is None else self.draftline.cache


@dataclass(frozen=True, kw_only=True)
class Response(Delivered):
    """The reply of `responses.create`; what it repeats of the request is in `extra`."""

    id: str  # for `retrieve`, `delete` and `previous_response_id`, if the server stores it
    created_at: int  # seconds since 1970
    completed_at: int | None = None  # seconds since 1970
    model: str  # that answered
    status: str  # in_progress, completed or incomplete (max_output_tokens were too few)
    output: tuple[ResponseItem, ...]  # thoughts, calls and messages in their order
    usage: ResponseUsage | None = None  # None until the response is complete
    seed: int | None = None  # that was used, given or drawn: it gives this response again
    system_fingerprint: str | None = None  # equal fingerprints and seeds give equal answers
    previous_response_id: str | None = None  # of the response that this one goes on from

    @property
    def text(self) -> str:
        """The text of all messages of the output."""
        return "".join(item.text for item in self.output if isinstance(item, ResponseMessage))

    @property
    def function_calls(self) -> tuple[ResponseFunctionCall, ...]:
        """The calls that the output asks for."""
        return tuple(item for item in self.output if isinstance(item, ResponseFunctionCall))


@dataclass(frozen=True, kw_only=True)
class ResponseEvent(Record):
    """One event of a streamed response.

    An event of a kind newer than this library is of this class, its members in `extra`.
    """

    type: str  # as in OpenAI's API: response.output_text.delta, ...
    sequence_number: int | None = None  # counted from 0


@dataclass(frozen=True, kw_only=True)
class ResponseStatusEvent(ResponseEvent):
    """`response.created`, `in_progress`, `completed` or `incomplete`: the response as it is then."""

    response: Response  # whole in the last event


@dataclass(frozen=True, kw_only=True)
class ResponseItemEvent(ResponseEvent):
    """`response.output_item.added` or `done`: an item of the output begins or ends."""

    output_index: int  # of the item in `output`
    item: ResponseItem  # whole in `done`


@dataclass(frozen=True, kw_only=True)
class ResponsePartEvent(ResponseEvent):
    """`response.content_part.added` or `done`: a part of an item begins or ends."""

    item_id: str  # of the item
    output_index: int  # of the item in `output`
    content_index: int  # of the part in the item's `content`
    part: ResponsePart  # whole in `done`


@dataclass(frozen=True, kw_only=True)
class ResponseDeltaEvent(ResponseEvent):
    """The next piece of a text, a thought or a call's arguments: the type ends with `.delta`.

    `response.output_text.delta`, `reasoning_text.delta` or `function_call_arguments.delta`.
    """

    item_id: str  # of the item that grows
    output_index: int  # of the item in `output`
    content_index: int | None = None  # of the part in the item's `content`; None for arguments
    delta: str  # what is added
    logprobs: tuple[TokenLogprob, ...] = ()  # of the tokens of an output_text


@dataclass(frozen=True, kw_only=True)
class ResponseDoneEvent(ResponseEvent):
    """A text, a thought or a call's arguments, whole: the type ends with `.done`.

    `response.output_text.done`, `reasoning_text.done` or `function_call_arguments.done`.
    """

    item_id: str  # of the item
    output_index: int  # of the item in `output`
    content_index: int | None = None  # of the part in the item's `content`; None for arguments
    text: str | None = None  # of an output_text or reasoning_text
    name: str | None = None  # of the function, for arguments
    arguments: str | None = None  # JSON text of an object
    logprobs: tuple[TokenLogprob, ...] = ()  # of an output_text
