"""Completions, whole and in chunks, and log probabilities of a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from draftline_client.types._record import Record, Reply
from draftline_client.types.provenance import TokenProvenance
from draftline_client.types.usage import Usage


@dataclass(frozen=True, kw_only=True)
class CompletionLogprobs(Record):
    r"""Log probabilities of a completion's tokens; the four tuples run in parallel.

    A token that is no whole characters is its bytes, as in `bytes:\xe2\x80`.
    """

    tokens: tuple[str, ...]  # as text
    token_logprobs: tuple[float | None, ...]  # None for the first token of an echoed prompt
    top_logprobs: tuple[Mapping[str, float] | None, ...] | None = field(
        default=None, hash=False
    )  # by the token's text
    text_offset: tuple[int, ...] | None = None  # of the character of `text` in which each token begins


@dataclass(frozen=True, kw_only=True)
class PromptLogprob(Record):
    """What the model said of one token at one place of the prompt."""

    logprob: float  # natural logarithm
    decoded_token: str  # the token as text


PromptLogprobs: TypeAlias = tuple[Mapping[int, PromptLogprob] | None, ...]
"""For each token of a prompt, by token id: itself and the likeliest in its place; None for the first."""


@dataclass(frozen=True, kw_only=True)
class CompletionChoice(Record):
    """One continuation of one prompt; in a stream, the next piece of it."""

    index: int  # prompts first, then choices
    text: str  # that the model wrote; with echo, behind the prompt
    finish_reason: str | None = None  # stop or length
    logprobs: CompletionLogprobs | None = None  # with logprobs
    seed: int | None = None  # gives this choice again; in a stream, of the chunk with the finish reason
    token_ids: tuple[int, ...] | None = None  # with return_token_ids
    provenance: tuple[TokenProvenance, ...] = ()  # of token_ids, with return_provenance
    prompt_token_ids: tuple[int, ...] | None = None  # with return_token_ids
    prompt_logprobs: PromptLogprobs | None = field(default=None, hash=False)  # in a stream, of one chunk


@dataclass(frozen=True, kw_only=True)
class Completion(Reply):
    """The reply of `completions.create`."""

    choices: tuple[CompletionChoice, ...]  # n for each prompt
    usage: Usage  # of all choices

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.choices[0].text

    @property
    def seed(self) -> int | None:
        """The seed that was used, given or drawn: with it, the same request has the same choices.

        Each prompt of a request without a seed draws its own: `choices[i].seed`.
        """
        return self.choices[0].seed


@dataclass(frozen=True, kw_only=True)
class CompletionChunk(Reply):
    """One event of a streamed completion; the usage chunk has no choices."""

    choices: tuple[CompletionChoice, ...]  # what this chunk adds to them
    usage: Usage | None = None  # of the last chunk, with stream_options include_usage
