"""The engine alone, step by step on this thread: requests of random tokens, and how long their steps take."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from engine.core.engine import Engine
from engine.interface.outputs import GenerationRequest
from engine.interface.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0.0)


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Seconds of each step, up to the one that brought every request its first token, and behind that."""

    prefills: tuple[float, ...]
    decodes: tuple[float, ...]


def random_requests(
    vocab_size: int,
    *,
    count: int,
    num_prompt_tokens: int,
    num_tokens: int,
    seed: int,
    params: Sequence[SamplingParams] = (GREEDY,),
) -> list[GenerationRequest]:
    """Return requests with random prompts that end after `num_tokens`; they take turns with `params`."""
    rng = np.random.default_rng(seed)
    return [
        GenerationRequest(
            prompt_token_ids=tuple(rng.integers(0, vocab_size, num_prompt_tokens).tolist()),
            params=replace(params[i % len(params)], max_tokens=num_tokens, ignore_eos=True),
        )
        for i in range(count)
    ]


def run_requests(engine: Engine, generations: Sequence[GenerationRequest]) -> StepTimes:
    """Run requests to their end and return what their steps took."""
    added = [engine.add_request(generation) for generation in generations]
    prefills, decodes = list[float](), list[float]()
    while engine.has_work:
        is_decode = all(request.num_output_tokens for request in added)
        started = time.perf_counter()
        engine.step()
        (decodes if is_decode else prefills).append(time.perf_counter() - started)
    return StepTimes(prefills=tuple(prefills), decodes=tuple(decodes))
