"""Edges of speculative decoding: endings inside a run, limits, blocks, aborts, prefix hits."""

import random
from dataclasses import replace

import pytest

from engine.core.draft_slots import drop_drafts
from engine.core.request import RequestStatus
from engine.interface.config import EngineConfig
from engine.interface.errors import ConfigError, RequestError
from engine.interface.outputs import FinishReason
from engine.interface.speculation import DraftSource, SpeculationMode, SpeculationParams
from engine.loading.loader import build_engine
from engine.loading.speculation import measure_step_costs
from engine.speculative.step_costs import StepCosts
from tests.drafters import (
    asking,
    byte_checkpoint,
    byte_engine,
    known,
    noisy_copy,
    scripted_speculator,
)
from tests.tiny import GPT2, LLAMA, generate, generation, random_checkpoint, run_to_end, scripted_engine


def count_up(tokens):
    return (tokens[-1] + 1) % 100


def right(request, limit):
    return [(request.token_ids[-1] + 1 + i) % 100 for i in range(limit)]


def wrong(request, limit):
    return [request.token_ids[-1]] * limit


def speculating(guess=right, **settings):
    return scripted_engine(
        speculator=scripted_speculator(guess, default_mode=SpeculationMode.NGRAM), **settings
    )


def counting(start, k=8, **params):
    return asking(generation([start], **params), "ngram", k)


def finished(engine, request):
    added = engine.add_request(request)
    run_to_end(engine)
    engine.check_invariants()
    assert engine.kv_cache_manager.pool.num_free == engine.kv_cache_manager.pool.num_blocks
    return added


def test_a_right_draft_saves_steps_and_a_wrong_one_costs_none():
    fast, slow, plain = speculating(right), speculating(wrong), scripted_engine()
    for engine in (fast, slow, plain):
        assert generate(engine, counting(10, max_tokens=28)) == [list(range(11, 39))]
    assert fast.stats().num_steps == 4  # the prompt with one token, then three times eight and a bonus
    assert slow.stats().num_steps == plain.stats().num_steps == 28
    assert fast.stats().num_accepted_tokens == fast.stats().num_draft_tokens == 24
    assert slow.stats().num_accepted_tokens == 0


@pytest.mark.parametrize(
    ("stop", "reason"), [(17, FinishReason.STOP), (16, FinishReason.STOP), (18, FinishReason.LENGTH)]
)
def test_stop_and_max_tokens_crossed_in_one_step(stop, reason):
    engine = speculating()
    request = finished(engine, counting(10, max_tokens=7, stop_token_ids=frozenset({stop})))
    assert request.finish_reason is reason
    assert request.token_ids[1:] == list(range(11, min(stop, 17) + 1))
    assert engine.stats().generation_tokens == request.num_output_tokens


def test_an_end_token_inside_an_accepted_run_ends_it_there():
    engine = speculating(eos_token_ids=frozenset({14}))
    request = finished(engine, counting(10, max_tokens=30))
    assert (request.token_ids, request.finish_reason) == ([10, 11, 12, 13, 14], FinishReason.STOP)
    assert engine.stats().num_accepted_tokens == 3


def test_a_drafted_end_token_alone_ends_nothing():
    engine = speculating(lambda _request, limit: [99] * limit, eos_token_ids=frozenset({99}))
    request = finished(engine, counting(10, max_tokens=9))
    assert (request.token_ids[1:], request.finish_reason) == (list(range(11, 20)), FinishReason.LENGTH)


@pytest.mark.parametrize(
    ("params", "last"),
    [({"ignore_eos": True}, 30), ({"min_tokens": 3}, 14), ({"min_tokens": 4}, 30), ({"min_tokens": 9}, 30)],
)
def test_ignore_eos_and_min_tokens_inside_a_run(params, last):
    engine = speculating(eos_token_ids=frozenset({14}))
    request = finished(engine, counting(10, max_tokens=20, **params))
    assert request.token_ids[-1] == last


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 8, 9, 10])
def test_drafts_never_pass_max_tokens(max_tokens):
    engine = speculating()
    request = finished(engine, counting(10, max_tokens=max_tokens))
    assert request.num_output_tokens == max_tokens
    assert max(sum(n for _, n in batch) for batch in engine.executor.batches) <= max_tokens


def test_drafts_never_pass_max_model_len():
    engine = speculating(max_model_len=24, num_blocks=6)  # 6 blocks of 4: the whole pool
    request = finished(engine, asking(generation(range(10), max_tokens=14), "ngram", 8))
    assert request.num_tokens == 24
    for batch in engine.executor.batches:
        assert sum(n for _, n in batch) <= 12


def test_blocks_are_published_only_when_every_token_is_accepted():
    engine = speculating(lambda request, limit: right(request, 2) + [0] * (limit - 2))
    finished(engine, counting(10, max_tokens=20))
    follow_up = engine.add_request(generation([*range(10, 31), 70]))
    poisoned = engine.add_request(generation([10, 11, 12, 13, 14, 0, 0, 0, 0]))
    run_to_end(engine)
    assert follow_up.num_cached_tokens == 20
    assert poisoned.num_cached_tokens == 5  # the token 14 was copied, none of the rejected ones


def test_drafts_give_way_before_anybody_is_preempted():
    engine = speculating(num_blocks=8, max_model_len=32, max_num_seqs=2)
    first, second = (engine.add_request(counting(start, max_tokens=12)) for start in (10, 50))
    while engine.has_work:
        engine.step()
        engine.check_invariants()
    assert [first.token_ids[-1], second.token_ids[-1]] == [22, 62]
    assert engine.stats().num_preemptions == 0
    assert engine.kv_cache_manager.pool.num_free == 8


def test_slots_ahead_are_given_back_when_others_need_them():
    engine = speculating(num_blocks=6, max_model_len=24, max_num_seqs=4)
    ahead = engine.add_request(counting(10, max_tokens=12, k=8))
    engine.step()
    engine.speculator.propose(engine.scheduler.running)
    assert engine.kv_cache_manager.allocate_slots(ahead, 9)
    assert len(ahead.draft_token_ids) == 8
    assert drop_drafts(engine.scheduler.running, engine.kv_cache_manager)
    assert (ahead.draft_token_ids, len(ahead.block_table)) == ((), 1)
    assert not drop_drafts(engine.scheduler.running, engine.kv_cache_manager), "there is nothing more to give"
    run_to_end(engine)
    assert ahead.token_ids[-1] == 22


def test_an_abort_with_drafts_pending_gives_every_block_back():
    engine = speculating(num_blocks=16, max_model_len=64)
    request = engine.add_request(counting(10, max_tokens=40))
    engine.step()
    engine.speculator.propose(engine.scheduler.running)
    assert request.draft_token_ids
    engine.abort(request)
    engine.check_invariants()
    assert request.draft_token_ids == ()
    assert engine.kv_cache_manager.pool.num_free == 16
    assert not engine.has_work
    assert not engine.speculator._states


def test_preemption_drops_drafts():
    engine = speculating()
    request = engine.add_request(counting(10, max_tokens=40))
    engine.step()
    engine.speculator.propose(engine.scheduler.running)
    engine.scheduler._preempt(request)
    assert (request.status, request.draft_token_ids) == (RequestStatus.WAITING, ())
    run_to_end(engine)
    assert request.token_ids == list(range(10, 51))


@pytest.mark.parametrize("seed", range(3))
def test_random_operations_with_drafts_keep_every_promise(seed):
    rng = random.Random(seed)

    def guess(request, limit):
        return [t if rng.random() < 0.7 else rng.randrange(100) for t in right(request, limit)]

    engine = speculating(guess, num_blocks=12, max_model_len=40, max_num_seqs=4, max_num_batched_tokens=11)
    alive, num_finished = [], 0
    for _ in range(1_500):
        action = rng.random()
        if action < 0.2 and len(alive) < 12:
            start = rng.choice([0, 0, 50])
            prompt = range(start, start + rng.randrange(1, 20))
            mode, k = rng.choice([("ngram", rng.randrange(1, 9)), ("auto", None), ("off", None)])
            alive.append(
                engine.add_request(asking(generation(prompt, max_tokens=rng.randrange(1, 20)), mode, k))
            )
        elif action < 0.25 and alive:
            engine.abort(alive.pop(rng.randrange(len(alive))))
        elif engine.has_work:
            engine.step()
        engine.check_invariants()
        for request in [r for r in alive if r.finish_reason]:
            first = request.prompt_token_ids[-1] + 1
            answer = request.token_ids[request.num_prompt_tokens :]
            assert answer == [(first + i) % 100 for i in range(request.params.max_tokens)]
            alive.remove(request)
            num_finished += 1
    run_to_end(engine)
    engine.check_invariants()
    assert num_finished > 60
    assert engine.stats().num_accepted_tokens > 30
    assert engine.kv_cache_manager.pool.num_free == 12


# The draft model's KV.


def draft_requests(count=8):
    rng = random.Random(2)
    return [
        generation(
            [rng.randrange(255) for _ in range(40 + i)], seed=i, max_tokens=24, temperature=0.7 * (i % 2)
        )
        for i in range(count)
    ]


def accepted(engine, generations, mode="draft", k=4):
    """Accepted draft tokens of each request, which run one after the other."""
    counts = []
    for request in generations:
        before = engine.stats().num_accepted_tokens
        engine.add_request(asking(request, mode, k))
        run_to_end(engine)
        engine.check_invariants()
        counts.append(engine.stats().num_accepted_tokens - before)
    return counts


@pytest.fixture
def noisy():
    return noisy_copy(byte_checkpoint(), 0.02)


def test_acceptance_on_a_warm_prefix_equals_acceptance_on_a_cold_one(noisy):
    cold_engine = byte_engine(draft=noisy, enable_prefix_caching=False)
    cold = accepted(cold_engine, draft_requests())
    assert sum(cold) > 20
    engine = byte_engine(draft=noisy)
    assert accepted(engine, draft_requests()) == cold
    assert accepted(engine, draft_requests()) == cold, "warm, in blocks that the draft model has written"
    assert engine.stats().prefix_cache_hits > 200

    unwritten = byte_engine(draft=noisy)
    accepted(unwritten, draft_requests(), mode="off", k=None)
    hits = unwritten.stats().prefix_cache_hits
    assert accepted(unwritten, draft_requests()) == cold, "warm, in blocks that the draft model never wrote"
    assert unwritten.stats().prefix_cache_hits > hits


def test_a_prefix_hit_saves_the_draft_model_what_it_has_written(noisy):
    engine = byte_engine(draft=noisy)
    request = asking(generation(list(range(100)), max_tokens=8), "draft", 2)
    sizes = []
    draft = engine.executor.draft
    engine.executor.draft = lambda jobs: sizes.append(sum(len(j.token_ids) for j in jobs)) or draft(jobs)
    generate(engine, request)
    assert sizes[0] == 101
    sizes.clear()
    generate(engine, request)
    assert sizes[0] == 101 - 96


def test_the_draft_model_reads_a_long_prompt_in_parts(noisy):
    engine = byte_engine(draft=noisy, max_num_batched_tokens=32)
    request = generation([7 * i % 255 for i in range(100)], max_tokens=20)
    expected = generate(byte_engine(), request)
    assert generate(engine, asking(request, "draft", 4)) == expected
    assert engine.stats().num_draft_tokens > 0


def test_a_shorter_context_of_the_draft_model_ends_drafting_not_the_answer():
    draft = replace(byte_checkpoint(), config=replace(LLAMA, max_position_embeddings=64), name="short")
    engine = byte_engine(draft=draft)
    request = generation(range(40), max_tokens=60)
    assert generate(engine, asking(request, "draft", 4)) == generate(byte_engine(), request)
    assert 0 < engine.stats().num_accepted_tokens <= 24


def test_acceptance_does_not_decay_over_a_thousand_requests(noisy):
    engine = byte_engine(draft=noisy, kv_cache_memory=2**21)
    generations = [
        asking(generation([3 * i % 250, i % 7], seed=i, max_tokens=6, temperature=0.7), "draft", 3)
        for i in range(100)
    ]
    shares = []
    for _ in range(10):
        before = engine.stats()
        generate(engine, *generations)
        after = engine.stats()
        drafted = after.num_draft_tokens - before.num_draft_tokens
        shares.append((after.num_accepted_tokens - before.num_accepted_tokens, drafted))
    assert shares[0][0] > 30
    assert shares == shares[:1] * 10
    assert engine.kv_cache_manager.pool.num_free == engine.kv_cache_manager.pool.num_blocks


# Vocabularies.


def test_padding_rows_of_either_model_are_never_drafted_or_sampled():
    def padded(seed, rows):
        checkpoint = random_checkpoint(replace(LLAMA, vocab_size=rows), seed=seed)
        tokens = checkpoint.tokenizer.tokens[:201]
        return replace(checkpoint, tokenizer=replace(checkpoint.tokenizer, tokens=tokens))

    config = EngineConfig(device="cpu", dtype="float32", kv_cache_memory=2**24)
    request = generation([1, 2], max_tokens=40, temperature=1.5, seed=3)
    expected = generate(build_engine(padded(0, 203), config).engine, request)
    engine = build_engine(padded(0, 203), config, padded(0, 256)).engine
    assert generate(engine, asking(request, "draft", 5)) == expected
    assert max(expected[0]) <= 200
    assert engine.stats().num_draft_tokens > 0


def changed(**changes):
    checkpoint = byte_checkpoint()
    return replace(checkpoint, tokenizer=replace(checkpoint.tokenizer, **changes), name="other")


def test_a_draft_of_another_vocabulary_is_refused_at_start():
    tokens = byte_checkpoint().tokenizer.tokens
    config = EngineConfig(device="cpu", dtype="float32", kv_cache_memory=2**24)
    permuted = (*tokens[:65], tokens[66], tokens[65], *tokens[67:])
    for draft, message in (
        (
            changed(tokens=permuted),
            "2 token ids mean something else; the first is 65, which is 'B' in the draft",
        ),
        (changed(tokens=tokens[:-1]), "its tokenizer has 255 tokens, the target's 256"),
        (changed(tokens=(*tokens, "<more>")), "its tokenizer has 257 tokens, the target's 256"),
        (random_checkpoint(replace(LLAMA, vocab_size=100)), "it knows 100 tokens, the target has 256"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_engine(byte_checkpoint(), config, draft)


def test_a_draft_model_that_is_not_there_is_an_error():
    config = EngineConfig(device="cpu", kv_cache_memory=2**24, speculation="draft")
    with pytest.raises(ConfigError, match="'draft' needs a draft model"):
        build_engine(byte_checkpoint(), config)
    engine = byte_engine()
    with pytest.raises(RequestError, match="needs a draft model") as caught:
        engine.add_request(asking(generation([1]), "draft"))
    assert caught.value.param == "speculation.mode"
    with pytest.raises(RequestError, match="between 1 and 16, got 17"):
        SpeculationParams(k=17)


def test_both_models_share_the_memory_for_keys_and_values(noisy):
    plain, paired = (byte_engine(draft=draft, kv_cache_memory=2**20) for draft in (None, noisy))
    pool, storage = paired.kv_cache_manager.pool, paired.executor.draft_model.model.kv_storage
    assert pool.num_blocks == storage.num_blocks == plain.kv_cache_manager.pool.num_blocks // 2


def test_prices_are_measured_at_start_and_leave_nothing_behind(noisy):
    engine = byte_engine(draft=noisy, speculation="auto", enable_prefix_caching=True)
    costs = engine.speculator.target_costs, engine.speculator.draft_costs
    assert all(cost.is_measured for cost in costs)
    assert all(cost.seconds(1) <= cost.seconds(64) for cost in costs)
    engine.check_invariants()
    pool = engine.kv_cache_manager.pool
    assert pool.num_free == pool.num_blocks
    assert not any(block.block_hash for block in pool.blocks)
    assert not engine.speculator.draft_cache._written
    tiny_pool = byte_engine(speculation="auto", kv_cache_memory=16 * 2 * 2 * 2 * 16 * 4 * 2)
    assert len(generate(tiny_pool, generation(range(20)))[0]) == 8


def test_a_gpt2_draft_for_a_llama_target():
    engine = byte_engine(draft=byte_checkpoint(GPT2, seed=4))
    request = generation(range(30), max_tokens=30, temperature=1.0, seed=1)
    assert generate(engine, asking(request, "draft", 3)) == generate(byte_engine(), request)


def test_outputs_say_what_was_drafted_and_accepted():
    engine = speculating(lambda request, limit: right(request, 2) + [0] * (limit - 2))
    engine.add_request(counting(10, max_tokens=8, k=4))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    assert [o.token_ids for o in outputs] == [(11,), (12, 13, 14), (15, 16, 17), (18,)]
    assert [o.speculation and o.speculation.source for o in outputs[:3]] == [None, *[DraftSource.NGRAM] * 2]
    assert [(o.num_draft_tokens, o.num_accepted_tokens) for o in outputs[:3]] == [(0, 0), (4, 2), (3, 2)]
    assert outputs[-1].speculation.seconds > 0
    stats = engine.stats()
    assert (stats.num_drafts, stats.num_draft_tokens, stats.num_accepted_tokens) == (2, 7, 4)
    assert stats.drafted_by_position[:5] == (2, 2, 2, 1, 0)
    assert stats.accepted_by_position[:5] == (2, 2, 0, 0, 0)


def test_known_answers_cover_the_kinds():
    guess = known({0: [1, 2, 3, 4, 5, 6]}, "alternating")
    request = scripted_engine().add_request(generation([9]))
    assert list(guess(request, 4)) != [1, 2, 3, 4]
    assert list(known({0: [1, 2]}, "right")(request, 4)) == [1, 2]


@pytest.mark.parametrize(("max_model_len", "num_steps"), [(2, 1), (3, 2), (64, 4)])
def test_the_draft_model_is_measured_within_the_positions_that_there_are(max_model_len, num_steps):
    """Tables of positions end at max_model_len: the kernels would read past them."""
    engine = byte_engine(draft=noisy_copy(byte_checkpoint(), 0.02), max_model_len=max_model_len)
    measured = []

    def chain(_model_input, rows, steps):
        measured.append(steps)
        return [[0] * steps for _ in rows]

    engine.executor.draft_model._chain = chain
    measure_step_costs(
        engine.executor,
        num_positions=max_model_len - 1,
        block_size=16,
        target_costs=StepCosts(),
        draft_costs=StepCosts(),
    )
    assert set(measured) == {num_steps}
    assert engine.kv_cache_manager.pool.num_free == engine.kv_cache_manager.pool.num_blocks


@pytest.mark.parametrize("part", [1.0, 0.5])
def test_a_prediction_saves_steps_and_changes_nothing(part):
    """Right to its end, or from its middle on about something else."""
    engine = byte_engine(enable_prefix_caching=False)
    plain = generation(b"Once upon a time", max_tokens=60, temperature=0.8, seed=3)
    [answer] = generate(engine, asking(plain, "off"))
    right = answer[: int(len(answer) * part)]
    guess = (*right, *[(token + 1) % 250 for token in answer[len(right) :]])
    predicted = replace(asking(plain, "ngram", 8), prediction=guess)
    before = engine.stats().num_steps
    assert generate(engine, predicted) == [answer]
    assert engine.stats().num_steps - before < 60 - len(right) + len(right) // 4
    engine.close()
