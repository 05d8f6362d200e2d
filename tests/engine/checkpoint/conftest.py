"""Fixtures that write tiny model files."""

from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter

VOCABULARY = ["<|endoftext|>", "<|im_end|>", *(chr(ord("!") + i) for i in range(60)), "ab", "<tool>"]
TOKEN_TYPES = [3, 3, *([1] * 60), 1, 4]
WriteGGUF = Callable[..., Path]


class GGUFRecipe:
    """A tiny Llama-family or GPT-2 GGUF; change the attributes, then write it."""

    def __init__(self, architecture: str, weight_format: GGMLQuantizationType) -> None:
        self.architecture = architecture
        self.metadata: dict[str, object] = {
            "block_count": 2,
            "context_length": 128,
            "embedding_length": 64,
            "feed_forward_length": 96,
            "attention.head_count": 4,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "attention.layer_norm_epsilon": 1e-5,
        }
        self.tokenizer: dict[str, object] = {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "smollm",
            "tokenizer.ggml.tokens": VOCABULARY,
            "tokenizer.ggml.token_type": TOKEN_TYPES,
            "tokenizer.ggml.merges": ["a b"],
            "tokenizer.ggml.eos_token_id": 0,
            "tokenizer.ggml.bos_token_id": 0,
        }
        self.general: dict[str, object] = {}
        self.tensors: dict[str, np.ndarray] = {}
        self.formats: dict[str, GGMLQuantizationType] = {}
        rng = np.random.default_rng(0)
        self._add(rng, "token_embd.weight", len(VOCABULARY), 64)
        self._add(rng, "output_norm.weight", 64)
        kv_rows = 64
        if architecture == "gpt2":
            self._add(rng, "position_embd.weight", 128, 64)
            self._add(rng, "output_norm.bias", 64)
        else:
            kv_rows = 32
            self.metadata["attention.head_count_kv"] = 2
            self.metadata["rope.freq_base"] = 50_000.0
        for layer in range(2):
            self._add_layer(rng, f"blk.{layer}", kv_rows)
        for name, values in self.tensors.items():
            self.formats[name] = weight_format if values.ndim == 2 else GGMLQuantizationType.F32

    def _add_layer(self, rng: np.random.Generator, prefix: str, kv_rows: int) -> None:
        self._add(rng, f"{prefix}.attn_norm.weight", 64)
        self._add(rng, f"{prefix}.ffn_norm.weight", 64)
        self._add(rng, f"{prefix}.attn_output.weight", 64, 64)
        self._add(rng, f"{prefix}.ffn_up.weight", 96, 64)
        self._add(rng, f"{prefix}.ffn_down.weight", 64, 96)
        if self.architecture == "gpt2":
            self._add(rng, f"{prefix}.attn_qkv.weight", 192, 64)
            for name, size in (("attn_qkv", 192), ("attn_output", 64), ("ffn_up", 96), ("ffn_down", 64)):
                self._add(rng, f"{prefix}.{name}.bias", size)
            self._add(rng, f"{prefix}.attn_norm.bias", 64)
            self._add(rng, f"{prefix}.ffn_norm.bias", 64)
            return
        self._add(rng, f"{prefix}.attn_q.weight", 64, 64)
        self._add(rng, f"{prefix}.attn_k.weight", kv_rows, 64)
        self._add(rng, f"{prefix}.attn_v.weight", kv_rows, 64)
        self._add(rng, f"{prefix}.ffn_gate.weight", 96, 64)

    def _add(self, rng: np.random.Generator, name: str, *shape: int) -> None:
        self.tensors[name] = rng.standard_normal(shape, dtype=np.float32)

    def write(self, path: Path) -> Path:
        writer = GGUFWriter(path, self.architecture)
        _add_values(writer, self.general)
        _add_values(writer, {f"{self.architecture}.{key}": value for key, value in self.metadata.items()})
        _add_values(writer, self.tokenizer)
        for name, values in self.tensors.items():
            kind = self.formats.get(name, GGMLQuantizationType.F32)
            stored = values if values.dtype == np.uint8 else gguf.quants.quantize(values, kind)
            writer.add_tensor(name, stored, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def _add_values(writer: GGUFWriter, values: Mapping[str, object]) -> None:
    for key, value in values.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)


@pytest.fixture
def gguf_recipe() -> Callable[..., GGUFRecipe]:
    """Return a function that starts a recipe: gguf_recipe("llama", GGMLQuantizationType.F32)."""

    def start(
        architecture: str = "llama", weight_format: GGMLQuantizationType = GGMLQuantizationType.F32
    ) -> GGUFRecipe:
        return GGUFRecipe(architecture, weight_format)

    return start
