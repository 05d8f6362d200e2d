"""Same seed, same tokens: the promise, bit for bit, on random models.

Every case runs the same requests in a way that must not matter and compares whole answers. Float32 and
bfloat16 alike: the torch path sums each row in an order that depends on nothing but the row.
"""

import random

import pytest

from tests.tiny import GPT2, LLAMA, generate, generation, tiny_engine

MODELS = pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


def mixed_requests(count=9):
    """Prompts of many lengths, some sharing a prefix; greedy and sampled, filtered and not."""
    rng = random.Random(3)
    shared = [rng.randrange(256) for _ in range(70)]
    kinds = [
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": 1},
        {"temperature": 0.7, "seed": 2, "top_k": 20},
        {"temperature": 1.3, "seed": 3, "top_p": 0.9},
        {"temperature": 1.0, "seed": 1, "choice": 1, "min_p": 0.05},
    ]
    lengths = [1, 16, 17, 5, 140, 33, 15, 90, 48]
    return [
        generation(
            (shared if i % 3 == 0 else []) + [rng.randrange(256) for _ in range(lengths[i % 9])],
            max_tokens=24,
            **kinds[i % len(kinds)],
        )
        for i in range(count)
    ]


def answers_alone(config, dtype):
    return [
        generate(tiny_engine(config, dtype=dtype, enable_prefix_caching=False).engine, request)[0]
        for request in mixed_requests()
    ]


@MODELS
@DTYPES
def test_t25_alone_or_among_others_cold_or_warm_whole_or_in_chunks(config, dtype):
    alone = answers_alone(config, dtype)
    assert len({tuple(answer) for answer in alone}) > 6, "the model should not say the same thing always"

    engine = tiny_engine(config, dtype=dtype).engine
    assert generate(engine, *mixed_requests()) == alone, "among others, cold cache"
    assert generate(engine, *mixed_requests()) == alone, "among others, warm cache"
    assert engine.stats().prefix_cache_hits > 300

    for budget in (16, 37, 130):
        chunked = tiny_engine(config, dtype=dtype, max_num_batched_tokens=budget).engine
        assert generate(chunked, *mixed_requests()) == alone, f"prompts in chunks of {budget}"

    other_blocks = tiny_engine(config, dtype=dtype, block_size=32).engine
    assert generate(other_blocks, *mixed_requests()) == alone, "blocks of 32"


@MODELS
@DTYPES
def test_t42_after_preemption(config, dtype):
    alone = answers_alone(config, dtype)
    block_bytes = 16 * 2 * 2 * config.num_kv_heads * config.head_dim * (4 if dtype == "float32" else 2)
    tight = tiny_engine(config, dtype=dtype, kv_cache_memory=20 * block_bytes, max_model_len=240).engine
    assert generate(tight, *mixed_requests()) == alone
    assert tight.stats().num_preemptions > 0


@DTYPES
def test_t24_choices_differ_repeat_and_choice_0_is_the_single_answer(dtype):
    engine = tiny_engine(dtype=dtype).engine
    prompt = list(range(40))

    def choices(seed, n):
        requests = [generation(prompt, choice=c, seed=seed, temperature=2.0, max_tokens=12) for c in range(n)]
        return generate(engine, *requests)

    four = choices(42, 4)
    assert len({tuple(answer) for answer in four}) == 4
    assert choices(42, 4) == four
    assert choices(42, 1) == four[:1]
    assert not {tuple(a) for a in choices(43, 4)} & {tuple(a) for a in four}, "neighbouring seeds overlap"


def test_requests_without_a_seed_differ():
    engine = tiny_engine().engine
    request = generation(range(9), temperature=1.5, max_tokens=12)
    first, second = generate(engine, request, request)
    assert first != second


def test_a_seed_may_be_any_64_bit_number():
    engine = tiny_engine().engine
    ends = [-(2**63), -1, 0, 2**63 - 1]
    answers = generate(engine, *(generation([1], temperature=1.5, seed=seed, max_tokens=12) for seed in ends))
    assert len({tuple(answer) for answer in answers}) == 4
