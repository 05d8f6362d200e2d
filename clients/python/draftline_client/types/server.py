"""What the server says of itself: models, tokens, requests under way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from draftline_client.types._record import Record


@dataclass(frozen=True, kw_only=True)
class Model(Record):
    """A model that the server serves."""

    id: str  # the `model` of requests
    created: int  # seconds since 1970
    owned_by: str  # draftline
    max_model_len: int | None = None  # tokens of prompt and output together


@dataclass(frozen=True, kw_only=True)
class ModelList(Record):
    """The models that the server serves; iterating gives them."""

    data: tuple[Model, ...]  # usually one

    def __iter__(self) -> Iterator[Model]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)


@dataclass(frozen=True, kw_only=True)
class Tokenization(Record):
    """A text or a conversation as the model sees it."""

    token_ids: tuple[int, ...]  # what the model reads
    count: int  # of token_ids
    max_model_len: int  # tokens of prompt and output together
    token_strs: tuple[str, ...] | None = None  # with return_token_strs


@dataclass(frozen=True, kw_only=True)
class OpenRequest(Record):
    """A request of this API key that is under way."""

    id: str  # its X-Request-Id, for `requests.cancel`
    endpoint: str  # the path that it was sent to
    state: str  # queued or running
    position: int | None = None  # how many wait before it; None once it runs
    prompt_tokens: int  # of its prompts
    completion_tokens: int  # generated up to now
    created: int  # seconds since 1970
    age: float  # seconds


@dataclass(frozen=True, kw_only=True)
class OpenRequestList(Record):
    """The requests of this API key that are under way; iterating gives them, the oldest first."""

    data: tuple[OpenRequest, ...]  # the oldest first

    def __iter__(self) -> Iterator[OpenRequest]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)
