"""Ceilings: what a card allows, and which share of it a step or a prompt reaches."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from engine.checkpoint.model_config import ModelConfig

_FILE = "ceilings.json"


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """Bytes read and written by a copy, and operations of a 16-bit product, in a second."""

    bytes_per_second: float
    flops_per_second: float

    def save(self, folder: Path) -> None:
        """Keep them for the parts that follow."""
        (folder / _FILE).write_text(json.dumps(asdict(self)))

    def step_seconds(self, work: "Work") -> float:
        """Return the least time for some work: memory and arithmetic at once, the slower decides."""
        return max(work.num_bytes / self.bytes_per_second, work.num_flops / self.flops_per_second)


def load_ceilings(folder: Path) -> Ceilings | None:
    """Return what the environment part measured, None if it did not run."""
    path = folder / _FILE
    return Ceilings(**json.loads(path.read_text())) if path.is_file() else None


@dataclass(frozen=True, kw_only=True)
class Work:
    """What must at least be moved and computed."""

    num_bytes: float
    num_flops: float


def matrix_parameters(config: ModelConfig) -> int:
    """Return the weights of all layers' matrices, without the head."""
    heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    attention = config.hidden_size * (heads + config.num_heads * config.head_dim)
    return config.num_layers * (
        attention + (3 if config.is_gated else 2) * config.hidden_size * config.intermediate_size
    )


def decode_work(config: ModelConfig, *, batch: int, context: float, weight_bytes: float = 2.0) -> Work:
    """Return the work of a step in which `batch` requests at `context` positions get a token each.

    Bytes: every matrix once, the head too, and each request's keys and values, 16 bits each. Operations: two
    for each weight and request, four for each query head, dimension and position.
    """
    head = config.vocab_size * config.hidden_size
    weights = matrix_parameters(config) + head
    kv = 2 * config.num_layers * config.num_kv_heads * config.head_dim * context
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * context
    return Work(
        num_bytes=weights * weight_bytes + batch * kv * 2, num_flops=batch * (2 * weights + attention)
    )


def prefill_work(config: ModelConfig, *, count: int, length: int) -> Work:
    """Return the work of `count` prompts of `length` tokens, whose last tokens alone reach the head.

    A token attends to half of its prompt on average. Bytes: the matrices once; all else is small.
    """
    head = config.vocab_size * config.hidden_size
    matrices = matrix_parameters(config)
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * length / 2
    return Work(
        num_bytes=2 * (matrices + head),
        num_flops=count * (length * (2 * matrices + attention) + 2 * head),
    )
