"""Chi-square of sampled answers on a toy vocabulary, through the whole engine with speculation on."""

import math
import random

import pytest
import torch

from engine.core.engine import Engine
from engine.execution.torch_executor import TorchExecutor
from engine.interface.speculation import SpeculationMode
from engine.kv_cache.block_pool import BlockPool
from engine.kv_cache.kv_cache_manager import KVCacheManager
from engine.sampling.sampler import Sampler
from tests.drafters import asking, scripted_speculator
from tests.tiny import generation, run_to_end

VOCAB = 5
LOGITS = torch.tensor(
    [
        [0.0, 1.0, 2.0, -1.0, 0.5],
        [3.0, 0.0, 0.0, 0.0, -2.0],
        [0.2, 0.1, 0.0, 0.3, 0.4],
        [-1.0, 2.0, -1.0, 2.0, 0.0],
        [0.0, 0.0, 4.0, 1.0, 1.0],
    ]
)


class Chain:
    """A model whose next token depends on the last one alone."""

    def __call__(self, model_input):
        return LOGITS[model_input.tensors.token_ids]

    def compute_logits(self, hidden):
        return hidden


def chain_engine(guess):
    cpu = torch.device("cpu")
    return Engine(
        TorchExecutor(Chain(), Sampler(vocab_size=VOCAB), block_size=16, device=cpu),
        KVCacheManager(BlockPool(256), block_size=16, enable_prefix_caching=True),
        max_model_len=64,
        max_num_seqs=64,
        max_num_batched_tokens=1024,
        vocab_size=VOCAB,
        eos_token_ids=frozenset(),
        speculator=scripted_speculator(guess, default_mode=SpeculationMode.NGRAM),
    )


@pytest.mark.parametrize(
    "params", [{"temperature": 1.0}, {"temperature": 0.7, "logit_bias": {0: 1.0}}], ids=str
)
@pytest.mark.parametrize("k", [1, 3, 8])
def test_transitions_follow_the_exact_distribution(k, params):
    rng = random.Random(k)
    engine = chain_engine(lambda _request, limit: [rng.choice([1, 2, 2, 3]) for _ in range(limit)])
    added = [
        engine.add_request(
            asking(generation([i % VOCAB], max_tokens=30, seed=1000 * k + i, **params), "ngram", k)
        )
        for i in range(384)
    ]
    run_to_end(engine)
    stats = engine.stats()
    assert stats.num_accepted_tokens > 500
    counts = torch.zeros(VOCAB, VOCAB)
    for request in added:
        for before, after in zip(request.token_ids, request.token_ids[1:], strict=False):
            counts[before, after] += 1
    logits = LOGITS.clone()
    for token_id, bias in params.get("logit_bias", {}).items():
        logits[:, token_id] += bias
    expected = (logits / params["temperature"]).softmax(dim=-1) * counts.sum(dim=-1, keepdim=True)
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    freedom = VOCAB * (VOCAB - 1)
    assert counts.sum() == 384 * 30
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)
