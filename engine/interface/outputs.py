"""Frozen records that cross the border of the engine."""

from dataclasses import dataclass
from enum import Enum

from engine.interface.cache_explanation import CacheExplanation
from engine.interface.sampling_params import SamplingParams
from engine.interface.speculation import SpeculationOutput, SpeculationParams


class FinishReason(str, Enum):
    """Why a request ended; the values are OpenAI's, `abort` and `error` are ours."""

    STOP = "stop"  # an end token or a stop token
    LENGTH = "length"  # max_tokens or max_model_len reached
    ABORT = "abort"  # the caller left
    ERROR = (
        "error"  # the model computed values that are not finite, or a step fails whenever it runs the request
    )
    TIMEOUT = "timeout"  # it waited longer than max_queue_seconds; no token was chosen
    TOOL_CALLS = "tool_calls"  # `stop`, of an answer that calls tools: the server's word, no engine says it


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One choice to generate.

    Equal prompts with the same seed and different `choice` numbers draw independent noise. Requests
    with different `cache_salt` never share a cached block. Tenants take turns by the tokens they are served;
    of one tenant's requests lower priorities start first. None of this changes a token.
    """

    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    choice: int = 0
    cache_salt: bytes = b""
    speculation: SpeculationParams = SpeculationParams()  # noqa: RUF009 - frozen
    tenant: bytes = b""
    weight: float = 1.0  # of the tenant: its share beside others while all want more than there is
    priority: int = 0
    max_queue_seconds: float | None = None  # until its first step; then it ends with finish reason `timeout`
    explain_cache: bool = False  # say with the first output how far the cache had the prompt, and why
    prediction: tuple[int, ...] = ()  # tokens that the answer may resemble, to draft from; never changes it


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural-log probability of a token that stands in the text, and of the likeliest in its place."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # (token id, logprob), likeliest first, as many as asked for
    all_logprobs: bytes | None = None  # of every token by id: float32 [vocab_size], little-endian


@dataclass(frozen=True, kw_only=True)
class RequestOutput:
    """What one step, or several that were delivered together, brought for one request.

    Exactly one output per request has a finish reason. Only steps without drafts, logprobs or an end are put
    together.
    """

    index: int  # place of the request in the list given to AsyncEngine.generate
    new_token_ids: tuple[int, ...]  # an end or stop token that ended the request is the last one
    logprobs: tuple[TokenLogprobs, ...] = ()  # one per new token, if asked for
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None  # once, on the first output, from the 2nd token
    embedding: bytes | None = None  # of a pooled prompt: float32 [hidden_size], little-endian, not normalised
    num_cached_tokens: int  # prompt tokens taken from the prefix cache when the request first ran
    cache_explanation: CacheExplanation | None = None  # on the first output, if asked for
    is_first: bool = False
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None  # the token that caused finish reason `stop`
    is_step_error: bool = False  # finish reason `error`, and it is the step that fails
    queue_seconds: float = 0.0  # from arrival to the first step that ran the request
    steps: tuple[int, ...] = ()  # number of the engine's step that brought each token
    speculation: SpeculationOutput | None = None  # with every draft that was verified, and at the end
