"""The real default model in float32 behind a real socket, once for all modules that want it."""

import pytest

from server.loading import load_served_model
from server.settings import ServeSettings
from tests.server.harness import serving_model


@pytest.fixture(scope="session")
def served_model(default_checkpoint):
    settings = ServeSettings(
        model=default_checkpoint.name, dtype="float32", max_model_len=1024, kv_cache_memory=2**28
    )
    model = load_served_model(settings)
    yield model
    model.engine.close()


@pytest.fixture(scope="session")
def api(served_model):
    """An httpx client of the server."""
    with serving_model(served_model) as client:
        yield client
