"""How often a draft's token is the target's own: both sample with the same noise (ARCHITECTURE.md).

    python -m tools.pair_acceptance [--pair tests/assets/pair]

Measured on held-out chapters, and on what the target writes after their first 16 tokens; the draft always
sees the target's tokens. Prints one JSON line.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from engine.sampling.noise import gumbel_noise, noise_key
from tools.pair_distillation import read_logits, write
from tools.pair_model import GPT2, load_model
from tools.pair_text import encode_documents, fetch_chapters, split_chapters

WINDOW, PROMPT = 256, 16


def main() -> None:
    """Measure the committed pair."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", type=Path, default=Path("tests/assets/pair"))
    folder = parser.parse_args().pair
    torch.set_num_threads(2)
    tokenizer = Tokenizer.from_file(str(folder / "target" / "tokenizer.json"))
    _, held_out = split_chapters(fetch_chapters())
    documents = [ids for ids in encode_documents(tokenizer, held_out) if len(ids) >= WINDOW]
    chapters = torch.tensor([ids[:WINDOW] for ids in documents])
    print(json.dumps(measure(load_model(folder / "target"), load_model(folder / "draft"), chapters)))


def measure(target: GPT2, draft: GPT2, chapters: Tensor) -> dict[str, float]:
    """Return losses and acceptances on the held-out chapters [count, size] and on the target's writing."""
    results: dict[str, float] = {"num_chapters": len(chapters)}
    logits = {"target": read_logits(target, chapters).float(), "draft": read_logits(draft, chapters).float()}
    for name, values in logits.items():
        losses = torch.nn.functional.cross_entropy(values[:, :-1].flatten(0, 1), chapters[:, 1:].flatten())
        results[f"{name}_loss"] = losses.item()
    for temperature in (0, 1):
        agree = _choose(logits["target"], temperature) == _choose(logits["draft"], temperature)
        results[f"held_out_acceptance_{temperature}"] = agree.float().mean().item()
        sample = partial(_next_token, temperature=temperature)
        written, target_logits = write(target, chapters[:, :PROMPT], chapters.shape[1], sample)
        chosen = _choose(target_logits.float(), temperature)
        agree = chosen == _choose(read_logits(draft, written).float(), temperature)
        results[f"written_acceptance_{temperature}"] = agree[:, PROMPT - 1 :].float().mean().item()
    return {key: round(value, 4) for key, value in results.items()}


def _next_token(logits: Tensor, position: int, *, temperature: int) -> Tensor:
    return _choose(logits[:, None], temperature, position - 1)[:, 0]


def _choose(logits: Tensor, temperature: int, first: int = 0) -> Tensor:
    """Sample [count, size] tokens from logits [count, size, vocab_size] of positions `first` on."""
    if temperature == 0:
        return logits.argmax(-1)
    count, size, vocab_size = logits.shape
    keys = [noise_key(row, 0, first + position) for row in range(count) for position in range(size)]
    noise = gumbel_noise(keys, vocab_size, device=logits.device)
    return (logits + noise.view(logits.shape)).argmax(-1)


if __name__ == "__main__":
    main()
