"""Speculation's speed: what verifying costs, and what drafts of known acceptance gain."""

import random
from collections.abc import Sequence

from engine.core.engine import Engine
from engine.core.request import Request
from engine.interface.outputs import GenerationRequest
from engine.loading.offline import random_requests
from tests.drafters import scripted_speculator
from tests.gpu.measure import Decode, decode
from tests.gpu.report import Report
from tests.gpu.requests import run, speculating
from tests.gpu.setting import Setting

_LENGTH = 4  # tokens of a draft
_ACCEPTANCES = (0.6, 0.8, 0.95)


def scripted_speed(setting: Setting, report: Report, engine: Engine, batches: Sequence[int]) -> None:
    """Measure with a drafter that knows the answers and is right as often as it is told to be."""
    answer, seconds = setting.number(16, 128, 192), setting.number(1, 2, 3)
    for batch in batches:
        generations = random_requests(
            engine.limits.vocab_size, count=batch, num_prompt_tokens=64, num_tokens=answer, seed=batch
        )
        answers = [one.token_ids for one in run(engine, generations)]
        plain = decode(engine, generations, seconds=seconds)
        _with_drafts(engine, generations, answers, 1.0, seconds)  # what is captured at its second use
        for acceptance in (1.0, *_ACCEPTANCES):
            drafted = _with_drafts(engine, generations, answers, acceptance, seconds)
            _report(report, batch, acceptance, plain, drafted)


def _with_drafts(
    engine: Engine,
    generations: Sequence[GenerationRequest],
    answers: Sequence[Sequence[int]],
    acceptance: float,
    seconds: float,
) -> Decode:
    before = engine.speculator
    first, rng = _next_request_id(engine), random.Random(1)

    def guess(request: Request, limit: int) -> list[int]:
        done = request.num_output_tokens
        right = answers[request.request_id - first][done : done + limit]
        return [token if rng.random() < acceptance else token ^ 1 for token in right]

    engine.speculator = scripted_speculator(guess)
    try:
        asked = [speculating(generation, "ngram", _LENGTH) for generation in generations]
        return decode(engine, asked, seconds=seconds)
    finally:
        engine.speculator = before


def _next_request_id(engine: Engine) -> int:
    return engine._next_request_id


def _report(report: Report, batch: int, acceptance: float, plain: Decode, drafted: Decode) -> None:
    """With drafts that are always right a step verifies five tokens: its price over a plain step's."""
    if acceptance == 1.0:
        name = f"verify 1+{_LENGTH} over one token, batch {batch}"
        detail = f"{drafted.step_ms:.2f} and {plain.step_ms:.2f} ms"
        report.figure(name, drafted.step_ms / plain.step_ms, "times", detail=detail)
        return
    expected = sum(acceptance**place for place in range(_LENGTH + 1))
    report.figure(
        f"speculation on over off, {acceptance:.2f}, batch {batch}",
        drafted.tokens_per_second / plain.tokens_per_second,
        "times",
        detail=f"{drafted.tokens_per_second:.0f} tok/s; {expected:.2f} if drafts were free",
    )


def draft_model_speed(setting: Setting, report: Report, engine: Engine) -> None:
    """Measure a step whose draft model drafts, and say what it would gain at acceptances of a trained pair.

    Random models hardly ever agree, so the step's time is measured and its tokens are computed.
    """
    generations = random_requests(
        engine.limits.vocab_size, count=1, num_prompt_tokens=64, num_tokens=setting.number(12, 64, 96), seed=3
    )
    seconds = setting.number(1, 2, 3)
    plain = decode(engine, generations, seconds=seconds)
    asked = [speculating(one, "draft", _LENGTH) for one in generations]
    _, drafted = (decode(engine, asked, seconds=seconds) for _ in range(2))
    price = drafted.step_ms / plain.step_ms
    detail = f"{drafted.step_ms:.2f} and {plain.step_ms:.2f} ms"
    report.figure(f"draft {_LENGTH} and verify, over one token", price, "times", detail=detail)
    for acceptance in _ACCEPTANCES:
        tokens = sum(acceptance**place for place in range(_LENGTH + 1))
        report.figure(f"draft model on over off at {acceptance:.2f} (computed)", tokens / price, "times")
