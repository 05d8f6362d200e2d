"""The two training loops: the target on the text, the draft on the target's logits."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tools.pair_model import GPT2

Loss = Callable[[GPT2, int, float], Tensor]
"""Maps the model, the step and the training's progress (0 to 1) to the loss of that step's batch."""


@dataclass(frozen=True)
class Schedule:
    """What the learning rates are multiplied by: straight lines between (step, factor) points."""

    points: tuple[tuple[int, float], ...]

    @property
    def num_steps(self) -> int:
        """The step at which training ends."""
        return self.points[-1][0]

    def factor(self, step: int) -> float:
        """Return the factor at a step."""
        steps, factors = zip(*self.points, strict=True)
        return float(np.interp(step + 1, steps, factors))


@dataclass(frozen=True)
class Documents:
    """All documents as one stream of token ids."""

    stream: Tensor
    starts: Tensor  # where each document begins

    @classmethod
    def join(cls, documents: Iterable[list[int]]) -> "Documents":
        """Put documents one after the other."""
        parts = [torch.tensor(document) for document in documents]
        lengths = torch.tensor([len(part) for part in parts])
        return cls(torch.cat(parts), lengths.cumsum(0) - lengths)

    def windows(self, starts: Tensor, size: int) -> Tensor:
        """Return the `size` tokens from each start: [len(starts), size]."""
        return self.stream[starts.clamp(max=len(self.stream) - size)[:, None] + torch.arange(size)]

    def sample(self, count: int, size: int, seed: int) -> Tensor:
        """Draw windows; a quarter of them begin where a document does."""
        generator = torch.Generator().manual_seed(seed)
        starts = torch.randint(len(self.stream) - size, (count,), generator=generator)
        chosen = torch.randint(len(self.starts), (count // 4,), generator=generator)
        starts[: count // 4] = self.starts[chosen]
        return self.windows(starts, size)


def next_token_loss(model: GPT2, windows: Tensor) -> Tensor:
    """Return the mean cross-entropy of every token but the first of each window."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(windows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


def distillation_loss(model: GPT2, token_ids: Tensor, target_logits: Tensor, progress: float) -> Tensor:
    """Return KL(target || draft), and from the middle of the training on their total variation as well.

    With shared noise a draft token is accepted with a probability of at least (1 - TV) / (1 + TV).
    """
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(token_ids)
    draft = logits.float().log_softmax(-1)
    target = target_logits.float().log_softmax(-1)
    loss = F.kl_div(draft, target, log_target=True, reduction="none").sum(-1).mean()
    if progress > 0.5:
        loss = loss + 2 * 0.5 * (draft.exp() - target.exp()).abs().sum(-1).mean()
    return loss


class Trainer:
    """Muon for the layers' matrices, AdamW for the rest; goes on from its file if that is there."""

    def __init__(self, model: GPT2, schedule: Schedule, *, rate: float, path: Path) -> None:
        self.model, self.schedule, self.path = model, schedule, path
        matrices = [p for p in model.blocks.parameters() if p.dim() == 2]
        in_muon = {id(p) for p in matrices}
        others = [p for p in model.parameters() if id(p) not in in_muon]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=rate / 2, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        ]
        self.step = 0
        if path.exists():
            self._load()

    def run(self, loss_of: Loss, *, report: Callable[[GPT2], float] | None = None, every: int = 50) -> None:
        """Train to the last step, saving and printing a line now and then."""
        started, total, count = time.monotonic(), 0.0, 0
        while self.step < self.schedule.num_steps:
            total, count = total + self._train_step(loss_of), count + 1
            if self.step % 20 == 0 or self.step == self.schedule.num_steps:
                print(
                    f"step {self.step} loss {total / count:.4f} {time.monotonic() - started:.0f} s",
                    flush=True,
                )
                total, count = 0.0, 0
            if self.step % every == 0 or self.step == self.schedule.num_steps:
                if report is not None:
                    print(f"step {self.step} held out: {report(self.model):.4f}", flush=True)
                self._save()
        self.model.eval()

    def _train_step(self, loss_of: Loss) -> float:
        factor = self.schedule.factor(self.step)
        loss = loss_of(self.model, self.step, self.step / self.schedule.num_steps)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = optimizer.defaults["lr"] * factor
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return loss.item()

    def _save(self) -> None:
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.path)

    def _load(self) -> None:
        state = torch.load(self.path, weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        print(f"{self.path}: going on from step {self.step}", flush=True)
