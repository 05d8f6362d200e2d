"""Traps that only the whole engine can fall into: G4, G7, G8, G9."""

import random
from collections.abc import Sequence

from engine.core.engine import Engine
from engine.core.request import Request
from engine.interface.outputs import FinishReason, GenerationRequest
from tests.gpu import wiring
from tests.gpu.checkpoints import random_checkpoint
from tests.gpu.report import Report
from tests.gpu.requests import differing, requests, run
from tests.gpu.setting import Setting, has_settings
from tests.gpu.shapes import SMALL, shrunk
from tests.gpu.wiring import NotThereError
from tests.tiny import generation

_DTYPE = "float32"


def _engine(setting: Setting, **settings: object) -> Engine:
    config = shrunk(SMALL["llama"]) if setting.rehearse else SMALL["llama"]
    memory = {"kv_cache_memory": setting.number(2**23, 2**28, 2**28), "dtype": _DTYPE}
    checkpoint = random_checkpoint(config, device=setting.device)
    return setting.build_engine(checkpoint, setting.engine_config(**{**memory, **settings})).engine


def _requests(setting: Setting, count: int) -> list[GenerationRequest]:
    config = shrunk(SMALL["llama"]) if setting.rehearse else SMALL["llama"]
    return requests(count, vocab_size=config.vocab_size, max_tokens=setting.number(6, 20, 20), seed=9)


def _growing(count: int) -> list[GenerationRequest]:
    """Return short prompts with long answers: they all fit at first, and no longer when they have grown."""
    rng = random.Random(4)
    shared = [rng.randrange(250) for _ in range(20)]
    prompts = [shared[: rng.randrange(1, 20)] + [rng.randrange(250) for _ in range(9)] for _ in range(count)]
    return [
        generation(prompt, seed=number, temperature=0.9, max_tokens=40, ignore_eos=True)
        for number, prompt in enumerate(prompts)
    ]


def run_ahead(setting: Setting, report: Report) -> None:
    """G4: requests that arrive at random, in chunks, preempted and aborted in flight, at every depth."""
    made = _growing(setting.number(16, 60, 120))
    plain = _engine(setting, max_num_seqs=1, enable_prefix_caching=False)
    expected = [answer.token_ids for answer in run(plain, made)]
    plain.close()
    config = shrunk(SMALL["llama"]) if setting.rehearse else SMALL["llama"]
    block_bytes = 2 * 16 * 4 * config.num_layers * config.num_kv_heads * config.head_dim
    for depth in (0, 1, 2):
        engine = _engine(
            setting,
            steps_ahead=depth,
            max_num_batched_tokens=24,
            kv_cache_memory=20 * block_bytes,
            max_model_len=300,
            max_num_seqs=8,
        )
        live = _arrive_and_leave(engine, made, seed=depth)
        _judge(report, depth, live, expected)
        report.check(f"G4 depth {depth}: requests were preempted", engine.stats().num_preemptions > 0)
        pool = engine.kv_cache_manager.pool
        report.check(f"G4 depth {depth}: every block came back", pool.num_free == pool.num_blocks)
        engine.close()


def _arrive_and_leave(engine: Engine, made: Sequence[GenerationRequest], *, seed: int) -> list[Request]:
    rng, live = random.Random(seed), list[Request]()
    waiting = list(made)
    while waiting or engine.has_work:
        if waiting and rng.random() < 0.4:
            live.append(engine.add_request(waiting.pop(0)))
        if live and rng.random() < 0.03:
            engine.abort(rng.choice(live))
        engine.step()
    engine.check_invariants()
    return live


def _judge(report: Report, depth: int, live: Sequence[Request], expected: Sequence[Sequence[int]]) -> None:
    """Compare whole answers, and of aborted requests what there was."""
    wrong = []
    for number, (request, answer) in enumerate(zip(live, expected, strict=True)):
        tokens = tuple(request.token_ids[request.num_prompt_tokens :])
        is_aborted = request.finish_reason is FinishReason.ABORT
        if tokens != (tuple(answer[: len(tokens)]) if is_aborted else tuple(answer)):
            wrong.append(number)
    report.check(f"G4 depth {depth}: same tokens", not wrong, f"requests {wrong[:9]}" if wrong else "")


def nothing_is_compiled_while_serving(setting: Setting, report: Report) -> None:
    """G7: requests of every kind, prompts of every length: all kernels were there when it was ready."""
    engine = _engine(setting)
    with wiring.count_compiles() as compiled:
        run(engine, _requests(setting, setting.number(14, 60, 60)))
        for count in (1, 2, 5, setting.number(6, 31, 31)):
            run(engine, _requests(setting, count))
    report.check("G7 nothing compiled after ready", compiled.count == 0, compiled.detail)
    engine.close()


def debug_flag(setting: Setting, report: Report) -> None:
    """G8: the flag that checks each launch changes no token."""
    if not has_settings(wiring.DEBUG):
        raise NotThereError(f"EngineConfig has no {', '.join(wiring.DEBUG)}")
    made = _requests(setting, 14)
    engines = [_engine(setting), _engine(setting, **wiring.DEBUG)]
    answers = [run(engine, made) for engine in engines]
    report.check("G8 debugging changes no token", not differing(answers[1], answers[0]))
    for engine in engines:
        engine.close()


def cold_and_warm(setting: Setting, report: Report) -> None:
    """G9: the axis that others' determinism tests leave out."""
    engine, made = _engine(setting), _requests(setting, setting.number(14, 40, 40))
    cold, warm = (run(engine, made) for _ in range(2))
    wrong = differing(warm, cold)
    report.check("G9 warm is cold", not wrong, f"requests {wrong[:9]}" if wrong else "")
    report.check("G9 the cache was hit", engine.stats().prefix_cache_hits > 0)
    engine.close()
