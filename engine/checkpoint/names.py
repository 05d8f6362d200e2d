"""Tensor names: from GGUF, Hugging Face and nanoGPT to ours (listed at `Checkpoint`)."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TensorNames:
    """How one kind of file names its tensors: the modules before ".weight" and ".bias"."""

    prefix: str  # before every name, may be missing
    layer_prefix: str
    top: Mapping[str, str]  # modules outside layers, to our names
    layer: Mapping[str, str]  # modules of a layer, to our names

    def to_ours(self, name: str) -> str:
        """Return our name of a tensor; a name that no supported model has is returned as it is."""
        module, _, parameter = name.removeprefix(self.prefix).rpartition(".")
        if parameter not in ("weight", "bias"):
            return name
        if module in self.top:
            return f"{self.top[module]}.{parameter}"
        match = re.fullmatch(rf"{self.layer_prefix}\.([0-9]+)\.(.+)", module)
        if match is None or match[2] not in self.layer:
            return name
        return f"layers.{match[1]}.{self.layer[match[2]]}.{parameter}"


GGUF_NAMES = TensorNames(
    prefix="",
    layer_prefix="blk",
    top={
        "token_embd": "embed_tokens",
        "position_embd": "embed_positions",
        "output_norm": "norm",
        "output": "lm_head",
    },
    layer={
        "attn_norm": "attn_norm",
        "attn_qkv": "attn.qkv_proj",
        "attn_q": "attn.q_proj",
        "attn_k": "attn.k_proj",
        "attn_v": "attn.v_proj",
        "attn_output": "attn.o_proj",
        "attn_q_norm": "attn.q_norm",
        "attn_k_norm": "attn.k_norm",
        "ffn_norm": "mlp_norm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    },
)
"""llama.cpp names the tensors of all families alike."""

_IGNORED_BUFFERS = re.compile(r"\.attn\.(bias|masked_bias)$|rotary_emb\.inv_freq$")
"""Causal masks and rotary frequencies, which old files hold beside the weights."""

_WRAPPERS = ("module.", "_orig_mod.", "base_model.model.", "base_model.", "language_model.", "model.")
"""What data parallelism, torch.compile, adapters and multimodal models put before every name."""

_LAYER = re.compile(r"layers\.([0-9]+)\.")
_STORED_LAYER = re.compile(r"(.*?)(?:layers|h|blk)\.[0-9]+\.")


def shared_wrapper(names: Collection[str]) -> str:
    """Return the wrappers' prefix that all names share, "" for none: without it they name the same model."""
    prefix = ""
    while names:
        wrapper = next((w for w in _WRAPPERS if all(name.startswith(prefix + w) for name in names)), None)
        if wrapper is None:
            break
        prefix += wrapper
    return prefix


def layer_prefixes(names: Collection[str]) -> tuple[str, ...]:
    """Return what stands before the layers' numbers in stored names, for people."""
    matches = (_STORED_LAYER.match(name) for name in names)
    return tuple(sorted({match[1] for match in matches if match}))


def is_ignored_buffer(name: str) -> bool:
    """Tell whether a stored tensor is a constant that the model computes itself."""
    return _IGNORED_BUFFERS.search(name) is not None


def layer_indices(names: Mapping[str, object]) -> frozenset[int]:
    """Return the numbers of the layers that some tensor in our naming belongs to."""
    matches = (_LAYER.match(name) for name in names)
    return frozenset(int(match[1][:9]) for match in matches if match)
