"""The CUDA executor over the kernels' twins: what torch answers, whatever is captured, known or under way."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.checkpoint.model_config import Activation, Norm
from engine.core.executor import DraftJob
from engine.core.rows import RowCursor
from engine.execution.cuda.special_rows import is_adjusted, is_in_torch, is_special
from engine.interface.config import EngineConfig
from engine.interface.outputs import FinishReason
from engine.interface.pooling import Pooling
from engine.interface.sampled_row import RowHistory, SampledRow
from engine.interface.sampling_params import SamplingParams
from engine.kernels.cuda.request_state import LAST_TOKEN
from engine.kernels.cuda.twins.torch_kernels import torch_kernels
from engine.loading.loader import build_engine
from tests.cuda_engine import cuda_engine
from tests.cuda_stand_in import no_host_reads
from tests.drafters import asking, byte_checkpoint, noisy_copy
from tests.engine.speculative.test_identity import requests, run
from tests.engine.test_same_tokens import mixed_requests
from tests.tiny import LLAMA, InMemoryTensor, generate, generation, random_checkpoint, run_to_end, tiny_engine

SMALL = replace(
    LLAMA,
    hidden_size=40,
    intermediate_size=56,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_position_embeddings=256,
)
QWEN3 = replace(SMALL, architecture="qwen3", qk_norm=True, tie_word_embeddings=False)
QWEN2 = replace(SMALL, architecture="qwen2", qkv_bias=True, vocab_size=256)
GPT2 = replace(
    SMALL,
    architecture="gpt2",
    hidden_size=48,
    num_heads=3,
    num_kv_heads=3,
    norm=Norm.LAYER,
    is_gated=False,
    has_qkv_proj=True,
    rope=None,
    activation=Activation.GELU_TANH,
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
)
FAMILIES = {"llama": SMALL, "qwen2": QWEN2, "qwen3": QWEN3, "gpt2": GPT2}
DEPTHS = pytest.mark.parametrize("steps_ahead", [0, 1, 2])


@functools.cache
def answers_in_torch(family, count=9):
    config = FAMILIES[family]
    return [
        generate(tiny_engine(config, kernels="torch", enable_prefix_caching=False).engine, request)[0]
        for request in mixed_requests(count)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_as_in_torch(family):
    loaded, expected = cuda_engine(FAMILIES[family]), answers_in_torch(family, 5)
    with no_host_reads(loaded.backend.device):
        assert generate(loaded.engine, *mixed_requests(5)) == expected


@DEPTHS
@pytest.mark.parametrize("is_captured", [True, False], ids=["graphs", "launches"])
def test_cold_warm_in_chunks_and_preempted(steps_ahead, is_captured):
    """G4: prompts in chunks and preemption while steps are under way; G9: cold and warm."""
    expected = answers_in_torch("llama")
    settings = {"steps_ahead": steps_ahead, "is_captured": is_captured}
    loaded = cuda_engine(SMALL, **settings)
    with no_host_reads(loaded.backend.device):
        assert generate(loaded.engine, *mixed_requests()) == expected, "cold"
        assert generate(loaded.engine, *mixed_requests()) == expected, "warm"
    assert (loaded.backend.device.num_captures > 0) is is_captured
    chunked = cuda_engine(SMALL, max_num_batched_tokens=16, **settings).engine
    assert generate(chunked, *mixed_requests()) == expected, "prompts in chunks"
    block_bytes = loaded.info.kv_cache_bytes // loaded.info.num_kv_blocks
    tight = cuda_engine(SMALL, kv_cache_memory=20 * block_bytes, max_model_len=240, **settings).engine
    assert generate(tight, *mixed_requests()) == expected, "preempted"
    assert tight.stats().num_preemptions > 0


def test_a_request_that_leaves_disturbs_nobody_at_any_step():
    """G4: aborts with tokens under way, and another request in the same row of the device's table."""
    expected = answers_in_torch("llama", 4)
    for steps in (1, 2, 3, 7):
        engine = cuda_engine(SMALL, steps_ahead=2, max_num_seqs=3).engine
        leaving = engine.add_request(generation(range(30), max_tokens=50, temperature=0.9, seed=8))
        added = [engine.add_request(request) for request in mixed_requests(4)]
        for _ in range(steps):
            engine.step()
        engine.abort(leaving)
        run_to_end(engine)
        engine.check_invariants()
        assert [one.token_ids[one.num_prompt_tokens :] for one in added] == expected, steps


def byte_engines(draft=None, **settings):
    settings = {"max_num_batched_tokens": 64, "max_num_seqs": 18} | settings
    checkpoint = byte_checkpoint(SMALL)
    return cuda_engine(SMALL, checkpoint=checkpoint, draft=draft, **settings).engine


@functools.cache
def every_answer():
    """What torch says of requests with every parameter."""
    config = EngineConfig(device="cpu", dtype="float32", kernels="torch", kv_cache_memory=2**24)
    engine = build_engine(byte_checkpoint(SMALL), config).engine
    answers = run(engine, requests(14, max_tokens=12))
    engine.close()
    return answers


def assert_same(answers, expected):
    for number, (ours, theirs) in enumerate(zip(answers, expected, strict=True)):
        assert ours[:2] == theirs[:2], number
        for mine, reference in ((ours[2], theirs[2]), (ours[3], theirs[3])):
            assert [score.token_id for score in mine] == [score.token_id for score in reference], number
            assert [score.logprob for score in mine] == pytest.approx(
                [score.logprob for score in reference], abs=1e-4
            )
            for score, other in zip(mine, reference, strict=True):
                assert [token for token, _ in score.top] == [token for token, _ in other.top], number


@DEPTHS
def test_every_parameter(steps_ahead):
    engine = byte_engines(steps_ahead=steps_ahead)
    assert_same(run(engine, requests(14, max_tokens=12)), every_answer())
    engine.close()


@pytest.mark.parametrize("mode", ["ngram", "draft", "auto"])
def test_every_kind_of_draft(mode):
    draft = noisy_copy(byte_checkpoint(SMALL), 0.02)
    engine = byte_engines(draft=draft)
    asked = [asking(r, mode, 3 if i % 2 else None) for i, r in enumerate(requests(14, max_tokens=12))]
    assert_same(run(engine, asked), every_answer())
    assert engine.stats().num_accepted_tokens > 0
    engine.close()


def draft_job(request, length):
    return DraftJob(tuple(request.token_ids), 0, request.block_ids, length, RowCursor(request))


def test_a_chain_of_drafts_is_what_the_model_says_token_by_token():
    """The draft model is the target itself, so each draft is the target's own choice."""
    checkpoint = byte_checkpoint(SMALL)
    loaded = cuda_engine(SMALL, checkpoint=checkpoint, draft=checkpoint, steps_ahead=0)
    engine, device = loaded.engine, loaded.backend.device
    kinds = [(range(20), {}), (range(40, 49), {"temperature": 0.8, "seed": 4})]
    added = [engine.add_request(generation(prompt, max_tokens=20, **params)) for prompt, params in kinds]
    engine.step()
    known = [len(request.token_ids) for request in added]
    for _ in range(3):  # run, captured, replayed
        drafts = engine.executor.draft([draft_job(request, 4) for request in added])
    replays = device.num_replays
    assert [sum(p.num_steps for p in drafts.passes)] == [4]
    run_to_end(engine)
    for request, first, tokens in zip(added, known, drafts.token_ids, strict=True):
        assert list(tokens) == request.token_ids[first : first + 4]
    assert replays > 0


def test_drafts_after_a_pass_that_failed_on_its_way(monkeypatch):
    """What the host took for sent is sent again: a table without blocks and parameters drafts anything."""
    checkpoint = byte_checkpoint(SMALL)
    engine = cuda_engine(SMALL, checkpoint=checkpoint, draft=checkpoint, steps_ahead=0).engine
    request = engine.add_request(generation(range(40), max_tokens=20, temperature=0.8, seed=4))
    engine.step()
    known, job = len(request.token_ids), draft_job(request, 4)

    def broken(source, target):
        raise RuntimeError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(engine.executor.draft_model.runner.device, "send", broken)
        with pytest.raises(RuntimeError, match="planted"):
            engine.executor.draft([job])
    [drafted] = engine.executor.draft([draft_job(request, 4)]).token_ids
    run_to_end(engine)
    assert list(drafted) == request.token_ids[known : known + 4]


def test_prompts_that_are_pooled_and_scored():
    """Beside others that decode; a prompt that is only read ends without a token."""
    made = [
        generation(range(30), max_tokens=0, pooling=Pooling.MEAN),
        generation(range(5, 45), max_tokens=0, pooling=Pooling.LAST),
        generation(range(60, 90), max_tokens=3, prompt_logprobs=4),
        generation(range(7), max_tokens=9),
    ]
    found = []
    for engine in (tiny_engine(SMALL, kernels="torch").engine, cuda_engine(SMALL).engine):
        added = [engine.add_request(request) for request in made]
        run_to_end(engine)
        sums = [np.frombuffer(one.pooled_sum.mean(), dtype="<f4") for one in added[:2]]
        scores = [score.logprob for score in added[2].prompt_logprobs]
        found.append((sums, scores, [one.token_ids for one in added]))
    (sums, scores, tokens), (ours, our_scores, our_tokens) = found
    assert our_tokens == tokens
    assert our_scores == pytest.approx(scores, abs=1e-4)
    for mine, theirs in zip(ours, sums, strict=True):
        assert np.allclose(mine, theirs, atol=1e-3)


def test_values_that_are_not_finite_end_their_request_alone():
    """G2, G3: neither padding nor the blocks that the request leaves carry anything to others."""
    broken, config = 200, replace(SMALL, tie_word_embeddings=False)
    checkpoint = random_checkpoint(config)
    table = checkpoint.tensors["embed_tokens.weight"].dequantize().clone()
    table[broken] = float("nan")
    tensors = {**checkpoint.tensors, "embed_tokens.weight": InMemoryTensor(table)}
    checkpoint = replace(checkpoint, tensors=tensors)
    good = [generation(range(20, 50), max_tokens=10), generation([7] * 9, max_tokens=10)]
    expected = generate(cuda_engine(config, checkpoint=checkpoint).engine, *good)
    engine = cuda_engine(config, checkpoint=checkpoint).engine
    for prompt in ([broken] * 20, [1, 2, broken], [5] * 25 + [broken] * 9):
        bad = engine.add_request(generation(prompt, max_tokens=10))
        added = [engine.add_request(request) for request in good]
        run_to_end(engine)
        engine.check_invariants()
        assert bad.finish_reason is FinishReason.ERROR
        assert [one.token_ids[one.num_prompt_tokens :] for one in added] == expected


def test_nan_planted_in_padding_reaches_nobody():
    """G2: what padded rows compute is read by no other, and their keys and values are zeros again."""
    expected = answers_in_torch("llama", 3)
    loaded = cuda_engine(SMALL, enable_prefix_caching=False)
    runner = loaded.engine.executor.runner
    added = [loaded.engine.add_request(request) for request in mixed_requests(3)]
    while loaded.engine.has_work:
        loaded.engine.step()
        for buffer in (runner.hidden.hidden, runner.hidden.logits):
            buffer.fill_(float("nan"))
        for keys, values in runner.kv_storage.layers:
            keys[-1], values[-1] = float("nan"), float("nan")
    assert [one.token_ids[one.num_prompt_tokens :] for one in added] == expected


def test_blocks_survive_being_written_out_and_read_back():
    storage = cuda_engine(SMALL).engine.executor.block_storage
    for keys, values in storage.layers:
        keys[3].normal_()
        values[3].normal_()
    storage.write_block(5, storage.read_block(3))
    storage.copy_block(3, 6)
    for keys, values in storage.layers:
        for block in (5, 6):
            assert torch.equal(keys[block], keys[3])
            assert torch.equal(values[block], values[3])


def test_a_step_that_failed_on_its_way_leaves_nothing_behind():
    engine = cuda_engine(SMALL, steps_ahead=1).engine
    runner, added = engine.executor.runner, [engine.add_request(request) for request in mixed_requests(4)]
    for _ in range(3):
        engine.step()
    send, calls = runner.device.send, []

    def send_once_broken(source, target):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("planted")
        send(source, target)

    runner.device.send = send_once_broken
    run_to_end(engine)
    engine.check_invariants()
    assert [one.token_ids[one.num_prompt_tokens :] for one in added] == answers_in_torch("llama", 4)


def test_the_kernel_that_failed_is_named_with_its_step_and_requests(caplog):
    """G8: without the flag a fault is told by whatever call waits for the device next."""
    attend, left = torch_kernels().attend, []

    def fails_once(*args, **kwargs):
        if left and not left.pop() and not left:
            raise RuntimeError("planted")
        attend(*args, **kwargs)

    loaded = cuda_engine(SMALL, is_checked=True, kernels=lambda: torch_kernels()._replace(attend=fails_once))
    left += [False] * 6  # two layers: the second of the third step
    assert loaded.backend.device.num_captures == 0, "a graph cannot wait between its kernels"
    assert generate(loaded.engine, *mixed_requests(3)) == answers_in_torch("llama", 3)
    assert "step 2: kernel attend failed: planted; requests " in caplog.text


def test_steady_decoding_sends_nothing_but_new_blocks():
    loaded = cuda_engine(SMALL, max_num_seqs=4)
    engine, device = loaded.engine, loaded.backend.device
    for i in range(4):
        engine.add_request(generation(range(i, i + 20), max_tokens=60, temperature=0.5, seed=i))
    for _ in range(8):
        engine.step()
    sends, sent, replays = device.num_sends, device.num_sent, device.num_replays
    for _ in range(32):
        engine.step()
    assert device.num_replays - replays == 64, "model and choice of each step are a graph each"
    assert device.num_sends - sends <= 4, "when a request, of which one came a step later, needs a block"
    assert device.num_sent - sent <= 4 * 4 + 2 * 8, "headers, and a pair for each block"


def test_the_device_never_waits_for_a_table_that_was_overwritten():
    """The null request's row stays as it is: padding reads it in every step."""
    loaded = cuda_engine(SMALL)
    generate(loaded.engine, *mixed_requests(5))
    state = loaded.engine.executor.runner.state
    assert state.table[state.null_request, LAST_TOKEN] == 0
    assert state.block_tables[-1].unique().tolist() == [loaded.engine.executor.block_storage.null_block]


PLAIN = SamplingParams(temperature=0.7, top_k=5, logprobs=3)


@pytest.mark.parametrize(
    ("params", "history", "kind"),
    [
        (PLAIN, None, None),
        (replace(PLAIN, typical_p=0.5), None, None),
        (replace(PLAIN, logprobs=None, logit_bias={3: 1.0}), None, "adjusted"),
        (replace(PLAIN, logprobs=None), RowHistory(banned_token_ids=(3,)), "adjusted"),
        (replace(PLAIN, logit_bias={3: 1.0}), None, "torch"),
        (replace(PLAIN, logprobs=21), None, "torch"),
        (replace(PLAIN, processed_logprobs=True), None, "torch"),
        (replace(PLAIN, all_logprobs=True, max_tokens=1), None, "torch"),
    ],
)
def test_which_way_a_row_goes(params, history, kind):
    row = SampledRow(params, 1, 0, 5, history)
    assert (is_adjusted(row), is_in_torch(row)) == (kind == "adjusted", kind == "torch")
    assert is_special(row) is (kind is not None)
