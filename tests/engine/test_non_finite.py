"""Values that are not finite end the request that made them and leave no trace for any other.

The model is sound but for one row of its embedding: whatever reads token 200 computes NaN from there on.
"""

from dataclasses import replace

import pytest
import torch

from engine.interface.config import EngineConfig
from engine.interface.outputs import FinishReason
from engine.interface.speculation import SpeculationMode
from engine.kernels.cpu.library import available_instruction_sets, load_library
from engine.loading.loader import build_engine
from engine.sampling.sampler import broken_rows
from tests.drafters import asking, scripted_speculator
from tests.engine.test_same_tokens import EVERY_WAY
from tests.tiny import GPT2, LLAMA, InMemoryTensor, generate, generation, random_checkpoint, run_to_end

BROKEN = 200
UNTIED = {
    "llama": replace(LLAMA, tie_word_embeddings=False),
    "gpt2": replace(GPT2, tie_word_embeddings=False),
}
PROMPTS = [[40, 3, 9], [7] * 30, list(range(50, 90))]


def broken_checkpoint(config, name="embed_tokens.weight", value=float("nan")):
    checkpoint = random_checkpoint(config)
    tensor = checkpoint.tensors[name].dequantize().clone()
    tensor[BROKEN] = value
    return replace(checkpoint, tensors=checkpoint.tensors | {name: InMemoryTensor(tensor)})


def engine(config, way, *, draft=None, checkpoint=None, **settings):
    settings = {"device": "cpu", "kv_cache_memory": 2**20} | way | settings
    return build_engine(checkpoint or broken_checkpoint(config), EngineConfig(**settings), draft).engine


def ask(engine, prompt, **params):
    request = engine.add_request(generation(prompt, **params))
    run_to_end(engine)
    engine.check_invariants()
    return request


@EVERY_WAY
@pytest.mark.parametrize("config", UNTIED.values(), ids=UNTIED)
def test_a_later_request_finds_no_trace_in_the_blocks(config, way):
    expected = [generate(engine(config, way), generation(prompt))[0] for prompt in PROMPTS]
    used = engine(config, way)
    for prompt, answer in zip(PROMPTS, expected, strict=True):
        for poison in ([BROKEN] * 20, [1, 2, BROKEN], [5] * 25 + [BROKEN] * 9):
            failed = ask(used, poison)
            assert failed.finish_reason is FinishReason.ERROR
            assert failed.num_output_tokens == 0
        assert ask(used, prompt).token_ids[len(prompt) :] == answer


@EVERY_WAY
def test_tokens_before_a_broken_one_are_what_they_are_without_it(way):
    """Its values stand in the same tile as theirs, and are multiplied by weights of 0."""
    config = UNTIED["llama"]
    shared = [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21]
    expected = ask(engine(config, way), [*shared, 5]).token_ids
    used = engine(config, way, max_num_batched_tokens=11)  # the first chunk ends before the broken token
    assert ask(used, [*shared, BROKEN, 3]).finish_reason is FinishReason.ERROR
    again = ask(used, [*shared, 5])
    assert again.num_cached_tokens > 0
    assert again.token_ids == expected


@EVERY_WAY
def test_others_of_the_batch_go_on_with_the_same_bits(way):
    config = UNTIED["llama"]
    kinds = [{"temperature": 1.0, "seed": 3}, {"logprobs": 2, "max_tokens": 5}, {"prompt_logprobs": 1}]
    expected = [ask(engine(config, way), p, **k) for p, k in zip(PROMPTS, kinds, strict=True)]
    used = engine(config, way)
    poisoned = [used.add_request(generation([9, BROKEN])), used.add_request(generation([BROKEN] * 40))]
    together = [used.add_request(generation(p, **k)) for p, k in zip(PROMPTS, kinds, strict=True)]
    run_to_end(used)
    used.check_invariants()
    assert [r.finish_reason for r in poisoned] == [FinishReason.ERROR] * 2
    assert [r.token_ids for r in together] == [r.token_ids for r in expected]
    assert together[2].prompt_logprobs == expected[2].prompt_logprobs
    assert used.stats().requests_finished[FinishReason.ERROR] == 2


@EVERY_WAY
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 1.0, "seed": 1, "top_k": 5},
        {"logprobs": 1},
        {"prompt_logprobs": 1},
        {"prompt_logprobs": 1, "max_tokens": 0},
        {"allowed_token_ids": frozenset(range(20))},
    ],
    ids=str,
)
def test_a_broken_logit_is_the_same_error_whatever_was_asked(params, value, way):
    broken = broken_checkpoint(UNTIED["llama"], "lm_head.weight", value)
    failed = ask(engine(UNTIED["llama"], way, checkpoint=broken), [40, 3, 9], **params)
    assert failed.finish_reason is FinishReason.ERROR


@EVERY_WAY
def test_a_draft_that_breaks_changes_no_answer(way):
    config = UNTIED["llama"]
    expected = ask(engine(config, way), [40, 3, 9], max_tokens=30).token_ids
    used = engine(config, way)

    def guess(request, limit):
        right = expected[request.num_tokens : request.num_tokens + 1]
        return [*right, BROKEN, BROKEN, BROKEN]

    used.speculator = scripted_speculator(guess)
    request = used.add_request(asking(generation([40, 3, 9], max_tokens=30), "ngram", 4))
    run_to_end(used)
    assert request.token_ids == expected


def test_an_accepted_draft_that_breaks_fails_in_its_own_place():
    """The target chooses the broken token by itself: its own step fails, with speculation as without."""
    config = UNTIED["llama"]
    way = {"dtype": "float32"}
    params = {"logit_bias": {BROKEN: 100.0}, "min_tokens": 3, "stop_token_ids": frozenset({BROKEN + 1})}
    plain = ask(engine(config, way), [40, 3, 9], **params)
    used = engine(config, way)
    used.speculator = scripted_speculator(lambda request, limit: [BROKEN] * 4)
    request = used.add_request(asking(generation([40, 3, 9], **params), "ngram", 4))
    run_to_end(used)
    for failed in (plain, request):
        assert failed.finish_reason is FinishReason.ERROR
        assert failed.token_ids == [40, 3, 9, BROKEN]


@EVERY_WAY
def test_nothing_is_appended_behind_an_accepted_draft_that_breaks(way):
    """After 7 comes the broken token, which its draft foresaw; of the next that draft says nothing."""
    config = UNTIED["llama"]
    params = {"logit_bias": {7: 100.0, BROKEN: 90.0}, "banned_sequences": frozenset({(7, 7)})}
    used = engine(config, way)
    used.speculator = scripted_speculator(lambda request, limit: [BROKEN] * limit)
    request = used.add_request(asking(generation([40, 3, 9], **params), "ngram", 4))
    used.step()
    assert request.token_ids == [40, 3, 9, 7]
    used.step()
    assert (request.token_ids, request.finish_reason) == ([40, 3, 9, 7, BROKEN], None)
    run_to_end(used)
    assert request.token_ids == [40, 3, 9, 7, BROKEN]
    assert request.finish_reason is FinishReason.ERROR


@EVERY_WAY
@pytest.mark.parametrize("name", ["embed_tokens.weight", "lm_head.weight"])
def test_a_broken_draft_model_costs_only_drafts(name, way):
    sound = random_checkpoint(UNTIED["llama"])
    kinds = [{}, {"temperature": 1.0, "seed": 5}, {"logprobs": 1, "allowed_token_ids": frozenset(range(40))}]
    expected = [
        ask(engine(UNTIED["llama"], way, checkpoint=sound), prompt, max_tokens=12, **kind).token_ids
        for prompt, kind in zip([[BROKEN, 3], *PROMPTS[1:]], kinds, strict=True)
    ]
    draft = broken_checkpoint(UNTIED["llama"], name)
    used = engine(UNTIED["llama"], way, checkpoint=sound, draft=draft, speculation="draft")
    for prompt, kind, answer in zip([[BROKEN, 3], *PROMPTS[1:]], kinds, expected, strict=True):
        request = asking(generation(prompt, max_tokens=12, **kind), SpeculationMode.DRAFT.value, 3)
        assert generate(used, request)[0] == answer[len(prompt) :]


def test_sampling_in_torch_reports_rows_that_are_not_finite():
    logits = torch.zeros(5, 10)
    logits[1, 3] = float("nan")
    logits[2, 9] = float("inf")
    logits[3, 0] = float("-inf")  # a token that cannot come
    assert broken_rows(logits) == {1, 2}


@EVERY_WAY
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF], ids=["quiet", "all ones"])
@pytest.mark.parametrize(
    "name",
    [
        "layers.0.attn_norm.weight",
        "layers.0.mlp_norm.weight",
        "layers.1.attn.q_proj.weight",
        "layers.1.mlp.gate_proj.weight",
        "layers.1.mlp.up_proj.weight",
        "layers.1.attn.o_proj.weight",
    ],
)
def test_one_weight_that_is_nan_is_never_rounded_to_a_number(way, name, bits, monkeypatch):
    """One value among 32 that share a scale, or one that bfloat16 rounds: its row must not become finite."""
    checkpoint = random_checkpoint(UNTIED["llama"])
    tensor = checkpoint.tensors[name].dequantize().clone()
    tensor.view(-1).view(torch.int32)[5] = bits
    broken = replace(checkpoint, tensors=checkpoint.tensors | {name: InMemoryTensor(tensor)})
    in_torch = way.get("kernels") == "torch" or load_library() is None
    for instruction_set in [""] if in_torch else available_instruction_sets():
        monkeypatch.setenv("DRAFTLINE_MAX_CPU_ISA", instruction_set)
        failed = ask(engine(UNTIED["llama"], way, checkpoint=broken), [40, 3, 9])
        assert failed.finish_reason is FinishReason.ERROR
