"""What a machine offers, with a card pretended: which device is taken, and what a card is."""

from types import SimpleNamespace

import pytest
import torch

from engine.loading.machine import GPU, choose_device, choose_dtype, describe_gpu

CARD = {
    "name": "NVIDIA H200",
    "major": 9,
    "minor": 0,
    "multi_processor_count": 132,
    "total_memory": 150_000_000_000,
}


@pytest.mark.parametrize(("has_gpu", "expected"), [(True, "cuda"), (False, "cpu")])
def test_auto_takes_the_gpu_where_there_is_one(has_gpu, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert choose_device("auto").type == expected
    assert choose_device("cpu").type == "cpu", "a CPU that was asked for is taken, card or not"


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_takes_the_dtype_that_the_card_multiplies(has_bf16, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has_bf16)
    assert choose_dtype("auto", torch.device("cuda")) is expected


def test_a_gpu_is_described_as_torch_says(monkeypatch):
    properties = SimpleNamespace(**CARD, shared_memory_per_block_optin=200_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    assert describe_gpu(torch.device("cuda")) == GPU(
        name="NVIDIA H200",
        capability=(9, 0),
        num_multiprocessors=132,
        shared_memory_per_block=200_000,
        total_memory=150_000_000_000,
    )


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((8, 0), 166_912), ((8, 6), 101_376), ((9, 0), 232_448), ((7, 5), 49_152)],
)
def test_shared_memory_is_the_capabilitys_where_torch_does_not_say_it(capability, expected, monkeypatch):
    properties = SimpleNamespace(**CARD | {"major": capability[0], "minor": capability[1]})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    assert describe_gpu(torch.device("cuda")).shared_memory_per_block == expected
