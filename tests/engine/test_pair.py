"""The committed draft/target pair: both load, the target has learned, and the draft agrees with it.

The text is Psalm 122 in the King James version, of the chapters that neither of the two was trained on.
"""

from pathlib import Path

import pytest
import torch

from engine.checkpoint import load_checkpoint
from engine.interface.batch import Batch
from engine.interface.config import EngineConfig
from engine.loading.loader import build_engine
from engine.model.model_input import build_model_input
from engine.sampling.noise import gumbel_noise, noise_key
from server.text.tokenizer import Tokenizer
from tests.tiny import generation

PAIR = Path(__file__).parent.parent / "assets" / "pair"
TEXT = """Psalms 122
I was glad when they said unto me, Let us go into the house of the LORD.
Our feet shall stand within thy gates, O Jerusalem.
Jerusalem is builded as a city that is compact together:
Whither the tribes go up, the tribes of the LORD, \
unto the testimony of Israel, to give thanks unto the name of the LORD.
For there are set thrones of judgment, the thrones of the house of David.
Pray for the peace of Jerusalem: they shall prosper that love thee.
Peace be within thy walls, and prosperity within thy palaces.
For my brethren and companions' sakes, I will now say, Peace be within thee.
Because of the house of the LORD our God I will seek thy good.
"""


@pytest.fixture(scope="module")
def checkpoints():
    return {name: load_checkpoint(str(PAIR / name)) for name in ("target", "draft")}


@pytest.fixture(scope="module")
def token_ids(checkpoints):
    return Tokenizer(checkpoints["target"].tokenizer).encode(TEXT)


@pytest.fixture(scope="module")
def logits(checkpoints, token_ids):
    """Logits after every token of the text, by each model."""
    return {name: forced_logits(checkpoint, token_ids) for name, checkpoint in checkpoints.items()}


def forced_logits(checkpoint, token_ids):
    config = EngineConfig(device="cpu", dtype="float32", kv_cache_memory=2**24)
    engine = build_engine(checkpoint, config).engine
    engine.add_request(generation(token_ids, max_tokens=1))
    [chunk] = engine.scheduler.dispatch(engine.scheduler.schedule()).chunks
    assert chunk.num_tokens == len(token_ids)
    with torch.inference_mode():
        model_input = build_model_input(Batch((chunk,)), block_size=16, device=torch.device("cpu"))
        return engine.executor.model.compute_logits(engine.executor.model(model_input))


def test_the_draft_is_a_tenth_of_the_target_and_writes_the_same_tokens(checkpoints):
    target, draft = checkpoints["target"], checkpoints["draft"]
    assert draft.tokenizer == target.tokenizer
    assert draft.config.vocab_size == target.config.vocab_size == len(target.tokenizer.tokens)
    assert draft.config.max_position_embeddings == target.config.max_position_embeddings
    assert draft.stop_token_ids == target.stop_token_ids == {target.tokenizer.eos_token_id}
    sizes = {
        name: sum(torch.Size(tensor.shape).numel() for tensor in checkpoint.tensors.values())
        for name, checkpoint in checkpoints.items()
    }
    assert 6_000_000 < sizes["target"] < 7_000_000
    assert 10 * sizes["draft"] <= sizes["target"]


def test_both_have_learned_the_language(logits, token_ids):
    losses = {
        name: torch.nn.functional.cross_entropy(values[:-1], torch.tensor(token_ids[1:])).item()
        for name, values in logits.items()
    }
    assert losses["target"] < 3.45
    assert losses["draft"] < 3.45


def test_the_draft_agrees_with_the_target_under_the_same_noise(logits):
    greedy = {name: values.argmax(-1) for name, values in logits.items()}
    assert (greedy["draft"] == greedy["target"]).float().mean() > 0.8
    rounds = []
    for seed in range(8):
        keys = [noise_key(seed, 0, position) for position in range(len(logits["target"]))]
        noise = gumbel_noise(keys, logits["target"].shape[1], device=torch.device("cpu"))
        chosen = {name: (values + noise).argmax(-1) for name, values in logits.items()}
        rounds.append((chosen["draft"] == chosen["target"]).float().mean())
    assert torch.stack(rounds).mean() > 0.82
