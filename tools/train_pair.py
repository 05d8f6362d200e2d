"""Make the draft/target pair in tests/assets/pair: fetch the text, train the target, distil the draft.

    python -m tools.train_pair

Needs the extra `test` (the `tokenizers` library). What is under way lies in build/pair: an interrupted run
goes on from there; delete it to begin anew.
"""

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer

from engine.loading.machine import keep_freed_memory
from tools.pair_distillation import Lessons, Writing, collect
from tools.pair_model import GPT2, Shape, load_model, save_model
from tools.pair_text import (
    encode_documents,
    end_token_id,
    fetch_chapters,
    save_tokenizer,
    split_chapters,
    train_tokenizer,
)
from tools.pair_training import Documents, Schedule, Trainer, distillation_loss, next_token_loss

TARGET = Shape(n_layer=8, n_embd=256, n_head=4, n_inner=1024)
DRAFT = Shape(n_layer=1, n_embd=192, n_head=6, n_inner=512)
WINDOW = 512
TARGET_SCHEDULE = Schedule(((0, 0.0), (40, 1.0), (360, 1.0), (600, 1 / 3), (800, 0.0)))
DRAFT_SCHEDULE = Schedule(((0, 0.0), (40, 1.0), (3000, 1.0), (6000, 0.0)))
TARGET_BATCH, DRAFT_BATCH = 4, 4
WRITINGS = [
    Writing(temperature, num_prompt_tokens, count=48)
    for temperature in (0.0, 1.0, 0.0, 0.7, 0.0, 1.0, 0.0, 1.0)
    for num_prompt_tokens in (1, 3, 6, 12)
]


def main() -> None:
    """Run the stages one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("tests/assets/pair"))
    parser.add_argument("--work", type=Path, default=Path("build/pair"))
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    args.work.mkdir(parents=True, exist_ok=True)
    texts, held_out_texts = split_chapters(fetch_chapters())
    tokenizer = _tokenizer(texts, args.work)
    documents = Documents.join(encode_documents(tokenizer, texts))
    held_out = Documents.join(encode_documents(tokenizer, held_out_texts))
    print(f"{len(documents.stream)} tokens to train on, {len(held_out.stream)} held out", flush=True)
    folders = args.output / "target", args.output / "draft"
    end = end_token_id(tokenizer)
    save_model(train_target(documents, held_out, args.work), folders[0], end_token_id=end)
    draft = distil(load_model(folders[0]), documents, args.work, end_token_id=end)
    save_model(draft, folders[1], end_token_id=end)
    for folder in folders:
        save_tokenizer(tokenizer, folder)


def _tokenizer(texts: list[str], work: Path) -> Tokenizer:
    if not (work / "tokenizer.json").exists():
        save_tokenizer(train_tokenizer(texts, TARGET.vocab_size), work)
    return Tokenizer.from_file(str(work / "tokenizer.json"))


def train_target(documents: Documents, held_out: Documents, work: Path) -> GPT2:
    """Train the target on windows of the text."""
    torch.manual_seed(0)
    target = GPT2(TARGET)
    print(f"target: {target.num_parameters()} parameters", flush=True)
    trainer = Trainer(target, TARGET_SCHEDULE, rate=3e-3, path=work / "target.pt")
    trainer.run(
        lambda model, step, _: next_token_loss(model, documents.sample(TARGET_BATCH, WINDOW + 1, step)),
        report=lambda model: held_out_loss(model, held_out),
    )
    return target


def distil(target: GPT2, documents: Documents, work: Path, *, end_token_id: int) -> GPT2:
    """Train the draft on the target's logits."""
    lessons = Lessons.load(work)
    if lessons is None:
        lessons = collect(
            target, documents, num_read=768, writings=WRITINGS, size=WINDOW, end_token_id=end_token_id
        )
        lessons.save(work)
    torch.manual_seed(1)
    draft = GPT2(DRAFT)
    print(f"draft: {draft.num_parameters()} parameters", flush=True)
    trainer = Trainer(draft, DRAFT_SCHEDULE, rate=4e-3, path=work / "draft.pt")
    trainer.run(
        lambda model, step, progress: distillation_loss(model, *lessons.sample(DRAFT_BATCH, step), progress)
    )
    return draft


@torch.no_grad()
def held_out_loss(model: GPT2, held_out: Documents, count: int = 16) -> float:
    """Return the mean loss of windows spread over the held-out text."""
    starts = torch.linspace(0, len(held_out.stream) - WINDOW - 1, count).long()
    windows = held_out.windows(starts, WINDOW + 1)
    losses = [next_token_loss(model, part) for part in torch.split(windows, 4)]
    return float(torch.stack(losses).mean())


if __name__ == "__main__":
    main()
