"""Random checkpoints of any shape: made where they are used, tensor by tensor, so that none is held twice."""

import itertools
import json
import string
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.checkpoint.architectures.llama import TENSOR_NAMES
from engine.checkpoint.checkpoint import Checkpoint, StoredTensor, TokenizerData
from engine.checkpoint.model_config import ModelConfig
from engine.checkpoint.vocabulary import printable_bytes
from tests.gpu.shapes import END
from tests.tiny import tensor_shapes


@dataclass(frozen=True, kw_only=True)
class RandomTensor:
    """A StoredTensor that is drawn on `device` whenever somebody reads it, the same each time."""

    shape: tuple[int, ...]
    mean: float
    scale: float
    seed: int
    device: torch.device
    noise: float = 0.0  # added with another seed: a draft model that is often right
    format: str = "F32"

    def dequantize(self) -> Tensor:
        """Return the weight as float32 of `shape`."""
        drawn = self._draw(self.seed)
        if self.noise:
            drawn += self.noise * self._draw(self.seed + 1)
        return drawn.mul_(self.scale).add_(self.mean)

    def _draw(self, seed: int) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(self.shape, generator=generator, device=self.device)


def random_checkpoint(
    config: ModelConfig, *, device: torch.device, noise: float = 0.0, name: str = "random"
) -> Checkpoint:
    """Return a model whose logits lie two apart or so: an error of a thousandth turns some answers."""
    tensors: dict[str, StoredTensor] = {
        tensor_name: RandomTensor(
            shape=shape,
            mean=1.0 if "norm.weight" in tensor_name else 0.0,
            scale=_scale(tensor_name, shape),
            seed=zlib.crc32(tensor_name.encode()),
            device=device,
            noise=noise,
        )
        for tensor_name, shape in tensor_shapes(config).items()
    }
    return Checkpoint(
        name=name,
        path=Path(name),
        config=config,
        tensors=tensors,
        tokenizer=byte_tokenizer(config.vocab_size),
        stop_token_ids=frozenset({END}),
        fingerprint=bytes(16),
    )


def draft_of(checkpoint: Checkpoint, noise: float) -> Checkpoint:
    """Return a draft model that is the target with noise on its weights."""
    tensors = {
        name: replace(stored, noise=noise) if isinstance(stored, RandomTensor) else stored
        for name, stored in checkpoint.tensors.items()
    }
    return replace(checkpoint, tensors=tensors, name="noisy")


def _scale(name: str, shape: tuple[int, ...]) -> float:
    if "norm" in name:
        return 0.1
    return (1.0 if len(shape) == 1 else shape[-1]) ** -0.5 * (0.1 if name.endswith("bias") else 2.0)


def byte_tokenizer(vocab_size: int) -> TokenizerData:
    """Return a vocabulary of the bytes, of which the last ends answers, and words that no text has."""
    alphabet = {byte: character for character, byte in printable_bytes().items()}
    words = ("".join(letters) for letters in itertools.product(string.ascii_lowercase, repeat=4))
    tokens = (*(alphabet[byte] for byte in range(END)), "<end>", *itertools.islice(words, vocab_size - 256))
    return TokenizerData(tokens=tokens, merges=(), special_token_ids=frozenset({END}), eos_token_id=END)


def save_llama(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype) -> None:
    """Write a model of the Llama family as a Hugging Face folder that the server can load."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = checkpoint.tensors.items()
    tensors = {_stored_name(name): one.dequantize().to("cpu", dtype) for name, one in stored}
    save_file(tensors, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps(_config_json(checkpoint.config)))
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer_json(checkpoint.tokenizer)))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))


def _stored_name(name: str) -> str:
    """Return what Hugging Face calls a tensor."""
    module, _, kind = name.rpartition(".")
    if not module.startswith("layers."):
        return f"{name}" if module == "lm_head" else f"model.{name}"
    _, number, ours = module.split(".", 2)
    theirs = {value: key for key, value in TENSOR_NAMES.layer.items()}[ours]
    return f"model.layers.{number}.{theirs}.{kind}"


def _config_json(config: ModelConfig) -> Mapping[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "eos_token_id": END,
    }


def _tokenizer_json(data: TokenizerData) -> Mapping[str, object]:
    split = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    end = {"id": END, "content": "<end>", "special": True, "normalized": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    return {
        "version": "1.0",
        "added_tokens": [end | flags],
        "pre_tokenizer": split,
        "decoder": split,
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(data.tokens) if number != END},
            "merges": [],
        },
    }
