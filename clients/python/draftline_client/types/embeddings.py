"""Embeddings: vectors of texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from draftline_client.types._record import Delivered, Record
from draftline_client.types.usage import PromptTokensDetails


@dataclass(frozen=True, kw_only=True)
class Embedding(Record):
    """The vector of one text."""

    index: int  # of the text in `input`
    embedding: Sequence[float] = field(hash=False)  # float32, of length 1; an `array.array`, so a buffer too


@dataclass(frozen=True, kw_only=True)
class EmbeddingUsage(Record):
    """Token counts of a request for embeddings."""

    prompt_tokens: int  # of all texts
    total_tokens: int  # the same: nothing is generated
    prompt_tokens_details: PromptTokensDetails | None = None  # where they came from


@dataclass(frozen=True, kw_only=True)
class EmbeddingList(Delivered):
    """The reply of `embeddings.create`; iterating gives its embeddings, one for each text, in order."""

    data: tuple[Embedding, ...]  # one for each text
    model: str  # that made them
    usage: EmbeddingUsage  # of all texts

    def __iter__(self) -> Iterator[Embedding]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)
