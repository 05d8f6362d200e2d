# Generated from _async/client.py by tools/generate_sync_client.py: change that file, not this one.
"""The synchronous client."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import httpx

from draftline_client import _calls, _protocol
from draftline_client._endpoint import DEFAULT_TIMEOUT, LIMITS, UNPROXIED, Endpoint
from draftline_client._sync.resources import (
    Cache,
    Chat,
    Completions,
    Embeddings,
    Models,
    Requests,
    Responses,
)
from draftline_client._sync.sender import Sender
from draftline_client.options import NOT_GIVEN, Message, NotGiven, Timeout
from draftline_client.types import Attention, Distribution, Tokenization

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from draftline_client.options import (
        AttentionOptions,
        CallOptions,
        DetokenizeOptions,
        DistributionOptions,
        TokenizeOptions,
    )


class Client:
    """A connection pool to one draftline server; safe to share among threads.

    `base_url` and `api_key` come from DRAFTLINE_BASE_URL and DRAFTLINE_API_KEY when None. `timeout` is
    httpx's, in seconds where it is a number; it applies also to an `http_client` of your own, which
    stays yours to close. `sleep` waits between attempts.

    Example:
        with Client(timeout=60.0) as client:
            reply = client.completions.create(prompt="The sea is", max_tokens=8)
            print(reply.text, reply.seed)
    """

    def __init__(
        self,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: Timeout = DEFAULT_TIMEOUT,
        max_retries: int = _protocol.DEFAULT_MAX_RETRIES,
        http_client: httpx.Client | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        endpoint = Endpoint.of(base_url=base_url, api_key=api_key, timeout=timeout)
        _protocol.checked_max_retries(max_retries)
        self._own_http = httpx.Client(limits=LIMITS, mounts=UNPROXIED) if http_client is None else None
        http = self._own_http or http_client
        if not isinstance(http, httpx.Client):
            raise TypeError(f"http_client must be an httpx.Client, got {type(http).__name__}")
        self._sender = Sender(endpoint, http, max_retries=max_retries, sleep=sleep)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={self._sender.endpoint.base_url!r})"

    @property
    def completions(self) -> Completions:
        """Continuations of prompts."""
        return Completions(self._sender)

    @property
    def chat(self) -> Chat:
        """Answers to conversations."""
        return Chat(self._sender)

    @property
    def responses(self) -> Responses:
        """Answers in OpenAI's newer form, which the server can store."""
        return Responses(self._sender)

    @property
    def embeddings(self) -> Embeddings:
        """Vectors of texts."""
        return Embeddings(self._sender)

    @property
    def cache(self) -> Cache:
        """What the prefix cache has."""
        return Cache(self._sender)

    @property
    def requests(self) -> Requests:
        """The requests of this API key that are under way."""
        return Requests(self._sender)

    @property
    def models(self) -> Models:
        """The models that the server serves."""
        return Models(self._sender)

    def with_options(
        self,
        *,
        timeout: Timeout | NotGiven = NOT_GIVEN,
        max_retries: int | NotGiven = NOT_GIVEN,
        api_key: str | NotGiven = NOT_GIVEN,
        extra_headers: Mapping[str, str] | NotGiven = NOT_GIVEN,
    ) -> Self:
        """Return a client over the same connections that differs in what is given.

        An empty `api_key` sends none; `extra_headers` are sent besides, or in place of, those of this client.
        Closing the new client leaves the connections open; closing this one closes both.

        Example:
            patient = client.with_options(timeout=600.0, max_retries=10)
            print(patient.version())
        """
        endpoint = self._sender.endpoint.with_options(
            timeout=timeout, api_key=api_key, extra_headers=extra_headers
        )
        derived = copy.copy(self)
        retries = None if isinstance(max_retries, NotGiven) else max_retries
        vars(derived).update(_sender=self._sender.derive(endpoint, max_retries=retries), _own_http=None)
        return derived

    def tokenize(
        self,
        *,
        text: str | NotGiven = NOT_GIVEN,
        messages: Sequence[Message] | NotGiven = NOT_GIVEN,
        **options: Unpack[TokenizeOptions],
    ) -> Tokenization:
        """Return the token ids of a text, or of a conversation in the model's chat template."""
        return self._sender.fetch(_calls.tokenize_call(text, messages, options))

    def detokenize(self, token_ids: Sequence[int], **options: Unpack[DetokenizeOptions]) -> str:
        """Return the text of token ids."""
        return self._sender.fetch(_calls.detokenize_call(token_ids, options))

    def distribution(
        self, *, prompt: str | Sequence[int], **options: Unpack[DistributionOptions]
    ) -> Distribution:
        """Return how likely each token of the vocabulary is to follow a prompt: text or token ids.

        Example:
            distribution = client.distribution(prompt="The capital of France is")
            print(distribution.top(5))
        """
        return self._sender.fetch(_calls.distribution_call(prompt, options))

    def attention(self, *, prompt: str | Sequence[int], **options: Unpack[AttentionOptions]) -> Attention:
        """Return how much each token of a prompt attends to those before it, in one layer.

        Raises NotFoundError unless the server runs with --enable-attention.

        Example:
            attention = client.attention(prompt="The cat sat", layer=1)
            print(attention.attention[0][-1])
        """
        return self._sender.fetch(_calls.attention_call(prompt, options))

    def health(self, *, timeout: Timeout = _protocol.PROBE_TIMEOUT) -> bool:
        """Tell whether the server is alive; False when it cannot be reached."""
        return self._sender.probe(_calls.probe_call("/health", timeout))

    def ready(self, *, timeout: Timeout = _protocol.PROBE_TIMEOUT) -> bool:
        """Tell whether the server takes requests: not loading, draining or stalled, and reachable."""
        return self._sender.probe(_calls.probe_call("/ready", timeout))

    def version(self, **options: Unpack[CallOptions]) -> str:
        """Return the server's version."""
        return self._sender.fetch(_calls.version_call(options))

    def close(self) -> None:
        """Close the connections; calls raise ClosedError from then on."""
        self._sender.lifetime.end()
        if self._own_http is not None:
            self._own_http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
