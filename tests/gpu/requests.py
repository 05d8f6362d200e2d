"""Requests of every kind, and their answers through an engine."""

import importlib.util
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from engine.core.engine import Engine
from engine.interface.grammar_spec import GrammarKind, GrammarSpec
from engine.interface.outputs import FinishReason, GenerationRequest, TokenLogprobs
from engine.interface.speculation import SpeculationMode, SpeculationParams
from tests.tiny import generation

_SCHEMA = json.dumps(
    {"type": "object", "properties": {"n": {"type": "integer"}, "ok": {"type": "boolean"}}, "required": ["n"]}
)
_GRAMMAR_KINDS: list[dict[str, object]] = [
    {"temperature": 1.0, "grammar": GrammarSpec(kind=GrammarKind.JSON_SCHEMA, source=_SCHEMA)},
    {"temperature": 0.0, "grammar": GrammarSpec(kind=GrammarKind.CHOICE, source='["abcabc", "abcd"]')},
]
_KINDS: list[dict[str, object]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 20},
    {"temperature": 1.2, "top_p": 0.9},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.2, "repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.3},
    {"temperature": 0.7, "min_p": 0.05, "logit_bias": {7: 3.0, 9: -100.0}, "logprobs": 2},
    {"temperature": 1.0, "stop_token_ids": frozenset(range(0, 256, 16)), "logprobs": 0},
    {"temperature": 0.0, "stop_token_ids": frozenset(range(0, 256, 8)), "min_tokens": 5},
    {"temperature": 1.2, "top_k": 20, "typical_p": 0.8, "logprobs": 3, "processed_logprobs": True},
    {"temperature": 0.7, "banned_sequences": frozenset({(3,), (5, 6)}), "ignore_eos": True},
    {"temperature": 1.5, "allowed_token_ids": frozenset(range(40)), "prompt_logprobs": 1},
]
_PROMPT_LENGTHS = (1, 16, 17, 5, 140, 33, 15, 90, 48)


class Answer(NamedTuple):
    """All that a client would see of one request."""

    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    logprobs: tuple[TokenLogprobs, ...]
    prompt_logprobs: tuple[TokenLogprobs, ...] | None


def requests(count: int, *, vocab_size: int, max_tokens: int, seed: int = 5) -> list[GenerationRequest]:
    """Return prompts of many lengths, some sharing a prefix and some repeating themselves, of every kind."""
    rng = random.Random(seed)
    kinds = _KINDS + (_GRAMMAR_KINDS if importlib.util.find_spec("llguidance") else [])
    shared = [rng.randrange(vocab_size) for _ in range(70)]
    made = []
    for number in range(count):
        length = _PROMPT_LENGTHS[number % len(_PROMPT_LENGTHS)]
        own = [rng.randrange(vocab_size) for _ in range(length)]
        prompt = (shared if number % 3 == 0 else []) + own * (2 if number % 4 == 1 else 1)
        kind = kinds[number % len(kinds)]
        if number // len(kinds) % 2:  # logprobs tell of an error that turns no token
            kind = {"logprobs": 1, **kind}
        made.append(generation(prompt, seed=1000 * seed + number, max_tokens=max_tokens, **kind))
    return made


def speculating(request: GenerationRequest, mode: str, k: int | None = None) -> GenerationRequest:
    """Return the same request with drafts."""
    return replace(request, speculation=SpeculationParams(mode=SpeculationMode(mode), k=k))


def run(engine: Engine, generations: Sequence[GenerationRequest]) -> list[Answer]:
    """Return the answers of requests that are there together."""
    added = [engine.add_request(request) for request in generations]
    scores: dict[int, list[TokenLogprobs]] = {request.request_id: [] for request in added}
    while engine.has_work:
        for output in engine.step():
            scores[output.request.request_id] += output.logprobs
    engine.check_invariants()
    return [
        Answer(
            token_ids=tuple(request.token_ids[request.num_prompt_tokens :]),
            finish_reason=request.finish_reason,
            logprobs=tuple(scores[request.request_id]),
            prompt_logprobs=None if request.prompt_logprobs is None else tuple(request.prompt_logprobs),
        )
        for request in added
    ]


def differing(answers: Sequence[Answer], expected: Sequence[Answer]) -> list[int]:
    """Return the numbers of the requests whose answers are not the same to the bit."""
    return [number for number, pair in enumerate(zip(answers, expected, strict=True)) if pair[0] != pair[1]]


def first_difference(answer: Answer, expected: Answer) -> str:
    """Say where two answers part."""
    pairs = zip(answer.token_ids, expected.token_ids, strict=False)
    place = next((i for i, (one, other) in enumerate(pairs) if one != other), None)
    if place is not None:
        got, wanted = answer.token_ids[place], expected.token_ids[place]
        return f"token {place} is {got}, alone {wanted}"
    for name in ("token_ids", "finish_reason"):
        if getattr(answer, name) != getattr(expected, name):
            return f"{name}: {getattr(answer, name)}, alone {getattr(expected, name)}"
    for name in ("logprobs", "prompt_logprobs"):
        scores = zip(getattr(answer, name) or (), getattr(expected, name) or (), strict=False)
        for number, (one, other) in enumerate(scores):
            if one != other:
                return f"{name} {number}: {_score(one, other)}"
    return "the number of logprobs"


def _score(one: TokenLogprobs, other: TokenLogprobs) -> str:
    """Say how two scores differ; a tie is an order that nobody promised among equal numbers."""
    is_tie = one.logprob == other.logprob and [value for _, value in one.top] == [
        value for _, value in other.top
    ]
    return f"{'a tie, ' if is_tie else ''}{one.logprob} {one.top}, alone {other.logprob} {other.top}"
