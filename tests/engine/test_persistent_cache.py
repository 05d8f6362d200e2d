"""A prefix cache that outlives the engine: the same tokens, warm, and never another's block."""

import random
from types import SimpleNamespace

import pytest

from engine.checkpoint import load_checkpoint
from engine.core.engine import Engine
from engine.interface.cache_explanation import CacheEnd
from engine.interface.config import EngineConfig
from engine.interface.outputs import FinishReason
from engine.kernels.cpu.library import library_path
from engine.kv_cache import persistence
from engine.kv_cache.block import Block
from engine.kv_cache.block_pool import BlockPool
from engine.kv_cache.kv_cache_manager import KVCacheManager
from engine.kv_cache.persistence import Persistence
from engine.loading.loader import build_engine
from engine.loading.persistence import _hash_of, _kernel_files
from tests.engine.kv_cache.test_block_files import open_files
from tests.engine.test_pair import PAIR
from tests.tiny import ScriptedExecutor, generate, generation, run_to_end, scripted_engine

PROMPT = [7, 3, *range(40, 140), *range(200, 260)]


def scripted(path, *, num_blocks=64, max_bytes=2**20, steps_ahead=0):
    """An engine over a script that knows tokens from its blocks alone: a wrong block is a wrong answer."""
    executor = ScriptedExecutor(lambda tokens: (tokens[-1] + 1) % 100, block_size=4, steps_ahead=steps_ahead)
    files = open_files(path, max_bytes=max_bytes)
    manager = KVCacheManager(
        BlockPool(num_blocks),
        block_size=4,
        enable_prefix_caching=True,
        persistence=Persistence(executor, files),
    )
    return Engine(
        executor,
        manager,
        max_model_len=128,
        max_num_seqs=8,
        max_num_batched_tokens=64,
        vocab_size=100,
        eos_token_ids=frozenset(),
        secret=b"s" * 32,
    )


def ask(engine, prompt, **params):
    request = engine.add_request(generation(prompt, **params))
    run_to_end(engine)
    engine.check_invariants()
    return request


@pytest.mark.parametrize("steps_ahead", [0, 2])
def test_a_prefix_is_warm_in_the_next_process(tmp_path, steps_ahead):
    first = scripted(tmp_path, steps_ahead=steps_ahead)
    prompt = list(range(30))
    expected = ask(first, prompt).token_ids
    first.close()
    second = scripted(tmp_path, steps_ahead=steps_ahead)
    again = ask(second, prompt)
    assert again.token_ids == expected
    assert again.num_cached_tokens == 28
    assert ask(second, prompt[:20]).num_cached_tokens == 19, "what was restored is cached as ever"
    second.close()


def test_a_lookup_counts_what_files_hold_and_reads_none_of_it(tmp_path):
    first = scripted(tmp_path)
    ask(first, range(30))
    first.close()
    second = scripted(tmp_path)
    pool = second.kv_cache_manager.pool
    for prompt, num_cached, end in (
        (range(30), 28, CacheEnd.NEVER_SEEN),
        (range(20), 16, CacheEnd.NEVER_SEEN),
        ([*range(17), 50, 51], 16, CacheEnd.NEVER_SEEN),
        ([50, 51], 0, CacheEnd.NEVER_SEEN),
    ):
        found = second.look_up_cache(generation(prompt))
        assert (found.num_cached_tokens, found.end) == (num_cached, end)
    assert all(block.block_hash is None for block in pool.blocks)
    request = ask(second, range(30))
    assert second.look_up_cache(generation(range(30))).end is CacheEnd.END_OF_PROMPT
    assert request.num_cached_tokens == 28
    second.close()


def test_a_prefix_goes_on_in_what_was_answered(tmp_path):
    first = scripted(tmp_path)
    answered = ask(first, range(10), max_tokens=20).token_ids
    first.close()
    second = scripted(tmp_path)
    assert ask(second, [*answered, 50]).num_cached_tokens == 28
    second.close()


def test_long_prefixes_come_back_in_parts_and_nobody_waits_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.core.scheduler._RESTORED_IN_A_STEP", 3)
    first = scripted(tmp_path)
    prompts = [[start, *range(60)] for start in range(4)]
    expected = [ask(first, prompt).token_ids for prompt in prompts]
    first.close()
    second = scripted(tmp_path)
    requests = [second.add_request(generation(prompt)) for prompt in prompts]
    run_to_end(second)
    second.check_invariants()
    assert [request.token_ids for request in requests] == expected
    assert all(request.num_cached_tokens >= 56 for request in requests)
    second.close()


def test_a_damaged_block_ends_the_prefix_and_is_computed_again(tmp_path):
    first = scripted(tmp_path)
    expected = ask(first, range(30)).token_ids
    first.close()
    files = sorted((tmp_path / "blocks").iterdir(), key=lambda file: file.stat().st_mtime_ns)
    for file in files[2:]:
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    second = scripted(tmp_path)
    again = ask(second, range(30))
    assert again.token_ids == expected
    assert again.num_cached_tokens == 8
    second.close()
    third = scripted(tmp_path)
    assert ask(third, range(30)).num_cached_tokens == 28
    third.close()


def test_tenants_stay_apart(tmp_path):
    first = scripted(tmp_path)
    generate(first, generation(range(30), salt=b"alice"))
    first.close()
    second = scripted(tmp_path)
    bob = second.add_request(generation(range(30), salt=b"bob"))
    alice = second.add_request(generation(range(30), salt=b"alice"))
    run_to_end(second)
    assert bob.num_cached_tokens == 0
    assert alice.num_cached_tokens == 28
    second.close()


def test_a_pool_that_is_short_restores_nothing_it_cannot_hold(tmp_path):
    first = scripted(tmp_path)
    prompts = [[start, *range(40)] for start in range(6)]
    expected = [ask(first, prompt, max_tokens=4).token_ids for prompt in prompts]
    first.close()
    second = scripted(tmp_path, num_blocks=16)
    requests = [second.add_request(generation(prompt, max_tokens=4)) for prompt in prompts]
    run_to_end(second)
    second.check_invariants()
    assert [request.token_ids for request in requests] == expected
    second.close()


def test_a_block_that_was_given_away_is_not_saved_under_its_old_name(tmp_path):
    """A pool so small that blocks are used again before there is time to save them."""
    first = scripted(tmp_path, num_blocks=24)
    first.write_back = lambda max_blocks=0: False
    prompts = [[start, *range(30)] for start in range(0, 90, 3)]
    expected = [ask(first, prompt, max_tokens=2).token_ids for prompt in prompts]
    del first.write_back
    first.close()
    second = scripted(tmp_path, num_blocks=24)
    again = [ask(second, prompt, max_tokens=2) for prompt in prompts]
    assert [request.token_ids for request in again] == expected
    assert 0 < sum(request.num_cached_tokens == 28 for request in again) < len(prompts)
    second.close()


class SlowFiles:
    """Files that have no room until they are given some."""

    def __init__(self):
        self.saved, self.has_room, self.closed_after = [], False, None

    def __contains__(self, block_hash):
        return False

    def is_whole(self, block_hash):
        return False

    def save(self, block_hash, body):
        self.saved.append((block_hash, body))

    def close(self, timeout):
        self.closed_after = timeout


def test_a_disk_that_cannot_keep_up_holds_up_neither_a_step_nor_the_end(monkeypatch):
    monkeypatch.setattr(persistence, "_MAX_UNSAVED", 3)
    monkeypatch.setattr(persistence, "_CLOSE_SECONDS", 0.1)
    files = SlowFiles()
    copies = []
    executor = SimpleNamespace(read_block=lambda block_id: copies.append(block_id) or b"")
    keeper = Persistence(executor, files)
    blocks = [Block(number, block_hash=bytes([number])) for number in range(5)]
    for block in blocks:
        keeper.note(block, block.block_hash)
    assert keeper.write_back(16), "they are left for later"
    assert not copies, "and not copied for nothing"
    keeper.close()
    assert files.closed_after == 0.0
    files.has_room = True
    assert not keeper.write_back(16)
    assert [block_hash for block_hash, _ in files.saved] == [bytes([2]), bytes([3]), bytes([4])]


@pytest.mark.parametrize("steps_ahead", [0, 2])
@pytest.mark.parametrize("seed", range(5))
def test_restarts_at_random_change_no_answer(tmp_path, seed, steps_ahead):
    """Shared prefixes, aborts, tight memory, few bytes of files, damage, and an end without close()."""
    chance = random.Random(seed)
    prefixes = [[chance.randrange(100) for _ in range(40)] for _ in range(3)]
    for _ in range(6):
        engine = scripted(tmp_path, num_blocks=30, max_bytes=4000, steps_ahead=steps_ahead)
        added, expected = [], []
        for _ in range(10):
            prompt = [*chance.choice(prefixes)[: chance.randrange(1, 40)], chance.randrange(100)]
            request = generation(prompt, max_tokens=chance.randrange(1, 20))
            expected.append(generate(scripted_engine(), request)[0])
            added.append(engine.add_request(request))
            for _ in range(chance.randrange(4)):
                engine.step()
                engine.check_invariants()
            if chance.random() < 0.1:
                engine.abort(added[-1])
        run_to_end(engine)
        engine.check_invariants()
        for request, answer in zip(added, expected, strict=True):
            if request.finish_reason is not FinishReason.ABORT:
                assert request.token_ids[request.num_prompt_tokens :] == answer
        if chance.random() < 0.5:
            engine.close()
        else:
            engine.kv_cache_manager.persistence._files.close()  # what was not saved is lost
        for file in chance.sample(sorted((tmp_path / "blocks").iterdir()), 3):
            file.write_bytes(file.read_bytes()[:-1] + b"?")


@pytest.mark.parametrize(
    "way", [{"kernels": "auto"}, {"kernels": "torch"}, {"kv_cache_dtype": "int8"}], ids=str
)
@pytest.mark.parametrize("params", [{}, {"temperature": 1.0, "seed": 5}], ids=str)
def test_real_answers_are_the_same_to_the_bit(tmp_path, way, params):
    if way == {"kv_cache_dtype": "int8"} and not has_kernels():
        pytest.skip("needs the kernels")
    config = EngineConfig(
        device="cpu", kv_cache_memory=2**24, max_model_len=256, kv_cache_dir=str(tmp_path / "cache"), **way
    )
    checkpoint = load_checkpoint(str(PAIR / "target"))
    answers, cached = [], []
    for _ in range(2):
        engine = build_engine(checkpoint, config).engine
        request = ask(engine, PROMPT, max_tokens=30, logprobs=2, ignore_eos=True, **params)
        answers.append((request.token_ids, request.num_output_tokens))
        cached.append(request.num_cached_tokens)
        engine.close()
    assert answers[0] == answers[1]
    assert cached == [0, len(PROMPT) // 16 * 16]
    other = EngineConfig(**{**vars(config), "block_size": 32})
    engine = build_engine(checkpoint, other).engine
    assert ask(engine, PROMPT, max_tokens=2).num_cached_tokens == 0, "blocks of another layout are none"
    engine.close()


def has_kernels():
    from engine.kernels.cpu.library import load_library

    return load_library() is not None


def test_a_directory_names_the_kernels_that_filled_it():
    """Other kernels may add in another order: their blocks are none of ours."""
    files = {kernels: _kernel_files(kernels) for kernels in ("torch", "triton", "avx2")}
    assert files["torch"] == []
    assert {path.name for path in files["triton"]} > {"attention_kernel.py", "few_rows.py", "write_kv.py"}
    assert files["avx2"] == [path for path in [library_path()] if path is not None]
    assert len({_hash_of(found) for found in files.values()}) == 2 + (library_path() is not None)
