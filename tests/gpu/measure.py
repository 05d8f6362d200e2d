"""Rates of an engine that is driven step by step: decode, prompts, a mixed load."""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from engine.core.engine import Engine
from engine.core.request import Request
from engine.interface.outputs import FinishReason, GenerationRequest
from engine.interface.sampling_params import SamplingParams
from engine.loading.offline import random_requests


class Decode(NamedTuple):
    """How fast requests got tokens while all of them decoded."""

    tokens_per_second: float
    steps_per_second: float
    context: float  # positions of a request, on average

    @property
    def step_ms(self) -> float:
        """Milliseconds from one step to the next."""
        return 1e3 / self.steps_per_second


def drain(engine: Engine, requests: Sequence[Request]) -> None:
    """End requests that still run, and the steps under way."""
    for request in requests:
        engine.abort(request)
    while engine.has_work:
        engine.step()


def decode(engine: Engine, generations: Sequence[GenerationRequest], *, seconds: float) -> Decode:
    """Measure from the moment when every request has a token until the first one ends, or for `seconds`."""
    requests = [engine.add_request(generation) for generation in generations]
    while any(request.num_output_tokens == 0 for request in requests):
        engine.step()
    tokens, steps = sum(r.num_output_tokens for r in requests), engine.num_steps
    context = requests[0].num_tokens
    started = now = time.perf_counter()
    while now < started + seconds and not any(r.finish_reason for r in requests) and engine.has_work:
        engine.step()
        now = time.perf_counter()
    elapsed = now - started
    new_tokens = sum(r.num_output_tokens for r in requests) - tokens
    result = Decode(
        tokens_per_second=new_tokens / elapsed,
        steps_per_second=max(1, engine.num_steps - steps) / elapsed,
        context=(context + requests[0].num_tokens) / 2,
    )
    failed = any(request.finish_reason is FinishReason.ERROR for request in requests)
    drain(engine, requests)
    if failed or not new_tokens:
        raise RuntimeError(f"of {len(requests)} requests some ended with an error, or none got a token")
    return result


def median_decode(
    engine: Engine, *, batch: int, prompt: int, answer: int, repeats: int, seconds: float
) -> Decode:
    """Return the run with the median rate, after one that warms up."""
    runs = []
    for number in range(repeats + 1):
        generations = random_requests(
            engine.limits.vocab_size,
            count=batch,
            num_prompt_tokens=prompt,
            num_tokens=answer if number else min(answer, 16),
            seed=1000 * batch + number,
        )
        runs.append(decode(engine, generations, seconds=seconds))
    return statistics.median_low(runs[1:])


def prefill_seconds(engine: Engine, *, count: int, length: int, repeats: int) -> float:
    """Return the median time from `count` new prompts of `length` tokens to the first token of the last."""
    seconds = []
    for number in range(repeats + 1):
        generations = random_requests(
            engine.limits.vocab_size,
            count=count,
            num_prompt_tokens=length,
            num_tokens=1,
            seed=10_000 * length + number,
        )
        requests = [engine.add_request(generation) for generation in generations]
        started = time.perf_counter()
        while engine.has_work:
            engine.step()
        seconds.append(time.perf_counter() - started)
        assert all(request.num_output_tokens == 1 for request in requests)
    return statistics.median(seconds[1:])


def mixed_load(vocab_size: int, *, count: int, low: int, high: int) -> list[GenerationRequest]:
    """Return nano-vllm's benchmark: prompts and answers of `low` to `high` tokens, temperature 0.6."""
    rng = random.Random(0)
    top = min(10_000, vocab_size - 1)
    prompts = [[rng.randint(0, top) for _ in range(rng.randint(low, high))] for _ in range(count)]
    return [
        GenerationRequest(
            prompt_token_ids=tuple(prompt),
            params=SamplingParams(
                temperature=0.6, ignore_eos=True, max_tokens=rng.randint(low, high), seed=number
            ),
        )
        for number, prompt in enumerate(prompts)
    ]


def run_load(engine: Engine, generations: Sequence[GenerationRequest], is_late: Callable[[], bool]) -> float:
    """Run requests together, and return the answers' tokens a second; stops when it is late."""
    requests = [engine.add_request(generation) for generation in generations]
    started = time.perf_counter()
    while engine.has_work and not is_late():
        engine.step()
    elapsed = time.perf_counter() - started
    tokens = sum(request.num_output_tokens for request in requests)
    drain(engine, requests)
    return tokens / elapsed
