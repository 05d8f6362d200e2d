"""What the draft learns from: windows of the text and of the target's own writing, with its logits.

A draft meets contexts that the target has chosen, which differ from the text: at temperature 0 it repeats
itself, and its prompts begin anywhere. The draft therefore learns on all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tools.pair_model import GPT2, Cache
from tools.pair_training import Documents

Sampler = Callable[[Tensor, int], Tensor]
"""Maps logits [batch, vocab_size] at a position to the next tokens [batch]."""


@dataclass(frozen=True)
class Lessons:
    """Windows of token ids [count, size] and the target's logits for each token's successor."""

    token_ids: Tensor
    target_logits: Tensor  # float16 [count, size, vocab_size]

    def sample(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Draw windows."""
        chosen = torch.randint(len(self.token_ids), (count,), generator=torch.Generator().manual_seed(seed))
        return self.token_ids[chosen], self.target_logits[chosen]

    def save(self, folder: Path) -> None:
        """Write both arrays."""
        np.save(folder / "lesson_logits.npy", self.target_logits.numpy())
        np.save(folder / "lesson_ids.npy", self.token_ids.numpy())

    @classmethod
    def load(cls, folder: Path) -> "Lessons | None":
        """Read what `save` wrote, or return None if it did not finish."""
        if not (folder / "lesson_ids.npy").exists():
            return None
        return cls(*(torch.from_numpy(np.load(folder / f"lesson_{kind}.npy")) for kind in ("ids", "logits")))


@dataclass(frozen=True)
class Writing:
    """Windows that the target writes at a temperature, after the end token and so many tokens of the text."""

    temperature: float
    num_prompt_tokens: int
    count: int


def collect(
    target: GPT2,
    documents: Documents,
    *,
    num_read: int,
    writings: Sequence[Writing],
    size: int,
    end_token_id: int,
) -> Lessons:
    """Let the target read windows of the text and write windows of its own."""
    read = documents.sample(num_read, size, seed=1)
    parts = [(ids, read_logits(target, ids)) for ids in torch.split(read, 16)]
    print(f"{num_read} windows read", flush=True)
    generator = torch.Generator().manual_seed(2)
    for number, writing in enumerate(writings, start=1):
        texts = documents.sample(writing.count, writing.num_prompt_tokens, seed=100 + number)
        prompts = torch.cat([torch.full((writing.count, 1), end_token_id), texts], dim=1)
        parts.append(write(target, prompts, size, _sampler(writing.temperature, generator)))
        print(f"{writing} done", flush=True)
    return Lessons(torch.cat([ids for ids, _ in parts]), torch.cat([logits for _, logits in parts]))


def _sampler(temperature: float, generator: torch.Generator) -> Sampler:
    if temperature == 0.0:
        return lambda logits, _: logits.argmax(-1)
    return lambda logits, _: torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[
        :, 0
    ]


@torch.inference_mode()
def read_logits(model: GPT2, token_ids: Tensor) -> Tensor:
    """Return the logits of windows as float16."""
    with torch.autocast("cpu", torch.bfloat16):
        logits: Tensor = model(token_ids)
    return logits.to(torch.float16)


@torch.inference_mode()
def write(model: GPT2, prompts: Tensor, size: int, sample: Sampler) -> tuple[Tensor, Tensor]:
    """Continue prompts [count, num_tokens] to `size` tokens; return the ids and their logits.

    Prompts are read as a whole, then one token at a time with the keys and values of those before.
    """
    count, num_tokens = prompts.shape
    logits: Tensor
    logits_of = torch.empty(count, size, model.shape.vocab_size, dtype=torch.float16)
    token_ids = torch.empty(count, size, dtype=torch.long)
    token_ids[:, :num_tokens] = prompts
    cache, start = Cache(model.shape, count, size), 0
    for end in range(num_tokens, size + 1):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(token_ids[:, start:end], cache)
        logits_of[:, start:end] = logits
        if end < size:
            token_ids[:, end] = sample(logits[:, -1].float(), end)
        start = end
    return token_ids, logits_of
