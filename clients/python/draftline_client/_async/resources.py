"""The calls of the asynchronous client that belong together: `client.chat`, `client.responses`, ..."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, overload

from draftline_client import _calls, _parse
from draftline_client._accumulate import ChatAccumulator, CompletionAccumulator, ResponseAccumulator
from draftline_client._async.sender import AsyncSender
from draftline_client._async.stream import AsyncChatStream, AsyncCompletionStream, AsyncResponseStream
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


class AsyncCompletions:
    """POST /v1/completions."""

    def __init__(self, sender: AsyncSender) -> None:
        self._sender = sender

    @overload
    async def create(
        self, *, prompt: Prompt, stream: Literal[False] = False, **options: Unpack[CompletionOptions]
    ) -> Completion: ...
    @overload
    async def create(
        self, *, prompt: Prompt, stream: Literal[True], **options: Unpack[CompletionOptions]
    ) -> AsyncCompletionStream: ...
    @overload
    async def create(
        self, *, prompt: Prompt, stream: bool, **options: Unpack[CompletionOptions]
    ) -> Completion | AsyncCompletionStream: ...
    async def create(
        self, *, prompt: Prompt, stream: bool = False, **options: Unpack[CompletionOptions]
    ) -> Completion | AsyncCompletionStream:
        """Continue a prompt, or each of several; text or token ids.

        Example:
            reply = await client.completions.create(prompt=["Red is", "Blue is"], max_tokens=8)
            print([choice.text for choice in reply.choices])
        """
        if not stream:
            call = _calls.completion_call(prompt, options, _parse.parse_completion, stream=False)
            return await self._sender.fetch(call)
        parse = _parse.parse_completion_chunk
        streamed = _calls.completion_call(prompt, options, parse, stream=True)
        accumulator = CompletionAccumulator.of(options)
        return AsyncCompletionStream(await self._sender.stream(streamed, accumulator), accumulator)


class AsyncChat:
    """POST /v1/chat/completions, and its prompt alone."""

    def __init__(self, sender: AsyncSender) -> None:
        self._sender = sender

    @overload
    async def create(
        self,
        *,
        messages: Sequence[Message],
        stream: Literal[False] = False,
        **options: Unpack[ChatOptions],
    ) -> ChatCompletion: ...
    @overload
    async def create(
        self, *, messages: Sequence[Message], stream: Literal[True], **options: Unpack[ChatOptions]
    ) -> AsyncChatStream: ...
    @overload
    async def create(
        self, *, messages: Sequence[Message], stream: bool, **options: Unpack[ChatOptions]
    ) -> ChatCompletion | AsyncChatStream: ...
    async def create(
        self, *, messages: Sequence[Message], stream: bool = False, **options: Unpack[ChatOptions]
    ) -> ChatCompletion | AsyncChatStream:
        """Answer a conversation.

        Example:
            question = {"role": "user", "content": "Name a colour."}
            stream = await client.chat.create(messages=[question], max_tokens=8, stream=True)
            async with stream:
                async for text in stream.text_deltas():
                    print(text, end="")
            answer = await stream.get_final_completion()
            print(answer.usage)
        """
        if not stream:
            call = _calls.chat_call(messages, options, _parse.parse_chat_completion, stream=False)
            return await self._sender.fetch(call)
        parse = _parse.parse_chat_completion_chunk
        streamed = _calls.chat_call(messages, options, parse, stream=True)
        accumulator = ChatAccumulator.of(options)
        return AsyncChatStream(await self._sender.stream(streamed, accumulator), accumulator)

    async def render(self, *, messages: Sequence[Message], **options: Unpack[ChatOptions]) -> RenderedPrompt:
        """Return the prompt that `create` would make of a conversation; nothing is generated."""
        return await self._sender.fetch(_calls.render_call(messages, options))


class AsyncResponses:
    """POST /v1/responses, OpenAI's newer form of chat, and the responses that the server stores."""

    def __init__(self, sender: AsyncSender) -> None:
        self._sender = sender

    @overload
    async def create(
        self,
        *,
        input: str | Sequence[InputItem],
        stream: Literal[False] = False,
        **options: Unpack[ResponseOptions],
    ) -> Response: ...
    @overload
    async def create(
        self,
        *,
        input: str | Sequence[InputItem],
        stream: Literal[True],
        **options: Unpack[ResponseOptions],
    ) -> AsyncResponseStream: ...
    @overload
    async def create(
        self, *, input: str | Sequence[InputItem], stream: bool, **options: Unpack[ResponseOptions]
    ) -> Response | AsyncResponseStream: ...
    async def create(
        self,
        *,
        input: str | Sequence[InputItem],  # noqa: A002 - the field's name
        stream: bool = False,
        **options: Unpack[ResponseOptions],
    ) -> Response | AsyncResponseStream:
        """Answer a text or a list of items.

        Example:
            response = await client.responses.create(input="Name a colour.", max_output_tokens=8)
            print(response.text, response.status)
        """
        if not stream:
            call = _calls.response_call(input, options, _parse.parse_response, stream=False)
            return await self._sender.fetch(call)
        streamed = _calls.response_call(input, options, _parse.parse_response_event, stream=True)
        accumulator = ResponseAccumulator()
        return AsyncResponseStream(await self._sender.stream(streamed, accumulator), accumulator)

    async def retrieve(self, response_id: str, **options: Unpack[CallOptions]) -> Response:
        """Return a response that the server stores; raises NotFoundError."""
        return await self._sender.fetch(_calls.stored_response_call(response_id, options))

    async def delete(self, response_id: str, **options: Unpack[CallOptions]) -> None:
        """Let the server forget a response; raises NotFoundError."""
        await self._sender.fetch(_calls.response_deletion_call(response_id, options))


class AsyncEmbeddings:
    """POST /v1/embeddings."""

    def __init__(self, sender: AsyncSender) -> None:
        self._sender = sender

    async def create(
        self,
        *,
        input: Prompt,  # noqa: A002 - the field's name
        **options: Unpack[EmbeddingOptions],
    ) -> EmbeddingList:
        """Return the vector of a text, or of each of several; text or token ids.

        Example:
            found = await client.embeddings.create(input=["a cat", "a dog"])
            print([len(each.embedding) for each in found])
        """
        return await self._sender.fetch(_calls.embedding_call(input, options))


class AsyncCache:
    """POST /v1/cache/lookup."""

    def __init__(self, sender: AsyncSender) -> None:
        self._sender = sender

    async def lookup(
        self,
        *,
        prompt: str | Sequence[int] | NotGiven = NOT_GIVEN,
        messages: Sequence[Message] | NotGiven = NOT_GIVEN,
        **options: Unpack[CacheLookupOptions],
    ) -> CacheLookup:
        """Tell what the prefix cache has of a prompt, or of a conversation; nothing runs or changes.

        Example:
            found = await client.cache.lookup(prompt="The cat sat on the mat.")
            print(found.cached_tokens, found.end.reason)
        """
        return await self._sender.fetch(_calls.cache_lookup_call(prompt, messages, options))


class AsyncRequests:
    """The requests of this API key that are under way: GET /v1/requests."""

    def __init__(self, sender: AsyncSender) -> None:
        self._sender = sender

    async def list(self, **options: Unpack[CallOptions]) -> OpenRequestList:
        """Return the requests that wait or run."""
        return await self._sender.fetch(_calls.open_request_list_call(options))

    async def cancel(self, request_id: str, **options: Unpack[CallOptions]) -> None:
        """End a request by its `request_id`; raises NotFoundError if it is not under way.

        Whoever waits for its answer gets an error with the code `request_cancelled`.
        """
        await self._sender.fetch(_calls.cancellation_call(request_id, options))


class AsyncModels:
    """GET /v1/models."""

    def __init__(self, sender: AsyncSender) -> None:
        self._sender = sender

    async def list(self, **options: Unpack[CallOptions]) -> ModelList:
        """Return the models that the server serves."""
        return await self._sender.fetch(_calls.model_list_call(options))

    async def retrieve(self, model: str, **options: Unpack[CallOptions]) -> Model:
        """Return one model; raises NotFoundError."""
        return await self._sender.fetch(_calls.model_call(model, options))
