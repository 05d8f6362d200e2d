"""What the server's replies hold: frozen records, named as the fields of the OpenAI API.

Fields that this library does not know are kept in `extra`, so a newer server loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True, kw_only=True)
class _Record:
    """A reply object; `extra` holds its unknown fields."""

    extra: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class PromptTokensDetails(_Record):
    """Where the prompt's tokens came from."""

    cached_tokens: int | None = None  # taken from the prefix cache


@dataclass(frozen=True, kw_only=True)
class CompletionTokensDetails(_Record):
    """What the generated tokens were."""

    reasoning_tokens: int | None = None
    accepted_prediction_tokens: int | None = None
    rejected_prediction_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class SpeculationUsage(_Record):
    """What speculation did for one request, all of its choices together."""

    drafted: int  # tokens
    accepted: int  # of them
    verification_steps: int
    mean_accepted_length: float | None = None  # tokens that a verification brought, its own one included
    source: str | None = None  # draft, ngram or draft+ngram; None without drafts
    estimated_speedup: float | None = None  # against no speculation, by the costs the server measured


@dataclass(frozen=True, kw_only=True)
class DraftlineUsage(_Record):
    """What only this server counts."""

    speculation: SpeculationUsage | None = None


@dataclass(frozen=True, kw_only=True)
class TokenProvenance(_Record):
    """Where one token of an answer came from."""

    source: str  # draft, ngram, bonus or target
    step: int  # of the server's engine


@dataclass(frozen=True, kw_only=True)
class Usage(_Record):
    """Token counts of one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None
    draftline: DraftlineUsage | None = None


@dataclass(frozen=True, kw_only=True)
class ReplyWarning(_Record):
    """A field that the server understood differently than asked, or not at all."""

    message: str
    param: str | None = None
    type: str | None = None


@dataclass(frozen=True, kw_only=True)
class CompletionLogprobs(_Record):
    r"""Log probabilities of a completion's tokens; the four tuples run in parallel.

    A token that is no whole characters is its bytes, as in `bytes:\xe2\x80`.
    """

    tokens: tuple[str, ...]
    token_logprobs: tuple[float | None, ...]  # None for the first token of an echoed prompt
    top_logprobs: tuple[Mapping[str, float] | None, ...] | None = field(default=None, hash=False)
    text_offset: tuple[int, ...] | None = None  # of the character of `text` in which each token begins


@dataclass(frozen=True, kw_only=True)
class PromptLogprob(_Record):
    """What the model said of one token at one place of the prompt."""

    logprob: float
    decoded_token: str


PromptLogprobs: TypeAlias = tuple[Mapping[int, PromptLogprob] | None, ...]
"""For each token of a prompt, by token id: itself and the likeliest in its place; None for the first."""


@dataclass(frozen=True, kw_only=True)
class CompletionChoice(_Record):
    """One continuation of one prompt; in a stream, the next piece of it."""

    index: int
    text: str
    finish_reason: str | None = None
    logprobs: CompletionLogprobs | None = None
    seed: int | None = None  # gives this choice again; in a stream, of the chunk with the finish reason
    token_ids: tuple[int, ...] | None = None  # with return_token_ids
    provenance: tuple[TokenProvenance, ...] = ()  # of token_ids, with return_provenance
    prompt_token_ids: tuple[int, ...] | None = None  # with return_token_ids
    prompt_logprobs: PromptLogprobs | None = field(default=None, hash=False)  # in a stream, of one chunk


@dataclass(frozen=True, kw_only=True)
class _Reply(_Record):
    """What every generation's reply and chunk begins with."""

    id: str
    created: int  # seconds since 1970
    model: str
    system_fingerprint: str | None = None
    warnings: tuple[ReplyWarning, ...] = ()
    request_id: str | None = field(default=None, compare=False)  # the X-Request-Id header


@dataclass(frozen=True, kw_only=True)
class Completion(_Reply):
    """The reply of `completions.create`; `index` counts prompts first, then choices."""

    choices: tuple[CompletionChoice, ...]
    usage: Usage


@dataclass(frozen=True, kw_only=True)
class CompletionChunk(_Reply):
    """One event of a streamed completion; the usage chunk has no choices."""

    choices: tuple[CompletionChoice, ...]
    usage: Usage | None = None


@dataclass(frozen=True, kw_only=True)
class TopLogprob(_Record):
    """One alternative at a position."""

    token: str
    logprob: float
    bytes: tuple[int, ...] | None = None  # exactly, also where they are no whole characters


@dataclass(frozen=True, kw_only=True)
class TokenLogprob(TopLogprob):
    """The chosen token of a position with its alternatives."""

    top_logprobs: tuple[TopLogprob, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ChatLogprobs(_Record):
    """Log probabilities of an answer's tokens."""

    content: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FunctionCall(_Record):
    """A function that the model calls."""

    name: str
    arguments: str  # JSON text of an object


@dataclass(frozen=True, kw_only=True)
class ToolCall(_Record):
    """A call; its result goes back in a message of the role tool with its id."""

    id: str
    function: FunctionCall


@dataclass(frozen=True, kw_only=True)
class FunctionCallDelta(_Record):
    """What a chunk adds to a function's call."""

    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, kw_only=True)
class ToolCallDelta(_Record):
    """What a chunk adds to a call; the first has the id and the name."""

    index: int
    id: str | None = None
    function: FunctionCallDelta


@dataclass(frozen=True, kw_only=True)
class ChatMessage(_Record):
    """A message of a conversation; may be passed back in `messages` as it is."""

    role: str
    content: str | None = None
    reasoning_content: str | None = None  # what the model thought before it answered
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ChatChoice(_Record):
    """One answer."""

    index: int
    message: ChatMessage
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None
    seed: int | None = None  # gives this answer again
    token_ids: tuple[int, ...] | None = None  # with return_token_ids
    provenance: tuple[TokenProvenance, ...] = ()  # of token_ids, with return_provenance


@dataclass(frozen=True, kw_only=True)
class ChatCompletion(_Reply):
    """The reply of `chat.create`."""

    choices: tuple[ChatChoice, ...]
    usage: Usage
    prompt_token_ids: tuple[int, ...] | None = None  # with return_token_ids
    prompt_logprobs: PromptLogprobs | None = field(default=None, hash=False)


@dataclass(frozen=True, kw_only=True)
class Delta(_Record):
    """What a chunk adds to a message."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: tuple[ToolCallDelta, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ChatChunkChoice(_Record):
    """The next piece of one answer."""

    index: int
    delta: Delta
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None
    seed: int | None = None  # gives this answer again
    token_ids: tuple[int, ...] | None = None  # with return_token_ids
    provenance: tuple[TokenProvenance, ...] = ()  # of token_ids, with return_provenance


@dataclass(frozen=True, kw_only=True)
class ChatCompletionChunk(_Reply):
    """One event of a streamed answer; the usage chunk has no choices."""

    choices: tuple[ChatChunkChoice, ...]
    usage: Usage | None = None
    prompt_token_ids: tuple[int, ...] | None = None  # with return_token_ids
    prompt_logprobs: PromptLogprobs | None = field(default=None, hash=False)


@dataclass(frozen=True, kw_only=True)
class Model(_Record):
    """A model that the server serves."""

    id: str
    created: int  # seconds since 1970
    owned_by: str
    max_model_len: int | None = None  # tokens of prompt and output together


@dataclass(frozen=True, kw_only=True)
class ModelList(_Record):
    """The models that the server serves."""

    data: tuple[Model, ...]

    def __iter__(self) -> Iterator[Model]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)


@dataclass(frozen=True, kw_only=True)
class Tokenization(_Record):
    """A text or a conversation as the model sees it."""

    token_ids: tuple[int, ...]
    count: int
    max_model_len: int
    token_strs: tuple[str, ...] | None = None  # with return_token_strs
