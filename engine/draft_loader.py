"""Speculation at start-up: whether a draft model fits the target, its memory, and the prices of steps."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from engine.backend import Backend
from engine.batch import Batch, ScheduledChunk
from engine.checkpoint.checkpoint import Checkpoint
from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import ConfigError
from engine.kv_cache.kv_storage import default_kv_cache_memory
from engine.machine import choose_dtype, memory_errors
from engine.model.weights import Weights
from engine.model_input import TokenSpan, lay_out
from engine.request import Request
from engine.sampled_row import DraftRow
from engine.sampling_params import SamplingParams
from engine.speculation import SpeculationMode
from engine.speculative.draft_model import DraftModel
from engine.speculative.ngram import NgramDrafter
from engine.speculative.ngram_pool import NgramPool
from engine.speculative.speculator import Speculator
from engine.speculative.step_costs import SIZES

_MEMORY_ADVICE = "lower kv_cache_memory, or serve without a draft model"

_MEASURED_SIZES = tuple(size for size in SIZES if size <= 16)
_MEASURED_STEPS = 4
_NUM_ROUNDS = 3


def prepare_for_draft(
    target: Checkpoint,
    config: EngineConfig,
    draft: Checkpoint | None,
    *,
    backend: Backend,
    device: torch.device,
) -> EngineConfig:
    """Return the configuration of the target beside this draft model: both share the KV memory.

    Raises ConfigError if they do not fit together.
    """
    if draft is None:
        if config.speculation == "draft":
            raise ConfigError("speculation 'draft' needs a draft model: name one with --draft-model")
        return config
    check_same_vocabulary(target, draft)
    of_target, of_draft = (backend.kv_bytes_per_block(c.config, config.block_size) for c in (target, draft))
    memory = config.kv_cache_memory or default_kv_cache_memory(device)
    return replace(config, kv_cache_memory=memory * of_target // (of_target + of_draft) or 1)


def add_speculation(
    engine: Engine,
    config: EngineConfig,
    draft: Checkpoint | None,
    *,
    backend: Backend,
    device: torch.device,
) -> None:
    """Give the engine its sources of drafts and, unless only a request could ask for them, its prices."""
    engine.speculator = Speculator(
        lookups=(NgramDrafter(), NgramPool()),
        draft_model=None if draft is None else _load_draft_model(engine, config, draft, backend, device),
        default_mode=SpeculationMode(config.speculation),
        num_draft_tokens=config.num_draft_tokens,
        max_num_batched_tokens=config.max_num_batched_tokens,
    )
    if config.speculation != "off" or draft is not None:
        measure_step_costs(engine)


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


def measure_step_costs(engine: Engine) -> None:
    """Time both models' passes by their number of tokens, on blocks that nobody holds."""
    manager, draft_model = engine.kv_cache_manager, engine.speculator.draft_model
    limit = min(manager.pool.num_blocks * manager.block_size, engine.max_model_len) - 1
    sizes = [size for size in _MEASURED_SIZES if size <= limit]
    request = _measured_request(max_tokens=max(1, limit))
    if not sizes or not manager.allocate_slots(request, max(sizes)):
        return

    def run_target(size: int) -> None:
        engine.runner.execute(Batch((ScheduledChunk(request, size, (0,) * (size - 1)),)))

    engine.speculator.target_costs.set_measured(_fastest(run_target, sizes))
    if draft_model is not None:
        draft_model.costs.set_measured(_measure_draft_model(draft_model, request, sizes))
    manager.free(request)


def _measure_draft_model(draft_model: DraftModel, request: Request, sizes: Sequence[int]) -> dict[int, float]:
    """Time the draft model's passes: one of a chain for so many requests, or one over so many tokens."""
    row, chain = DraftRow(request, (), None), draft_model.chain
    if chain is None:
        spans = {size: TokenSpan((0,) * size, 0, request.block_ids, 1) for size in sizes}
        return _fastest(lambda size: draft_model.run([spans[size]], [row]), sizes)
    one, block_size = TokenSpan((0,), 0, request.block_ids, 1), draft_model.kv_cache_manager.block_size

    num_steps = min(_MEASURED_STEPS, max(sizes))  # each takes a position: more there may not be

    def run_chain(size: int) -> None:
        model_input = lay_out([one] * size, block_size=block_size, device=draft_model.device)
        chain(model_input, [row] * size, num_steps)

    return {size: seconds / num_steps for size, seconds in _fastest(run_chain, sizes).items()}


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


def _measured_request(*, max_tokens: int) -> Request:
    return Request(
        request_id=-1,
        prompt_token_ids=(0,),
        params=SamplingParams(max_tokens=max_tokens),
        seed=0,
        choice=0,
        root_hash=b"",
        stop_token_ids=frozenset(),
        max_total_tokens=max_tokens + 1,
    )


def _load_draft_model(
    engine: Engine, config: EngineConfig, draft: Checkpoint, backend: Backend, device: torch.device
) -> DraftModel:
    max_positions = min(engine.max_model_len, draft.config.max_position_embeddings)
    dtype = choose_dtype(config.dtype, device)
    weights = Weights(draft.tensors, dtype=dtype, device=device, path=draft.path)
    num_blocks = engine.kv_cache_manager.pool.num_blocks
    with memory_errors(f"{draft.path}: the draft model and its keys and values", _MEMORY_ADVICE, device):
        model = backend.build_model(draft.config, weights, max_positions=max_positions)
        kv_storage = backend.build_kv_storage(
            draft.config, num_blocks=num_blocks, block_size=config.block_size
        )
    return DraftModel(
        model,
        kv_storage,
        engine.kv_cache_manager,
        backend.build_sampler(engine.vocab_size),
        max_positions=max_positions,
        max_catch_up_tokens=config.max_num_batched_tokens,
        device=device,
        chain=backend.build_draft_chain(model, kv_storage, engine.vocab_size),
    )
