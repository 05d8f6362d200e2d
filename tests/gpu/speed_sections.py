"""What is measured of each model, in order of importance: the last is left out when time runs short."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from engine.checkpoint.model_config import ModelConfig
from engine.core.engine import Engine
from tests.gpu import wiring
from tests.gpu.ceilings import Ceilings, Work, decode_work, prefill_work
from tests.gpu.measure import median_decode, mixed_load, prefill_seconds, run_load
from tests.gpu.report import Report
from tests.gpu.setting import Setting
from tests.gpu.speculation_speed import draft_model_speed, scripted_speed
from tests.gpu.timing import median_seconds

_PROMPT = 128


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """An engine that is ready, and what its figures are set against."""

    setting: Setting
    report: Report
    engine: Engine
    config: ModelConfig
    ceilings: Ceilings
    weight_bytes: float  # of one weight of the matrices

    def share(self, work: Work, seconds: float) -> float:
        """Return the least time that the card needs for some work, over the time it took."""
        return self.ceilings.step_seconds(work) / seconds


def _decode(measurement: Measurement) -> None:
    """Measure 128 tokens in and 256 out, by the number of streams."""
    setting, batches = measurement.setting, (1, 4) if measurement.setting.rehearse else (1, 8, 64, 256)
    for batch in batches:
        found = median_decode(
            measurement.engine,
            batch=batch,
            prompt=setting.number(8, _PROMPT, _PROMPT),
            answer=setting.number(8, 128, 256),
            repeats=setting.number(1, 1, 3),
            seconds=setting.number(1, 2, 3),
        )
        work = decode_work(
            measurement.config, batch=batch, context=found.context, weight_bytes=measurement.weight_bytes
        )
        measurement.report.figure(
            f"decode, batch {batch}",
            found.tokens_per_second,
            "tok/s",
            share=measurement.share(work, 1 / found.steps_per_second),
            detail=f"{found.step_ms:.3f} ms a step",
        )


def _captured_step(measurement: Measurement) -> None:
    """Measure the captured step alone, from the second on without the host: all rows at position 0."""
    executor = measurement.engine.executor
    for batch in (1, 4) if measurement.setting.rehearse else (1, 8, 64, 256):
        launch = wiring.captured_step(executor, batch)
        seconds = median_seconds(launch, measurement.setting.device, repeats=50)
        work = decode_work(measurement.config, batch=batch, context=1, weight_bytes=measurement.weight_bytes)
        name = f"captured step alone, batch {batch}"
        measurement.report.figure(name, 1e3 * seconds, "ms", share=measurement.share(work, seconds))


def _one_stream(measurement: Measurement) -> None:
    """Measure a single stream only."""
    setting = measurement.setting
    prompt, answer = setting.number(8, _PROMPT, _PROMPT), setting.number(8, 128, 256)
    found = median_decode(
        measurement.engine, batch=1, prompt=prompt, answer=answer, repeats=setting.number(1, 1, 3), seconds=3
    )
    work = decode_work(
        measurement.config, batch=1, context=found.context, weight_bytes=measurement.weight_bytes
    )
    share = measurement.share(work, 1 / found.steps_per_second)
    measurement.report.figure("decode, batch 1", found.tokens_per_second, "tok/s", share=share)


def _prefill(measurement: Measurement) -> None:
    """Measure one long prompt, and sixteen together."""
    cases = ((1, 64), (4, 32)) if measurement.setting.rehearse else ((1, 2048), (16, 512))
    for count, length in cases:
        repeats = measurement.setting.number(1, 3, 5)
        seconds = prefill_seconds(measurement.engine, count=count, length=length, repeats=repeats)
        work = prefill_work(measurement.config, count=count, length=length)
        measurement.report.figure(
            f"prefill, {count} x {length}",
            count * length / seconds,
            "tok/s",
            share=measurement.share(work, seconds),
            detail=f"{1e3 * seconds:.2f} ms",
        )


def _mixed_load(measurement: Measurement) -> None:
    """Measure nano-vllm's benchmark, without a prefix cache to help: no two prompts are alike."""
    setting, engine = measurement.setting, measurement.engine
    count, low, high = setting.number(6, 256, 256), setting.number(4, 100, 100), setting.number(20, 400, 1024)
    load = mixed_load(engine.limits.vocab_size, count=count, low=low, high=high)
    run_load(engine, load[:2], lambda: False)
    rate = run_load(engine, load, lambda: setting.is_late)
    detail = "stopped early" if setting.is_late else f"{engine.stats().num_preemptions} preemptions"
    measurement.report.figure(
        f"{count} requests, {low}-{high} tokens in and out", rate, "tok/s", detail=detail
    )


def _scripted_speculation(measurement: Measurement) -> None:
    """Measure drafts of known acceptance."""
    batches = (1, 8) if not measurement.setting.rehearse else (1,)
    scripted_speed(measurement.setting, measurement.report, measurement.engine, batches)


def _draft_model(measurement: Measurement) -> None:
    """Measure a draft model."""
    draft_model_speed(measurement.setting, measurement.report, measurement.engine)


SECTIONS: Mapping[str, Sequence[Callable[[Measurement], None]]] = {
    "135m": (_decode, _prefill, _scripted_speculation, _captured_step),
    "0.6b": (_decode, _prefill, _mixed_load, _captured_step),
    "8b": (_decode, _prefill, _captured_step),
    "pair": (_scripted_speculation, _draft_model),
    "8b-q4": (_one_stream,),
}
"""By model; `pair` has a draft model."""
