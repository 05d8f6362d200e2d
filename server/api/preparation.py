"""From a checked body to what the engine runs: tokens, limits that need the model, parameters, seeds."""

import secrets
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property

from engine.errors import RequestError
from engine.outputs import GenerationRequest
from engine.sampling_params import SamplingParams
from server.api.fields import ChatMessage, Prompt
from server.api.schemas import ChatCompletionRequest, CompletionRequest, GenerationBody
from server.serving import ServedModel
from server.text import StopStringMatcher, TextError

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default of max_tokens for /v1/completions; chat has none."""

_SEED_BITS = 53  # JavaScript reads no larger integers exactly
_MAX_SHRINK = 3  # normalisation never shortens text to less than a third of its bytes


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How token ids become the text of an answer."""

    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    min_tokens: int = 0

    def new_matcher(self) -> StopStringMatcher | None:
        """Return a matcher for one choice, None without stop strings."""
        return copy(self._matcher)  # shares the automaton, which may have thousands of states

    @cached_property
    def _matcher(self) -> StopStringMatcher | None:
        return StopStringMatcher(self.stop, include_stop=self.include_stop) if self.stop else None


@dataclass(frozen=True, kw_only=True)
class PreparedPrompt:
    """One prompt, tokenised."""

    echo: str  # what a reply repeats of it
    token_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """A request ready for the engine; `requests` holds the n choices of each prompt, prompt by prompt."""

    requests: tuple[GenerationRequest, ...]
    prompts: tuple[PreparedPrompt, ...]
    n: int
    options: TextOptions


def prepare_completion(
    body: CompletionRequest, model: ServedModel, *, max_choices: int, salt: bytes
) -> Preparation:
    """Tokenise the prompts of a completion; raises RequestError."""
    _check_choices(len(body.prompt), body.n, max_choices)
    prompts = [_encode_prompt(prompt, model, body) for prompt in body.prompt]
    return _prepare(
        body, prompts, model, salt=salt, requested=body.max_tokens, default=DEFAULT_COMPLETION_TOKENS
    )


def prepare_chat(
    body: ChatCompletionRequest, model: ServedModel, *, max_choices: int, salt: bytes
) -> Preparation:
    """Render and tokenise a conversation; raises RequestError."""
    _check_choices(1, body.n, max_choices)
    requested = body.max_tokens
    if body.max_completion_tokens is not None:
        if requested not in (None, body.max_completion_tokens):
            raise RequestError(
                f"max_tokens ({requested}) and max_completion_tokens ({body.max_completion_tokens}) differ; "
                "give one of them",
                param="max_completion_tokens",
            )
        requested = body.max_completion_tokens
    text = render_chat(body.messages, model, add_generation_prompt=True)
    token_ids = encode_text(text, model, param="messages", add_bos=False)
    prompt = _seeded(token_ids, echo="")
    return _prepare(body, [prompt], model, salt=salt, requested=requested, default=None)


def render_chat(messages: Sequence[ChatMessage], model: ServedModel, *, add_generation_prompt: bool) -> str:
    """Return the text that the chat template makes of `messages`; raises RequestError."""
    if model.chat_template is None:
        raise RequestError(
            f"the model {model.name} has no chat template; use /v1/completions", param="messages"
        )
    rendered = [message.for_template(developer_role=model.developer_role) for message in messages]
    return model.chat_template.render(rendered, add_generation_prompt=add_generation_prompt)


def encode_text(text: str, model: ServedModel, *, param: str, add_bos: bool | None = None) -> tuple[int, ...]:
    """Return the token ids of `text`; raises RequestError if it is far too long to be worth encoding."""
    limit = model.engine.max_model_len
    num_bytes = len(text) if text.isascii() else len(text.encode())
    if num_bytes > limit * model.max_token_bytes * _MAX_SHRINK:
        raise RequestError(
            f"{param} has {num_bytes} bytes, more than {limit} tokens (max_model_len) can hold", param=param
        )
    try:
        return tuple(model.tokenizer.encode(text, add_bos=add_bos))
    except TextError as error:
        raise RequestError(str(error), param=param) from None


def check_token_ids(token_ids: Sequence[int], vocab_size: int, *, param: str) -> None:
    """Raise RequestError for the first id outside the vocabulary."""
    if min(token_ids, default=0) >= 0 and max(token_ids, default=0) < vocab_size:
        return
    wrong = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
    shown = str(wrong) if abs(wrong) < 10**20 else "a far larger number"
    raise RequestError(f"{param}: token ids must be between 0 and {vocab_size - 1}, got {shown}", param=param)


def _check_choices(num_prompts: int, n: int, limit: int) -> None:
    if n < 1:
        raise RequestError(f"n must be at least 1, got {n}", param="n")
    if num_prompts * n > limit:
        raise RequestError(
            f"number of prompts ({num_prompts}) times n ({n}) must be at most {limit}", param="n"
        )


def _encode_prompt(prompt: Prompt, model: ServedModel, body: CompletionRequest) -> PreparedPrompt:
    token_ids = prompt.token_ids
    if prompt.text is None:
        check_token_ids(token_ids, model.engine.vocab_size, param="prompt")
    else:
        token_ids = encode_text(prompt.text, model, param="prompt")
        if not token_ids:
            message = "prompt must not be empty, and the model has no token for any of it"
            raise RequestError(message, param="prompt")
    return _seeded(token_ids, echo=_echo(prompt, model, body) if body.echo else "")


def _echo(prompt: Prompt, model: ServedModel, body: CompletionRequest) -> str:
    if prompt.text is not None:
        return prompt.text  # the client's own words, not a round trip of them
    return model.tokenizer.decode(prompt.token_ids, skip_special_tokens=body.skip_special_tokens)


def _seeded(token_ids: tuple[int, ...], *, echo: str) -> PreparedPrompt:
    # Each prompt draws its own, so that a prompt given twice without a seed gets two answers.
    return PreparedPrompt(echo=echo, token_ids=token_ids, seed=secrets.randbits(_SEED_BITS))


def _prepare(
    body: GenerationBody,
    prompts: Sequence[PreparedPrompt],
    model: ServedModel,
    *,
    salt: bytes,
    requested: int | None,
    default: int | None,
) -> Preparation:
    """Make `n` requests of each prompt."""
    check_token_ids(tuple(body.stop_token_ids), model.engine.vocab_size, param="stop_token_ids")
    if body.seed is not None:
        prompts = [replace(prompt, seed=body.seed) for prompt in prompts]
    requests = []
    for prompt in prompts:
        max_tokens = _max_tokens(
            len(prompt.token_ids), model.engine.max_model_len, requested=requested, default=default
        )
        params = _sampling_params(body, model, max_tokens=max_tokens, seed=prompt.seed)
        requests += [
            GenerationRequest(
                prompt_token_ids=prompt.token_ids, params=params, choice=choice, cache_salt=salt
            )
            for choice in range(body.n)
        ]
    options = TextOptions(
        stop=body.stop,
        include_stop=body.include_stop_str_in_output,
        skip_special_tokens=body.skip_special_tokens,
        min_tokens=body.min_tokens,
    )
    options.new_matcher()  # builds the automaton here, where a large request has a thread
    return Preparation(requests=tuple(requests), prompts=tuple(prompts), n=body.n, options=options)


def _max_tokens(num_prompt_tokens: int, limit: int, *, requested: int | None, default: int | None) -> int:
    room = limit - num_prompt_tokens
    if requested is not None and requested < 1:
        raise RequestError(f"max_tokens must be at least 1, got {requested}", param="max_tokens")
    if room < max(1, requested or 1):
        wanted = "at least 1 more" if requested is None else f"{requested} more"
        raise RequestError(
            f"the prompt has {num_prompt_tokens} tokens and {wanted} were requested, "
            f"but max_model_len is {limit}",
            param="prompt" if room < 1 else "max_tokens",
        )
    return requested or min(room, default or room)


def _sampling_params(
    body: GenerationBody, model: ServedModel, *, max_tokens: int, seed: int
) -> SamplingParams:
    def default(name: str, otherwise: float) -> float:
        return model.generation_defaults.get(name, otherwise)

    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=body.min_tokens,
        temperature=default("temperature", 1.0) if body.temperature is None else body.temperature,
        top_k=int(default("top_k", 0)) if body.top_k is None else body.top_k,
        top_p=default("top_p", 1.0) if body.top_p is None else body.top_p,
        min_p=body.min_p,
        seed=seed,
        stop_token_ids=body.stop_token_ids,
        ignore_eos=body.ignore_eos,
    )
