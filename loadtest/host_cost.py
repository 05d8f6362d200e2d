"""What a step costs on the host: scheduling, bookkeeping and delivery, with an executor that answers at once.

    python -m loadtest.host_cost [--rounds 7]

Microseconds a step and, of it, a request and step, for greedy requests that decode together: the engine
alone, and with a stream for each on an event loop beside it; each with an executor that is given every step
in full, and with one that continues. Medians over rounds, the cases interleaved; and the median step of the
engine alone, since one step in 16 has more to do for each request. Then one JSON line.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import time
from collections.abc import Sequence

from engine.bridge.async_engine import AsyncEngine
from engine.bridge.engine_thread import EngineThread
from engine.core.engine import Engine
from engine.core.executor import DraftJob, DraftOutput, FinishedStep
from engine.interface.batch import Batch, Continuation, SamplerOutput
from engine.interface.outputs import GenerationRequest
from engine.interface.sampling_params import SamplingParams
from engine.kv_cache.block_pool import BlockPool
from engine.kv_cache.kv_cache_manager import KVCacheManager
from loadtest.environment import environment

BATCHES = (1, 16, 64, 256)
_BLOCK_SIZE = 16
_STREAM_INTERVAL = 0.01  # the server's default


class InstantExecutor:
    """Chooses the same token for every row, in no time."""

    steps_ahead = 0
    max_draft_positions = 0

    def __init__(self, *, continues: bool) -> None:
        self.continues = continues

    def launch(self, batch: Batch | Continuation) -> FinishedStep:
        """Answer."""
        if isinstance(batch, Continuation):
            return FinishedStep(SamplerOutput((7,) * batch.num_rows, ()))
        num_rows = sum([len(chunk.rows) for chunk in batch.chunks])
        return FinishedStep(SamplerOutput((7,) * num_rows, (None,) * num_rows))

    def draft(self, jobs: Sequence[DraftJob]) -> DraftOutput:
        """Draft nothing."""
        return DraftOutput(((),) * len(jobs))


def build_engine(num_requests: int, num_steps: int, *, continues: bool) -> Engine:
    """Return an engine with room for all of the requests."""
    num_blocks = num_requests * (num_steps + 64) // _BLOCK_SIZE + num_requests
    return Engine(
        InstantExecutor(continues=continues),
        KVCacheManager(BlockPool(num_blocks), block_size=_BLOCK_SIZE, enable_prefix_caching=True),
        max_model_len=num_steps + 64,
        max_num_seqs=num_requests,
        max_num_batched_tokens=64 * num_requests,
        vocab_size=50_000,
        eos_token_ids=frozenset({2}),
    )


def requests(count: int, num_steps: int) -> list[GenerationRequest]:
    """Return greedy requests with different prompts of 32 tokens."""
    params = SamplingParams(temperature=0.0, max_tokens=num_steps)
    return [GenerationRequest(prompt_token_ids=(9 + i, *range(31)), params=params) for i in range(count)]


def steps_alone(num_requests: int, num_steps: int, *, continues: bool) -> list[float]:
    """Return the seconds of decode steps of the engine alone."""
    engine = build_engine(num_requests, num_steps + 8, continues=continues)
    for generation in requests(num_requests, num_steps + 8):
        engine.add_request(generation)
    while engine.scheduler.waiting:
        engine.step()
    times = [time.perf_counter()]
    for _ in range(num_steps):
        engine.step()
        times.append(time.perf_counter())
    return [end - begin for begin, end in itertools.pairwise(times)]


def step_with_streams(num_requests: int, num_steps: int, *, continues: bool) -> float:
    """Return the seconds of a step whose outputs are read on an event loop, a stream for each request."""

    async def read(bridge: AsyncEngine, generation: GenerationRequest) -> int:
        stream, count = bridge.generate([generation]), 0
        async for output in stream:
            count += sum(len(one.new_token_ids) for one in (output, *stream.get_ready()))
        return count

    async def main() -> float:
        engine = build_engine(num_requests, num_steps, continues=continues)
        bridge = AsyncEngine(EngineThread(engine, stream_interval=_STREAM_INTERVAL), max_queue=num_requests)
        started = time.perf_counter()
        counts = await asyncio.gather(*(read(bridge, one) for one in requests(num_requests, num_steps)))
        seconds = time.perf_counter() - started
        await asyncio.to_thread(bridge.close)
        assert counts == [num_steps] * num_requests
        return seconds / engine.num_steps

    return asyncio.run(main())


def measure(rounds: int) -> dict[str, float]:
    """Return the median microseconds of each case."""
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for count in BATCHES:
            num_steps = max(200, 2000 // count)
            for suffix, continues in (("", False), ("_continued", True)):
                steps = steps_alone(count, num_steps, continues=continues)
                streams = step_with_streams(count, num_steps, continues=continues)
                for name, value in (
                    ("alone", statistics.fmean(steps)),
                    ("alone_p50", statistics.median(steps)),
                    ("streams", streams),
                ):
                    seconds.setdefault(f"{name}{suffix}_{count}", []).append(value)
    return {name: 1e6 * statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    medians = measure(arguments.rounds)
    print("requests  steps      us a step, engine alone (a request)      p50   with streams (a request)")
    for count, (kind, suffix) in itertools.product(BATCHES, (("in full", ""), ("continued", "_continued"))):
        alone, p50, streams = [
            medians[f"{name}{suffix}_{count}"] for name in ("alone", "alone_p50", "streams")
        ]
        print(
            f"{count:8}  {kind:9} {alone:15.1f} ({alone / count:6.2f}) {p50:19.1f}"
            f" {streams:14.1f} ({streams / count:6.2f})"
        )
    rounded = {f"{name}_us": round(value, 1) for name, value in medians.items()}
    print(json.dumps({"benchmark": "host_cost"} | environment() | rounded))


if __name__ == "__main__":
    main()
