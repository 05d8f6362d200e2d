"""Ways: what must not change an answer, each with the engine's settings and the requests' wishes for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.gpu.setting import Setting


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to run the same requests."""

    name: str
    settings: Mapping[str, object] = field(default_factory=dict)  # of EngineConfig
    mode: str | None = None  # of speculation, beside the engine's default
    k: int | None = None
    has_draft: bool = False
    is_tight: bool = False  # a pool with room for hardly more than the longest request
    runs: tuple[str, ...] = ("cold",)  # one after the other on the same engine
    num_others: int = 0  # requests beside those that are compared


def all_ways(setting: Setting) -> list[Way]:
    """Return every way, the likeliest to find something first."""
    return [*_batches(setting), *_chunks(setting), *_ahead(), *_speculation(), _tight(), *_switches()]


def short_ways(setting: Setting) -> list[Way]:
    """Return those for a model of a family that differs little, or for another dtype."""
    speculation = [way for way in _speculation() if way.mode in ("draft", "ngram")]
    return [*_batches(setting)[-2:], *_chunks(setting)[:1], *speculation, _tight()]


def _batches(setting: Setting) -> list[Way]:
    sizes = (3, 6) if setting.rehearse else (8, 64, 256)
    return [
        Way(
            name=f"batch {size}",
            settings={"max_num_seqs": size},
            runs=("cold", "warm"),
            num_others=size if size == sizes[-1] else 0,
        )
        for size in sizes
    ]


def _chunks(setting: Setting) -> list[Way]:
    budgets = (37,) if setting.rehearse else (37, 16, 130)
    return [Way(name=f"chunks of {n}", settings={"max_num_batched_tokens": n}) for n in budgets]


def _ahead() -> list[Way]:
    return [
        Way(name=f"{depth} steps ahead", settings={"steps_ahead": depth}, runs=("cold", "warm"))
        for depth in (0, 1, 2)
    ]


def _speculation() -> list[Way]:
    drafted = [
        Way(name=f"speculation {mode}", mode=mode, k=k, has_draft=True, runs=("cold", "warm"))
        for mode, k in (("draft", 4), ("auto", None), ("off", None))
    ]
    return [Way(name="speculation ngram", mode="ngram", k=4, runs=("cold", "warm")), *drafted]


def _tight() -> Way:
    return Way(name="preempted", is_tight=True)


def _switches() -> list[Way]:
    return [
        Way(name="without graphs", settings={"cuda_graphs": False}),
        Way(name="blocks of 32", settings={"block_size": 32}),
        Way(name="without a cache", settings={"enable_prefix_caching": False}),
    ]
