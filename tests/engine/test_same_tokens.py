"""Same seed, same tokens: the promise, bit for bit, on random models.

Every case runs the same requests in a way that must not matter and compares whole answers, in plain torch and
in the CPU kernels: both sum each row in an order that depends on nothing but the row.
"""

import random

import pytest

from engine.kernels.cpu.library import load_library
from tests.tiny import GPT2, LLAMA, generate, generation, tiny_engine

MODELS = pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
WAYS = {
    "torch-float32": {"kernels": "torch", "dtype": "float32"},
    "torch-bfloat16": {"kernels": "torch", "dtype": "bfloat16"},
    "fused-float32": {"dtype": "float32"},
    "fused-bfloat16": {"dtype": "bfloat16"},
    "fused-q4_1": {"dtype": "auto", "quantization": "q4_1"},
    "fused-int8-kv": {"dtype": "auto", "quantization": "q8_0", "kv_cache_dtype": "int8"},
}
NEEDS_KERNELS = pytest.mark.skipif(load_library() is None, reason="there was no C++ compiler")
EVERY_WAY = pytest.mark.parametrize(
    "way",
    [
        pytest.param(way, id=name, marks=NEEDS_KERNELS if "fused" in name else ())
        for name, way in WAYS.items()
    ],
)


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


def answers_alone(config, way):
    return [
        generate(tiny_engine(config, **way, enable_prefix_caching=False).engine, request)[0]
        for request in mixed_requests()
    ]


@MODELS
@EVERY_WAY
def test_alone_or_among_others_cold_or_warm_whole_or_in_chunks(config, way):
    alone = answers_alone(config, way)
    assert len({tuple(answer) for answer in alone}) > 6, "the model should not say the same thing always"

    engine = tiny_engine(config, **way).engine
    assert generate(engine, *mixed_requests()) == alone, "among others, cold cache"
    assert generate(engine, *mixed_requests()) == alone, "among others, warm cache"
    assert engine.stats().prefix_cache_hits > 300

    for budget in (16, 37, 130):
        chunked = tiny_engine(config, **way, max_num_batched_tokens=budget).engine
        assert generate(chunked, *mixed_requests()) == alone, f"prompts in chunks of {budget}"

    other_blocks = tiny_engine(config, **way, block_size=32).engine
    assert generate(other_blocks, *mixed_requests()) == alone, "blocks of 32"


@MODELS
@EVERY_WAY
def test_prompts_that_part_within_a_block(config, way):
    """The tokens that two prompts share in their last common block are copied, not computed."""
    rng = random.Random(5)
    shared = [rng.randrange(256) for _ in range(200)]
    requests = [
        generation([*shared[:length], rng.randrange(256), 7], max_tokens=12, seed=length, temperature=0.9)
        for length in (183, 170, 190, 177, 140, 5, 12, 200)
    ]
    alone = [
        generate(tiny_engine(config, **way, enable_prefix_caching=False).engine, request)[0]
        for request in requests
    ]
    engine = tiny_engine(config, **way).engine
    assert [generate(engine, request)[0] for request in requests] == alone
    # Shared with the latest that went on from a prefix: 12 finds the block of 5, 200 finds that of 177.
    assert engine.stats().prefix_cache_hits == sum([0, 170, 183, 177, 140, 5, 5, 177])
    assert generate(engine, *requests) == alone, "together"


@MODELS
@EVERY_WAY
def test_after_preemption(config, way):
    alone = answers_alone(config, way)
    info = tiny_engine(config, **way).info
    block_bytes = info.kv_cache_bytes // info.num_kv_blocks
    tight = tiny_engine(config, **way, kv_cache_memory=20 * block_bytes, max_model_len=240).engine
    assert generate(tight, *mixed_requests()) == alone
    assert tight.stats().num_preemptions > 0


@EVERY_WAY
def test_choices_differ_repeat_and_choice_0_is_the_single_answer(way):
    engine = tiny_engine(**way).engine
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
