"""A whole step in one call of the kernels, against the same step with logits as tensors."""

from pathlib import Path

import pytest
import torch

from engine.checkpoint import load_checkpoint
from engine.core.executor import FinishedStep
from engine.execution.torch_executor import run_in_torch
from engine.interface.config import EngineConfig
from engine.loading.loader import build_engine
from engine.model.model_input import build_model_input
from tests.drafters import asking
from tests.tiny import generation

PAIR = Path(__file__).parents[2] / "assets/pair"
SIMPLE = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.9},
    {"temperature": 1.2, "min_p": 0.02},
    {"temperature": 0.0, "frequency_penalty": 0.0, "stop_token_ids": frozenset(range(0, 1024, 50))},
]
OTHERS = [
    {"temperature": 1.0, "frequency_penalty": 0.5},
    {"temperature": 1.0, "logprobs": 2},
    {"temperature": 1.0, "typical_p": 0.8},
    {"temperature": 1.0, "min_tokens": 9, "stop_token_ids": frozenset(range(0, 1024, 3))},
    {"temperature": 0.0, "prompt_logprobs": 1},
]


class InTorch:
    """Launches the batches of an executor of the kernels with hidden states and logits as tensors."""

    def __init__(self, executor):
        self.executor = executor

    @torch.inference_mode()
    def __call__(self, batch):
        for copy in batch.block_copies:
            self.executor.model.kv_storage.copy_block(copy.source, copy.target)
        model_input = build_model_input(batch, block_size=16, device=torch.device("cpu"))
        return FinishedStep(run_in_torch(self.executor.model, self.executor._sampler, batch, model_input))


def run(requests, *, with_step):
    """Answers, and how many rows left the step with their logits."""
    config = EngineConfig(device="cpu", kv_cache_memory=2**27, max_num_batched_tokens=32)
    engine = build_engine(load_checkpoint(str(PAIR / "target")), config).engine
    seen = []
    if with_step:
        choose = engine.executor._sampler._choose
        engine.executor._sampler._choose = lambda raw, rows: seen.append(len(rows)) or choose(raw, rows)
    else:
        engine.executor.launch = InTorch(engine.executor)
    added = [engine.add_request(request) for request in requests]
    while engine.has_work:
        engine.step()
        engine.check_invariants()
    return [(request.token_ids, request.prompt_logprobs) for request in added], sum(seen)


@pytest.mark.parametrize("k", [None, 1, 5])
@pytest.mark.parametrize("count", [1, 7])
def test_one_call_chooses_what_logits_and_sampler_would(k, count):
    requests = [
        generation(range(3 + 7 * i, 20 + 19 * i), max_tokens=30 + i, seed=i, **SIMPLE[i % len(SIMPLE)])
        for i in range(count)
    ]
    if k is not None:
        requests = [asking(request, "ngram", k) for request in requests]
    answers, num_rows = run(requests, with_step=True)
    assert num_rows == 0
    assert answers == run(requests, with_step=False)[0]


@pytest.mark.parametrize("params", OTHERS, ids=str)
def test_who_wants_to_see_logits_gets_them_and_changes_nobody_beside_it(params):
    plain = generation(range(5, 40), max_tokens=20, seed=7, temperature=1.0)
    both = [plain, generation(range(9, 60), max_tokens=20, seed=3, **params)]
    [alone], _ = run([plain], with_step=True)
    together, num_rows = run(both, with_step=True)
    assert together[0] == alone
    assert together == run(both, with_step=False)[0]
    assert 0 < num_rows <= 22, "only the rows of the one that wants it"


def test_a_mixed_batch_with_drafts_is_what_it_is_in_torch():
    requests = [
        asking(generation(range(i, 30 + i), max_tokens=12, seed=i, **params), "ngram", 3)
        for i, params in enumerate([*SIMPLE, *OTHERS[:4]])
    ]
    assert run(requests, with_step=True)[0] == run(requests, with_step=False)[0]
