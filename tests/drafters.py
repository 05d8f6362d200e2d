"""Drafters with scripts: they know the answers, and are right, wrong or both as told."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from engine.checkpoint.checkpoint import Checkpoint, TokenizerData
from engine.checkpoint.model_config import ModelConfig
from engine.checkpoint.vocabulary import printable_bytes
from engine.core.engine import Engine
from engine.core.request import Request
from engine.interface.config import EngineConfig
from engine.interface.outputs import GenerationRequest
from engine.interface.speculation import DraftSource, SpeculationMode, SpeculationParams
from engine.loading.loader import build_engine
from engine.speculative.drafter import Draft
from engine.speculative.speculator import Speculator
from tests.tiny import LLAMA, InMemoryTensor, random_checkpoint

END = 255  # a byte that no text has

Guess = Callable[[Request, int], Sequence[int]]


class ScriptedDrafter:
    """Proposes what `guess(request, limit)` says."""

    def __init__(self, guess: Guess) -> None:
        self.guess = guess
        self.finished: list[int] = []

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[Draft]:
        return [
            Draft(tuple(self.guess(request, limit))[:limit], DraftSource.NGRAM, 4)
            for request, limit in zip(requests, limits, strict=True)
        ]

    def finish(self, request: Request) -> None:
        self.finished.append(request.request_id)


def scripted_speculator(guess: Guess, **settings: object) -> Speculator:
    return Speculator(lookups=(ScriptedDrafter(guess),), **settings)


def known(answers: Mapping[int, Sequence[int]], kind: str, *, vocab_size: int = 256, seed: int = 0) -> Guess:
    """A guess at answers known by request id: right, wrong, alternating or random."""
    rng = random.Random(seed)

    def guess(request: Request, limit: int) -> list[int]:
        done = request.num_output_tokens
        right = list(answers[request.request_id][done : done + limit])
        if kind == "random":
            return [t if rng.random() < 0.6 else rng.randrange(vocab_size) for t in right]
        return [
            t if kind == "right" or (kind == "alternating" and (done + i) % 3) else (t + 1) % vocab_size
            for i, t in enumerate(right)
        ]

    return guess


def byte_checkpoint(config: ModelConfig = LLAMA, *, seed: int = 0) -> Checkpoint:
    """A random model whose 256 tokens are the bytes, the last one ending answers."""
    alphabet = {byte: character for character, byte in printable_bytes().items()}
    tokens = (*(alphabet[byte] for byte in range(255)), "<end>")
    data = TokenizerData(tokens=tokens, merges=(), special_token_ids=frozenset({END}), eos_token_id=END)
    return replace(
        random_checkpoint(config, seed=seed), tokenizer=data, stop_token_ids=frozenset({END}), name="bytes"
    )


def noisy_copy(checkpoint: Checkpoint, amount: float, *, seed: int = 1) -> Checkpoint:
    """A draft model that is often right: the target with some noise on its weights."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, stored in checkpoint.tensors.items():
        tensor = stored.dequantize()
        noise = torch.randn(tensor.shape, generator=generator) * tensor.std().nan_to_num(0.0)
        tensors[name] = InMemoryTensor(tensor + amount * noise)
    return replace(checkpoint, tensors=tensors, name="noisy")


def byte_engine(
    config: ModelConfig = LLAMA, *, draft: Checkpoint | None = None, **settings: object
) -> Engine:
    full = {"device": "cpu", "dtype": "float32", "kv_cache_memory": 2**24} | settings
    return build_engine(byte_checkpoint(config), EngineConfig(**full), draft).engine


def asking(request: GenerationRequest, mode: str, k: int | None = None) -> GenerationRequest:
    """The same request with speculation."""
    return replace(request, speculation=SpeculationParams(mode=SpeculationMode(mode), k=k))
