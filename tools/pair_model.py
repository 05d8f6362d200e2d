"""GPT-2 as it is trained here, and as Hugging Face's layout stores it."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes, under the names of GPT-2's config.json."""

    n_layer: int
    n_embd: int
    n_head: int
    n_inner: int
    vocab_size: int = 1024
    n_positions: int = 512


class Cache:
    """Keys and values of up to `size` tokens: per layer [2, batch, n_head, size, head_dim]."""

    def __init__(self, shape: Shape, batch: int, size: int) -> None:
        head_dim = shape.n_embd // shape.n_head
        self.length = 0
        self.layers = [
            torch.zeros(2, batch, shape.n_head, size, head_dim, dtype=torch.bfloat16)
            for _ in range(shape.n_layer)
        ]


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        size = shape.n_embd
        self.n_head = shape.n_head
        self.ln_1, self.ln_2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.qkv, self.attn_out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.up, self.down = nn.Linear(size, shape.n_inner), nn.Linear(shape.n_inner, size)

    def forward(self, x: Tensor, cached: Tensor | None, start: int) -> Tensor:
        """Map [batch, num_tokens, n_embd] to the same; num_tokens is 1 after the first `start` tokens."""
        heads = self.qkv(self.ln_1(x)).unflatten(-1, (3, self.n_head, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind(0)
        if cached is not None:
            end = start + x.shape[1]
            cached[:, :, :, start:end] = heads[1:]
            k, v = cached[:, :, :, :end]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=start == 0)
        x = x + self.attn_out(y.transpose(1, 2).flatten(2))
        mlp: Tensor = self.down(F.gelu(self.up(self.ln_2(x)), approximate="tanh"))
        return x + mlp


class GPT2(nn.Module):
    """GPT-2 with tied embeddings and without dropout."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.wte = nn.Embedding(shape.vocab_size, shape.n_embd)
        self.wpe = nn.Embedding(shape.n_positions, shape.n_embd)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.n_layer))
        self.ln_f = nn.LayerNorm(shape.n_embd)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                is_last = name.endswith(("attn_out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * shape.n_layer) ** 0.5 if is_last else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, token_ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Map token ids [batch, num_tokens] to logits [batch, num_tokens, vocab_size]."""
        start = cache.length if cache else 0
        x = self.wte(token_ids) + self.wpe.weight[start : start + token_ids.shape[1]]
        for i, block in enumerate(self.blocks):
            x = block(x, cache.layers[i] if cache else None, start)
        if cache:
            cache.length += token_ids.shape[1]
        return F.linear(self.ln_f(x), self.wte.weight)

    def num_parameters(self) -> int:
        """Count the weights; tied ones once."""
        return sum(parameter.numel() for parameter in self.parameters())


_NAMES = {"qkv": "attn.c_attn", "attn_out": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}


def save_model(model: GPT2, folder: Path, *, end_token_id: int) -> None:
    """Write config.json and model.safetensors (float16)."""
    shape = model.shape
    tensors = {}
    for name, value in model.state_dict().items():
        stored = value.detach().to(torch.float16)
        tensors[_stored_name(name)] = (stored.t() if _is_linear(name) else stored).contiguous()
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": end_token_id,
        "eos_token_id": end_token_id,
        "torch_dtype": "float16",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | vars(shape), indent=2) + "\n")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def load_model(folder: Path) -> GPT2:
    """Read what `save_model` wrote, as float32."""
    config = json.loads((folder / "config.json").read_text())
    model = GPT2(Shape(**{key: config[key] for key in Shape.__dataclass_fields__}))
    stored = load_file(folder / "model.safetensors")
    values = {name: stored[_stored_name(name)].float() for name in model.state_dict()}
    model.load_state_dict({name: v.t() if _is_linear(name) else v for name, v in values.items()})
    return model.eval()


def _is_linear(name: str) -> bool:
    """Tell whether Hugging Face stores this weight as [in_features, out_features]."""
    return name.endswith(".weight") and name.split(".")[-2] in _NAMES


def _stored_name(name: str) -> str:
    if not name.startswith("blocks."):
        return f"transformer.{name}"
    _, number, part, kind = name.split(".")
    return f"transformer.h.{number}.{_NAMES.get(part, part)}.{kind}"
