"""Allocations that fail at the start, with fakes that raise what torch, the driver and libraries do."""

import pytest
import torch

from engine.interface.config import EngineConfig
from engine.interface.errors import ConfigError
from engine.loading.loader import build_engine
from engine.loading.memory_errors import LoadStage, memory_errors, stage_errors
from tests.tiny import LLAMA, random_checkpoint

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ALLOCATION_FAILURES = [
    MemoryError("x"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("can't allocate memory: you tried to allocate 1 bytes"),
]


@pytest.fixture
def card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1_000, 80_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 70_000)


@pytest.mark.parametrize("error", ALLOCATION_FAILURES, ids=str)
def test_a_failed_allocation_says_what_is_free_and_what_to_do(error, card):
    with pytest.raises(ConfigError) as caught, memory_errors("the thing", "lower it", CUDA):
        raise error
    assert str(caught.value) == (
        "the thing cannot be allocated: 1,000 of the GPU's 80,000 bytes are free, this process holds 70,000; "
        "lower it"
    )
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: invalid argument"), ValueError("out of memory")])
def test_other_errors_stay_what_they_are(error, card):
    with pytest.raises(type(error)) as caught, memory_errors("the thing", "lower it", CUDA):
        raise error
    assert caught.value is error


def test_a_capture_that_hides_the_failure_is_seen_through(card):
    def capture():
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:  # as torch.cuda.graph does when its body fails
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    with (
        pytest.raises(ConfigError, match=r"^small: the captured steps cannot be allocated: "),
        stage_errors(LoadStage.CAPTURED_STEPS, CUDA, name="small"),
    ):
        capture()


@pytest.mark.parametrize(
    ("stage", "setting"),
    [
        (LoadStage.CONTEXT, "end what else uses the card"),
        (LoadStage.WEIGHTS, "take a smaller model, or set dtype"),
        (LoadStage.LARGEST_STEP, "max_num_batched_tokens"),
        (LoadStage.CAPTURED_STEPS, "max_num_seqs"),
        (LoadStage.KV_CACHE, "kv_cache_memory"),
        (LoadStage.FIRST_STEPS, "lower gpu_memory_utilization"),
    ],
)
def test_each_stage_advises_what_helps_there(stage, setting, card):
    with (
        pytest.raises(ConfigError, match=f"^{stage.what} cannot be allocated: .*{setting}"),
        stage_errors(stage, CUDA),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_no_stage_advises_a_setting_that_does_not_exist():
    fields = set(EngineConfig.__dataclass_fields__)
    for stage in LoadStage:
        named = {word.strip(",;") for word in stage.advice.split() if "_" in word}
        assert named <= fields, stage


def test_on_a_cpu_the_free_memory_is_the_machines():
    with (
        pytest.raises(ConfigError, match=r"^keys and values cannot be allocated: [0-9,]+ bytes are free; "),
        stage_errors(LoadStage.KV_CACHE, CPU),
    ):
        raise MemoryError


def test_a_card_that_does_not_even_answer(monkeypatch):
    def fail(_):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
    with (
        pytest.raises(ConfigError, match=r"the GPU does not say what is free; end what else"),
        stage_errors(LoadStage.CONTEXT, CUDA),
    ):
        fail(None)


def test_a_card_without_room_for_a_context_stops_the_start(monkeypatch):
    def fail(*_):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
    with pytest.raises(ConfigError, match=r"^the GPU's context cannot be allocated: "):
        build_engine(random_checkpoint(LLAMA), EngineConfig(device="auto"))
