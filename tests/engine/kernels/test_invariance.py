"""The contract of the kernels: a row's bits depend on nothing but its request."""

import os
from dataclasses import replace

import pytest
import torch

from engine.interface.errors import ConfigError
from engine.kernels.cpu.library import KernelContext, KVKind, RowsFormat
from tests.engine.kernels.conftest import Fused, blocks, instruction_sets, random_tokens
from tests.tiny import GPT2, LLAMA

LENGTH = 150
FORMATS = {
    "q4_1": {"tensor_format": "Q4_1", "plain": RowsFormat.BF16, "kv_kind": KVKind.BF16},
    "q8_0": {"tensor_format": "Q8_0", "plain": RowsFormat.BF16, "kv_kind": KVKind.BF16},
    "bf16": {"plain": RowsFormat.BF16, "kv_kind": KVKind.BF16},
    "f32": {"plain": RowsFormat.F32, "kv_kind": KVKind.F32},
    "int8 kv": {"tensor_format": "Q4_0", "plain": RowsFormat.BF16, "kv_kind": KVKind.INT8},
}


def one_by_one(fused, tokens, number):
    table = blocks(number, len(tokens))
    return torch.cat([fused.logits(([token], i, table)) for i, token in enumerate(tokens)])


@pytest.mark.parametrize("instruction_set", instruction_sets())
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_any_chunk_and_any_thread_count_gives_the_same_bits(config, kind, instruction_set):
    tokens = random_tokens(5, LENGTH, config.vocab_size)
    fused = Fused(config, **FORMATS[kind], instruction_set=instruction_set, num_threads=1)
    alone = one_by_one(fused, tokens, 0)
    for num_threads in (1, 2, 3):
        other = Fused(config, **FORMATS[kind], instruction_set=instruction_set, num_threads=num_threads)
        for chunk in (2, 3, 9, 16, 37, 64, 150):
            parts = [
                other.logits((tokens[first : first + chunk], first, blocks(1, LENGTH)))
                for first in range(0, LENGTH, chunk)
            ]
            assert torch.equal(torch.cat(parts), alone), f"chunks of {chunk}, {num_threads} threads"


@pytest.mark.parametrize("kind", FORMATS)
def test_any_batch_gives_the_same_bits(kind):
    fused = Fused(LLAMA, **FORMATS[kind])
    lengths = [3, 17, 64, 100, 1, 40]
    sequences = [random_tokens(i, length, LLAMA.vocab_size) for i, length in enumerate(lengths)]
    alone = [one_by_one(fused, tokens, i) for i, tokens in enumerate(sequences)]
    for batch_size in (1, 2, 3, 4, 5, 6, 8, 9, 16, 33, 64):
        rows = [(number % 6, 0) for number in range(batch_size)]
        last = [(sequences[i][-1:], lengths[i] - 1, blocks(i, lengths[i])) for i, _ in rows]
        logits = fused.logits(*last)
        for (i, _), row in zip(rows, logits, strict=True):
            assert torch.equal(row, alone[i][-1]), f"a batch of {batch_size}"


@pytest.mark.parametrize("kind", FORMATS)
def test_any_width_of_verification_beside_prompts_gives_the_same_bits(kind):
    fused = Fused(LLAMA, **FORMATS[kind])
    tokens, prompt = random_tokens(1, 80, LLAMA.vocab_size), random_tokens(2, 90, LLAMA.vocab_size)
    alone, prompt_alone = one_by_one(fused, tokens, 0), one_by_one(fused, prompt, 1)
    for width in range(1, 10):
        first = 70 - width
        logits = fused.logits(
            (tokens[first : first + width], first, blocks(0, 80)),
            (prompt, 0, blocks(2, 90)),
            (tokens[79:], 79, blocks(0, 80)),
        )
        assert torch.equal(logits[:width], alone[first : first + width])
        assert torch.equal(logits[width:-1], prompt_alone)
        assert torch.equal(logits[-1], alone[79])


def test_more_threads_than_cores_come_to_an_end_with_the_same_bits():
    """The pool then leaves threads out and takes them back, job by job."""
    tokens = random_tokens(4, 40, LLAMA.vocab_size)
    alone = one_by_one(Fused(LLAMA, **FORMATS["q4_1"], num_threads=1), tokens, 0)
    crowded = Fused(LLAMA, **FORMATS["q4_1"], num_threads=2 * (os.cpu_count() or 1) + 1)
    for _ in range(5):
        assert torch.equal(one_by_one(crowded, tokens, 0), alone)


def test_splits_of_long_contexts_give_the_same_bits():
    config = replace(LLAMA, max_position_embeddings=1200)
    fused = Fused(config, **FORMATS["q8_0"])
    tokens = random_tokens(3, 1100, config.vocab_size)
    whole = fused.logits((tokens, 0, blocks(0, 1100)))
    parts = [fused.logits((tokens[i : i + 90], i, blocks(1, 1100))) for i in range(0, 1100, 90)]
    assert torch.equal(torch.cat(parts), whole)
    single = fused.logits((tokens[1099:], 1099, blocks(1, 1100)))
    assert torch.equal(single[0], whole[-1])


def test_the_environment_limits_the_instruction_set(monkeypatch):
    monkeypatch.setenv("DRAFTLINE_MAX_CPU_ISA", "portable")
    assert KernelContext(num_threads=1).instruction_set == "portable"
    monkeypatch.setenv("DRAFTLINE_MAX_CPU_ISA", "sse9")
    with pytest.raises(ConfigError, match="must be one of avx512_bf16, avx512, avx2, portable, not 'sse9'"):
        KernelContext(num_threads=1)
