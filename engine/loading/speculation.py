"""Speculation at start-up: whether a draft model fits the target, its memory, and the prices of steps."""

import math
import time
from collections.abc import Callable, Sequence

from engine.checkpoint.checkpoint import Checkpoint
from engine.core.executor import DraftJob, Executor
from engine.core.request import Request
from engine.core.rows import RowCursor
from engine.interface.batch import Batch, ScheduledChunk
from engine.interface.config import EngineConfig
from engine.interface.errors import ConfigError
from engine.interface.info import EngineInfo
from engine.interface.sampled_row import SampledRow
from engine.interface.sampling_params import SamplingParams
from engine.interface.speculation import SpeculationMode
from engine.speculative.draft_cache import DraftCache
from engine.speculative.ngram import NgramDrafter
from engine.speculative.ngram_pool import NgramPool
from engine.speculative.speculator import Speculator
from engine.speculative.step_costs import SIZES, StepCosts

MAX_MEASURED_SIZE = 16  # rows, or requests
_MEASURED_SIZES = tuple(size for size in SIZES if size <= MAX_MEASURED_SIZE)
_MEASURED_STEPS = 4
_NUM_ROUNDS = 3


def check_draft(target: Checkpoint, config: EngineConfig, draft: Checkpoint | None) -> None:
    """Raise ConfigError for a draft model that does not fit the target, or one that is lacking."""
    if draft is not None:
        check_same_vocabulary(target, draft)
    elif config.speculation == "draft":
        raise ConfigError("speculation 'draft' needs a draft model: name one with --draft-model")


def build_speculator(config: EngineConfig, executor: Executor, info: EngineInfo) -> Speculator:
    """Return the sources of drafts and, unless only a request could ask for them, the prices of steps."""
    target_costs, draft_costs = StepCosts(), StepCosts()
    if config.speculation != "off" or executor.max_draft_positions:
        measure_step_costs(
            executor,
            num_positions=min(info.num_kv_blocks * info.block_size, info.max_model_len) - 1,
            block_size=info.block_size,
            target_costs=target_costs,
            draft_costs=draft_costs,
        )
    return Speculator(
        lookups=(NgramDrafter(), NgramPool()),
        draft_cache=DraftCache(block_size=info.block_size),
        max_draft_positions=executor.max_draft_positions,
        default_mode=SpeculationMode(config.speculation),
        num_draft_tokens=config.num_draft_tokens,
        max_num_batched_tokens=config.max_num_batched_tokens,
        target_costs=target_costs,
        draft_costs=draft_costs,
    )


def check_same_vocabulary(target: Checkpoint, draft: Checkpoint) -> None:
    """Raise ConfigError unless both have the same tokens under the same ids.

    Rows by which a model is larger than its tokenizer are padding and do not count.
    """
    ours, theirs = target.tokenizer.tokens, draft.tokenizer.tokens
    start = f"the draft model {draft.name!r} cannot draft for {target.name!r}: "
    if draft.config.vocab_size < min(target.config.vocab_size, len(ours)):
        raise ConfigError(
            f"{start}it knows {draft.config.vocab_size} tokens, the target has "
            f"{min(target.config.vocab_size, len(ours))}"
        )
    different = [
        token_id for token_id, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]
    ]
    if different:
        first = different[0]
        raise ConfigError(
            f"{start}{len(different)} token ids mean something else; the first is {first}, which is "
            f"{theirs[first]!r} in the draft model and {ours[first]!r} in the target"
        )
    if len(ours) != len(theirs):
        raise ConfigError(f"{start}its tokenizer has {len(theirs)} tokens, the target's {len(ours)}")


def measure_step_costs(
    executor: Executor,
    *,
    num_positions: int,
    block_size: int,
    target_costs: StepCosts,
    draft_costs: StepCosts,
) -> None:
    """Time both models' passes by their number of tokens, on the first blocks, which nobody holds yet."""
    sizes = [size for size in _MEASURED_SIZES if size <= num_positions]
    if not sizes:
        return
    block_ids = tuple(range(-(-(max(sizes) + 1) // block_size)))
    params = SamplingParams(max_tokens=1)

    def run_target(size: int) -> None:
        rows = tuple(SampledRow(params, 0, 0, 1 + place) for place in range(size))
        chunk = ScheduledChunk(-1, 0, (0,) * size, block_ids, rows, size - 1)
        executor.launch(Batch((chunk,))).result()

    target_costs.set_measured(_fastest(run_target, sizes))
    if executor.max_draft_positions:
        draft_costs.set_measured(_measure_draft_model(executor, params, block_ids, sizes))


def _measure_draft_model(
    executor: Executor, params: SamplingParams, block_ids: tuple[int, ...], sizes: Sequence[int]
) -> dict[int, float]:
    """Time the draft model's passes over one token of each of so many requests."""
    num_steps = min(_MEASURED_STEPS, max(sizes), executor.max_draft_positions)

    def run(size: int) -> None:
        cursors = [RowCursor(_measured_request(params, number)) for number in range(size)]
        executor.draft([DraftJob((0,), 0, block_ids, num_steps, cursor) for cursor in cursors])

    return {size: seconds / num_steps for size, seconds in _fastest(run, sizes).items()}


def _fastest(run: Callable[[int], object], sizes: Sequence[int]) -> dict[int, float]:
    """Return the least seconds of each size: what disturbs one round rarely disturbs all."""
    seconds = dict.fromkeys(sizes, math.inf)
    run(max(sizes))
    for _ in range(_NUM_ROUNDS):
        for size in sizes:
            started = time.perf_counter()
            run(size)
            seconds[size] = min(seconds[size], time.perf_counter() - started)
    return seconds


def _measured_request(params: SamplingParams, number: int) -> Request:
    return Request(
        request_id=-1 - number,
        prompt_token_ids=(0,),
        params=params,
        seed=0,
        choice=0,
        root_hash=b"",
        stop_token_ids=frozenset(),
        max_total_tokens=2,
    )
