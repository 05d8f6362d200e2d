"""From a checked body to what the engine runs: tokens, limits that need the model, parameters, seeds."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property

from engine.interface.errors import RequestError
from engine.interface.outputs import GenerationRequest
from engine.interface.sampling_params import SamplingParams
from server.api.answer_plan import AnswerPlan, plan_answer
from server.api.chat_prompt import prepare_chat_prompt
from server.api.errors import describe
from server.api.grammars import RequestedGrammar
from server.api.known_fields import FieldWarning
from server.api.logprobs import LogprobOptions, check_num_logprobs
from server.api.prompts import (
    PreparedPrompt,
    check_token_ids,
    draw_seed,
    encode_text,
    prepare_prompt,
)
from server.api.sampling import sampling_params
from server.api.schemas import ChatCompletionRequest, CompletionRequest, GenerationBody
from server.api.token_budget import (
    DEFAULT_COMPLETION_TOKENS,
    TokenBudget,
    max_scored_tokens,
    requested_max_tokens,
)
from server.serving import ServedModel
from server.text import StopStringMatcher


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How token ids become the text of an answer."""

    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    min_tokens: int = 0
    with_provenance: bool = False
    answer: AnswerPlan | None = None  # None: all of it is content

    def new_matcher(self) -> StopStringMatcher | None:
        """Return a matcher for one choice, None without stop strings."""
        return copy(self._matcher)  # shares the automaton, which may have thousands of states

    @cached_property
    def _matcher(self) -> StopStringMatcher | None:
        return StopStringMatcher(self.stop, include_stop=self.include_stop) if self.stop else None


@dataclass(frozen=True, kw_only=True)
class PreparedRequest:
    """A request ready for the engine; `requests` holds the n choices of each prompt, prompt by prompt."""

    requests: tuple[GenerationRequest, ...]
    prompts: tuple[PreparedPrompt, ...]
    n: int  # choices generated for each prompt
    num_returned: int  # of them, the best
    options: TextOptions
    logprobs: LogprobOptions
    grammar: RequestedGrammar | None
    warnings: tuple[FieldWarning, ...] = ()  # that only the model knows


def prepare_completion(
    body: CompletionRequest, model: ServedModel, *, max_choices: int, salt: bytes
) -> PreparedRequest:
    """Tokenise the prompts of a completion; raises RequestError."""
    num_prompts = len(body.prompt)
    _check_choices(num_prompts, body.n, max_choices, "n")
    if body.best_of is not None:
        _check_best_of(body, body.best_of)
        _check_choices(num_prompts, body.best_of, max_choices, "best_of")
    check_num_logprobs("logprobs", body.logprobs)
    logprobs = LogprobOptions(
        answer=body.logprobs, echo=body.logprobs if body.echo else None, prompt=body.prompt_logprobs
    )
    return _prepare(
        body,
        [prepare_prompt(prompt, model, body) for prompt in body.prompt],
        model,
        n=body.n if body.best_of is None else body.best_of,
        logprobs=logprobs,
        salt=salt,
        default=DEFAULT_COMPLETION_TOKENS,
        echo=body.echo,
    )


def prepare_chat(
    body: ChatCompletionRequest, model: ServedModel, *, max_choices: int, salt: bytes
) -> PreparedRequest:
    """Render and tokenise a conversation; raises RequestError."""
    _check_choices(1, body.n, max_choices, "n")
    check_num_logprobs("top_logprobs", body.top_logprobs)
    if body.top_logprobs and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    prompt = prepare_chat_prompt(body, model)
    prepared = _prepare(
        body,
        [PreparedPrompt(token_ids=prompt.token_ids, seed=draw_seed(body.seed))],
        model,
        n=body.n,
        logprobs=LogprobOptions(answer=body.num_logprobs, prompt=body.prompt_logprobs),
        salt=salt,
        default=None,
        echo=False,
        answer=plan_answer(body, prompt.tools, prompt.text, model),
    )
    return replace(
        prepared, warnings=prompt.warnings, requests=_with_prediction(prepared.requests, body, model)
    )


def _with_prediction(
    requests: Sequence[GenerationRequest], body: ChatCompletionRequest, model: ServedModel
) -> tuple[GenerationRequest, ...]:
    if not body.prediction:
        return tuple(requests)
    token_ids = encode_text(body.prediction, model, param="prediction", add_bos=False)
    return tuple(replace(request, prediction=token_ids) for request in requests)


def _check_choices(num_prompts: int, num_choices: int, limit: int, name: str) -> None:
    if num_choices < 1:
        raise RequestError(f"{name} must be at least 1, got {describe(num_choices)}", param=name)
    if num_prompts * num_choices > limit:
        raise RequestError(
            f"number of prompts ({num_prompts}) times {name} ({describe(num_choices)}) "
            f"must be at most {limit}",
            param=name,
        )


def _check_best_of(body: CompletionRequest, best_of: int) -> None:
    if best_of < body.n:
        raise RequestError(f"best_of ({describe(best_of)}) must be at least n ({body.n})", param="best_of")
    if best_of > body.n and body.stream:
        raise RequestError("best_of chooses at the end, a stream does not wait: give n", param="best_of")


def _prepare(
    body: GenerationBody,
    prompts: Sequence[PreparedPrompt],
    model: ServedModel,
    *,
    n: int,
    logprobs: LogprobOptions,
    salt: bytes,
    default: int | None,
    echo: bool,
    answer: AnswerPlan | None = None,
) -> PreparedRequest:
    """Make `n` requests of each prompt."""
    for name in ("stop_token_ids", "logit_bias", "allowed_token_ids"):
        check_token_ids(tuple(getattr(body, name) or ()), model.engine.limits.vocab_size, param=name)
    check_num_logprobs("prompt_logprobs", body.prompt_logprobs)
    budget = TokenBudget(
        requested=requested_max_tokens(body, may_be_zero=echo or body.prompt_logprobs is not None),
        default=default,
        max_model_len=model.engine.limits.max_model_len,
        prompt_field="prompt" if isinstance(body, CompletionRequest) else "messages",
        max_scored=max_scored_tokens(body, logprobs, [len(prompt.token_ids) for prompt in prompts], n),
    )
    grammar = _grammar(body, answer)
    num_top = 0 if logprobs.answer is None and n > body.n else logprobs.answer  # 0: to rank them by
    shared = sampling_params(body, model, logprobs=num_top, grammar=None if grammar is None else grammar.spec)
    requests, score = list[GenerationRequest](), logprobs.engine_prompt_logprobs
    for prompt in prompts:
        max_tokens = budget.max_tokens(len(prompt.token_ids))
        params = replace(
            shared,
            max_tokens=max_tokens,
            min_tokens=body.min_tokens,
            seed=prompt.seed,
            prompt_logprobs=score or 0 if max_tokens == 0 else score,  # the engine must have something to do
        )
        requests += _choices(prompt, params, n, salt, body)
    return PreparedRequest(
        requests=tuple(requests),
        prompts=tuple(prompts),
        n=n,
        num_returned=body.n,
        options=_text_options(body, answer),
        logprobs=logprobs,
        grammar=grammar,
        warnings=_warnings(prompts),
    )


def _warnings(prompts: Sequence[PreparedPrompt]) -> tuple[FieldWarning, ...]:
    """Return the warnings about prompts, each once."""
    return tuple(dict.fromkeys(warning for prompt in prompts for warning in prompt.warnings))


def _choices(
    prompt: PreparedPrompt, params: SamplingParams, n: int, salt: bytes, body: GenerationBody
) -> list[GenerationRequest]:
    """Return the requests of one prompt; the first alone scores it and explains its cache."""
    others = replace(params, prompt_logprobs=None) if params.max_tokens else params
    return [
        GenerationRequest(
            prompt_token_ids=prompt.token_ids,
            params=others if choice else params,
            choice=choice,
            cache_salt=salt,
            speculation=body.speculation.params,
            explain_cache=body.cache_explain and choice == 0,
        )
        for choice in range(n)
    ]


def _grammar(body: GenerationBody, answer: AnswerPlan | None) -> RequestedGrammar | None:
    """Return the grammar of the tools, or that one of two fields asks for; raises RequestError if both do."""
    if answer is not None and answer.tag is not None:
        field = "response_format" if answer.tools is None else "tools"
        return RequestedGrammar(field=field, spec=answer.tag.spec())
    grammars = [
        RequestedGrammar(field=name, spec=structure.grammar)
        for name, structure in (
            ("response_format", body.response_format),
            ("structured_outputs", body.structured_outputs),
        )
        if structure is not None and structure.grammar is not None
    ]
    if len(grammars) > 1:
        message = "response_format and structured_outputs exclude each other"
        raise RequestError(message, param="structured_outputs")
    return grammars[0] if grammars else None


def _text_options(body: GenerationBody, answer: AnswerPlan | None) -> TextOptions:
    options = TextOptions(
        stop=body.stop,
        include_stop=body.include_stop_str_in_output,
        skip_special_tokens=body.skip_special_tokens,
        min_tokens=body.min_tokens,
        with_provenance=body.return_provenance,
        answer=answer,
    )
    options.new_matcher()  # builds the automaton here, where a large request has a thread
    return options
