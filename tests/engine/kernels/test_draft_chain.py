"""Several draft tokens in one call of the kernels, against one call for each."""

from pathlib import Path

import pytest

from engine.checkpoint import load_checkpoint
from engine.interface.config import EngineConfig
from engine.loading.loader import build_engine
from tests.drafters import asking
from tests.tiny import generation

PAIR = Path(__file__).parents[2] / "assets/pair"
KINDS = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.9},
    {"temperature": 1.2, "min_p": 0.02},
    {"temperature": 1.0, "stop_token_ids": frozenset(range(0, 1024, 40))},
    {"temperature": 1.0, "frequency_penalty": 0.5},
]


def run(requests, k, *, with_chain):
    """Answers, and how the drafts fared; the model of the pair drafts with and without the chain."""
    target, draft = (load_checkpoint(str(PAIR / name)) for name in ("target", "draft"))
    engine = build_engine(target, EngineConfig(device="cpu", kv_cache_memory=2**27), draft).engine
    draft_model = engine.executor.draft_model
    assert draft_model._chain is not None
    if not with_chain:
        draft_model._chain = None
    added = [engine.add_request(asking(request, "draft", k)) for request in requests]
    while engine.has_work:
        engine.step()
        engine.check_invariants()
    counters = engine.speculator.counters
    return [request.token_ids for request in added], counters.drafted_at, counters.accepted_at


@pytest.mark.parametrize("k", [2, 5, 8])
@pytest.mark.parametrize("count", [1, 6])
def test_the_chain_drafts_what_single_passes_would(k, count):
    requests = [
        generation(range(3 + 7 * i, 20 + 9 * i), max_tokens=30 + i, seed=i, **KINDS[i % len(KINDS)])
        for i in range(count)
    ]
    chained = run(requests, k, with_chain=True)
    assert chained == run(requests, k, with_chain=False)
    assert sum(chained[2]) > 0
