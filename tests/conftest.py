"""Fixtures shared by all packages."""

import pytest
import torch

from engine.checkpoint import load_checkpoint


@pytest.fixture(scope="session", autouse=True)
def _two_threads():
    """Leave the machine to the tests that start servers of their own."""
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def default_checkpoint():
    """The real default model, fetched on first use."""
    return load_checkpoint("smollm2-135m-instruct")
