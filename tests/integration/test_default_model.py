"""The real default model against `transformers` running the same dequantised weights, in float32."""

import pytest
import torch

from engine.interface.config import EngineConfig
from engine.loading.loader import build_engine
from loadtest.transformers_model import build_reference
from server.text.chat_template import ChatTemplate
from server.text.tokenizer import Tokenizer
from tests.tiny import generate, generation

QUESTIONS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain photosynthesis to a child.",
    "List three prime numbers.",
    "Translate 'good morning' into Spanish.",
    "Who wrote Romeo and Juliet?",
    "What is 12 times 12?",
    "Give me a recipe for pancakes.",
    "Why is the sky blue?",
    "Write a Python function that reverses a string.",
]
TEXTS = [
    "Once upon a time, in a small village by the river,",
    "The three laws of motion are",
    "def fibonacci(n):\n    ",
    "In 1969, the first man on the Moon",
    "Dear Sir or Madam,\n\nI am writing to",
    "Q: What is a transformer?\nA:",
    "1, 2, 3, 5, 8, 13,",
    "The quick brown fox",
    "To make bread you need flour, water,",
    "import numpy as np\n\n",
]
NUM_TOKENS = 64


@pytest.fixture(scope="module")
def prompts(default_checkpoint):
    tokenizer = Tokenizer(default_checkpoint.tokenizer)
    template = ChatTemplate(default_checkpoint.tokenizer.chat_template)
    chats = [template.render([{"role": "user", "content": question}]) for question in QUESTIONS]
    return [tokenizer.encode(text) for text in chats + TEXTS]


@pytest.fixture(scope="module")
def float32_engine(default_checkpoint):
    config = EngineConfig(device="cpu", dtype="float32", max_model_len=1024, kv_cache_memory=2**29)
    return build_engine(default_checkpoint, config).engine


@pytest.fixture(scope="module")
def reference(default_checkpoint):
    return build_reference(default_checkpoint)


def test_greedy_continuations_equal_transformers_token_for_token(float32_engine, reference, prompts):
    """One reference pass over prompt and answer checks all 64 choices: each must be its own argmax."""
    assert len(prompts) == 20
    gaps = [gap for gap in reference_gaps(float32_engine, reference, prompts).tolist() if gap > 0.0]
    print(f"{len(prompts) * NUM_TOKENS} tokens, near-ties: {gaps}")
    assert len(gaps) <= 2
    assert all(gap < 1e-3 for gap in gaps)


def test_greedy_choices_with_blocks_as_stored_are_mostly_those_of_float32(
    default_checkpoint, reference, prompts
):
    """What users get rounds activations to 8 bits: where it chooses otherwise, the two were close."""
    config = EngineConfig(device="cpu", max_model_len=1024, kv_cache_memory=2**28)
    gaps = reference_gaps(build_engine(default_checkpoint, config).engine, reference, prompts)
    print(f"{int((gaps == 0.0).sum())} of {len(gaps)} tokens equal, largest gap {gaps.max():.3f} nats")
    assert (gaps == 0.0).float().mean() > 0.95
    assert gaps.max() < 1.0


def reference_gaps(engine, reference, prompts):
    """How far below its best logit the reference puts each token of the greedy answers, 64 a prompt."""
    requests = [generation(prompt, max_tokens=NUM_TOKENS, ignore_eos=True) for prompt in prompts]
    gaps = []
    for prompt, answer in zip(prompts, generate(engine, *requests), strict=True):
        with torch.no_grad():
            logits = reference(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        gaps.append(logits.amax(dim=-1) - logits.gather(1, torch.tensor(answer).unsqueeze(1))[:, 0])
    return torch.cat(gaps)


def test_the_answer_makes_sense(default_checkpoint, float32_engine, prompts):
    [answer] = generate(float32_engine, generation(prompts[0], max_tokens=20))
    assert Tokenizer(default_checkpoint.tokenizer).decode(answer) == "The capital of France is Paris."


def test_same_seed_same_tokens_alone_or_among_others_in_bfloat16(default_checkpoint, prompts):
    """The dtype that users get: equal to the bit on a CPU, sampled and greedy, cold and warm."""
    settings = {"device": "cpu", "dtype": "bfloat16", "max_model_len": 1024, "kv_cache_memory": 2**28}
    requests = [
        generation(prompt, max_tokens=24, ignore_eos=True, temperature=0.9 * (i % 2), seed=i)
        for i, prompt in enumerate(prompts[:9])
    ]
    together = build_engine(default_checkpoint, EngineConfig(**settings, max_num_batched_tokens=64)).engine
    cold = generate(together, *requests)
    warm = generate(together, *requests)
    alone = build_engine(default_checkpoint, EngineConfig(**settings, enable_prefix_caching=False)).engine
    assert [generate(alone, request)[0] for request in requests[:4]] == cold[:4] == warm[:4]
    assert cold == warm
