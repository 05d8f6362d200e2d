# Generated from _async/resources.py by tools/generate_sync_client.py: change that file, not this one.
"""The calls of the synchronous client that belong together: `client.chat`, `client.responses`, ..."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, overload

from draftline_client import _calls, _parse
from draftline_client._accumulate import ChatAccumulator, CompletionAccumulator, ResponseAccumulator
from draftline_client._sync.sender import Sender
from draftline_client._sync.stream import ChatStream, CompletionStream, ResponseStream
from draftline_client.options import NOT_GIVEN, InputItem, Message, NotGiven, Prompt
from draftline_client.types import (
    CacheLookup,
    ChatCompletion,
    Completion,
    EmbeddingList,
    Model,
    ModelList,
    OpenRequestList,
    RenderedPrompt,
    Response,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from draftline_client.options import (
        CacheLookupOptions,
        CallOptions,
        ChatOptions,
        CompletionOptions,
        EmbeddingOptions,
        ResponseOptions,
    )


class Completions:
    """POST /v1/completions."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    @overload
    def create(
        self, *, prompt: Prompt, stream: Literal[False] = False, **options: Unpack[CompletionOptions]
    ) -> Completion: ...
    @overload
    def create(
        self, *, prompt: Prompt, stream: Literal[True], **options: Unpack[CompletionOptions]
    ) -> CompletionStream: ...
    @overload
    def create(
        self, *, prompt: Prompt, stream: bool, **options: Unpack[CompletionOptions]
    ) -> Completion | CompletionStream: ...
    def create(
        self, *, prompt: Prompt, stream: bool = False, **options: Unpack[CompletionOptions]
    ) -> Completion | CompletionStream:
        """Continue a prompt, or each of several; text or token ids.

        Example:
            reply = client.completions.create(prompt=["Red is", "Blue is"], max_tokens=8)
            print([choice.text for choice in reply.choices])
        """
        if not stream:
            call = _calls.completion_call(prompt, options, _parse.parse_completion, stream=False)
            return self._sender.fetch(call)
        parse = _parse.parse_completion_chunk
        streamed = _calls.completion_call(prompt, options, parse, stream=True)
        accumulator = CompletionAccumulator.of(options)
        return CompletionStream(self._sender.stream(streamed, accumulator), accumulator)


class Chat:
    """POST /v1/chat/completions, and its prompt alone."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    @overload
    def create(
        self,
        *,
        messages: Sequence[Message],
        stream: Literal[False] = False,
        **options: Unpack[ChatOptions],
    ) -> ChatCompletion: ...
    @overload
    def create(
        self, *, messages: Sequence[Message], stream: Literal[True], **options: Unpack[ChatOptions]
    ) -> ChatStream: ...
    @overload
    def create(
        self, *, messages: Sequence[Message], stream: bool, **options: Unpack[ChatOptions]
    ) -> ChatCompletion | ChatStream: ...
    def create(
        self, *, messages: Sequence[Message], stream: bool = False, **options: Unpack[ChatOptions]
    ) -> ChatCompletion | ChatStream:
        """Answer a conversation.

        Example:
            question = {"role": "user", "content": "Name a colour."}
            stream = client.chat.create(messages=[question], max_tokens=8, stream=True)
            with stream:
                for text in stream.text_deltas():
                    print(text, end="")
            answer = stream.get_final_completion()
            print(answer.usage)
        """
        if not stream:
            call = _calls.chat_call(messages, options, _parse.parse_chat_completion, stream=False)
            return self._sender.fetch(call)
        parse = _parse.parse_chat_completion_chunk
        streamed = _calls.chat_call(messages, options, parse, stream=True)
        accumulator = ChatAccumulator.of(options)
        return ChatStream(self._sender.stream(streamed, accumulator), accumulator)

    def render(self, *, messages: Sequence[Message], **options: Unpack[ChatOptions]) -> RenderedPrompt:
        """Return the prompt that `create` would make of a conversation; nothing is generated."""
        return self._sender.fetch(_calls.render_call(messages, options))


class Responses:
    """POST /v1/responses, OpenAI's newer form of chat, and the responses that the server stores."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    @overload
    def create(
        self,
        *,
        input: str | Sequence[InputItem],
        stream: Literal[False] = False,
        **options: Unpack[ResponseOptions],
    ) -> Response: ...
    @overload
    def create(
        self,
        *,
        input: str | Sequence[InputItem],
        stream: Literal[True],
        **options: Unpack[ResponseOptions],
    ) -> ResponseStream: ...
    @overload
    def create(
        self, *, input: str | Sequence[InputItem], stream: bool, **options: Unpack[ResponseOptions]
    ) -> Response | ResponseStream: ...
    def create(
        self,
        *,
        input: str | Sequence[InputItem],  # noqa: A002 - the field's name
        stream: bool = False,
        **options: Unpack[ResponseOptions],
    ) -> Response | ResponseStream:
        """Answer a text or a list of items.

        Example:
            response = client.responses.create(input="Name a colour.", max_output_tokens=8)
            print(response.text, response.status)
        """
        if not stream:
            call = _calls.response_call(input, options, _parse.parse_response, stream=False)
            return self._sender.fetch(call)
        streamed = _calls.response_call(input, options, _parse.parse_response_event, stream=True)
        accumulator = ResponseAccumulator()
        return ResponseStream(self._sender.stream(streamed, accumulator), accumulator)

    def retrieve(self, response_id: str, **options: Unpack[CallOptions]) -> Response:
        """Return a response that the server stores; raises NotFoundError."""
        return self._sender.fetch(_calls.stored_response_call(response_id, options))

    def delete(self, response_id: str, **options: Unpack[CallOptions]) -> None:
        """Let the server forget a response; raises NotFoundError."""
        self._sender.fetch(_calls.response_deletion_call(response_id, options))


class Embeddings:
    """POST /v1/embeddings."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    def create(
        self,
        *,
        input: Prompt,  # noqa: A002 - the field's name
        **options: Unpack[EmbeddingOptions],
    ) -> EmbeddingList:
        """Return the vector of a text, or of each of several; text or token ids.

        Example:
            found = client.embeddings.create(input=["a cat", "a dog"])
            print([len(each.embedding) for each in found])
        """
        return self._sender.fetch(_calls.embedding_call(input, options))


class Cache:
    """POST /v1/cache/lookup."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    def lookup(
        self,
        *,
        prompt: str | Sequence[int] | NotGiven = NOT_GIVEN,
        messages: Sequence[Message] | NotGiven = NOT_GIVEN,
        **options: Unpack[CacheLookupOptions],
    ) -> CacheLookup:
        """Tell what the prefix cache has of a prompt, or of a conversation; nothing runs or changes.

        Example:
            found = client.cache.lookup(prompt="The cat sat on the mat.")
            print(found.cached_tokens, found.end.reason)
        """
        return self._sender.fetch(_calls.cache_lookup_call(prompt, messages, options))


class Requests:
    """The requests of this API key that are under way: GET /v1/requests."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    def list(self, **options: Unpack[CallOptions]) -> OpenRequestList:
        """Return the requests that wait or run."""
        return self._sender.fetch(_calls.open_request_list_call(options))

    def cancel(self, request_id: str, **options: Unpack[CallOptions]) -> None:
        """End a request by its `request_id`; raises NotFoundError if it is not under way.

        Whoever waits for its answer gets an error with the code `request_cancelled`.
        """
        self._sender.fetch(_calls.cancellation_call(request_id, options))


class Models:
    """GET /v1/models."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    def list(self, **options: Unpack[CallOptions]) -> ModelList:
        """Return the models that the server serves."""
        return self._sender.fetch(_calls.model_list_call(options))

    def retrieve(self, model: str, **options: Unpack[CallOptions]) -> Model:
        """Return one model; raises NotFoundError."""
        return self._sender.fetch(_calls.model_call(model, options))
