"""Tensor names: from GGUF, Hugging Face and nanoGPT to ours (listed at `Checkpoint`)."""

import re
from collections.abc import Collection, Mapping

_GGUF_TOP = {
    "token_embd": "embed_tokens",
    "position_embd": "embed_positions",
    "output_norm": "norm",
    "output": "lm_head",
}
_GGUF_LAYER = {
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
}
_LLAMA_TOP = {"embed_tokens": "embed_tokens", "norm": "norm", "lm_head": "lm_head"}
_LLAMA_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn.q_proj",
    "self_attn.k_proj": "attn.k_proj",
    "self_attn.v_proj": "attn.v_proj",
    "self_attn.o_proj": "attn.o_proj",
    "self_attn.q_norm": "attn.q_norm",
    "self_attn.k_norm": "attn.k_norm",
    "post_attention_layernorm": "mlp_norm",
    "mlp.gate_proj": "mlp.gate_proj",
    "mlp.up_proj": "mlp.up_proj",
    "mlp.down_proj": "mlp.down_proj",
}
_GPT2_TOP = {"wte": "embed_tokens", "wpe": "embed_positions", "ln_f": "norm", "lm_head": "lm_head"}
_GPT2_LAYER = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn.qkv_proj",
    "attn.c_proj": "attn.o_proj",
    "ln_2": "mlp_norm",
    "mlp.c_fc": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
}

_IGNORED_BUFFERS = re.compile(r"\.attn\.(bias|masked_bias)$|rotary_emb\.inv_freq$")
"""Causal masks and rotary frequencies, which old files hold beside the weights."""

_WRAPPERS = ("module.", "_orig_mod.", "base_model.model.", "base_model.", "language_model.", "model.")
"""What data parallelism, torch.compile, adapters and multimodal models put before every name."""

_LAYER = re.compile(r"layers\.([0-9]+)\.")
_STORED_LAYER = re.compile(r"(.*?)(?:layers|h|blk)\.[0-9]+\.")


def from_gguf(name: str) -> str:
    """Return our name of a GGUF tensor; a name that no supported model has is returned as it is."""
    return _translate(name, prefix="", layer_prefix="blk", top=_GGUF_TOP, layer=_GGUF_LAYER)


def from_llama(name: str) -> str:
    """Return our name of a tensor of a Hugging Face Llama, Mistral or Qwen; unknown names as they are."""
    return _translate(name, prefix="model.", layer_prefix="layers", top=_LLAMA_TOP, layer=_LLAMA_LAYER)


def from_gpt2(name: str) -> str:
    """Return our name of a tensor of a Hugging Face or nanoGPT GPT-2; unknown names as they are."""
    return _translate(name, prefix="transformer.", layer_prefix="h", top=_GPT2_TOP, layer=_GPT2_LAYER)


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


def _translate(
    name: str, *, prefix: str, layer_prefix: str, top: Mapping[str, str], layer: Mapping[str, str]
) -> str:
    module, _, parameter = name.removeprefix(prefix).rpartition(".")
    if parameter not in ("weight", "bias"):
        return name
    if module in top:
        return f"{top[module]}.{parameter}"
    match = re.fullmatch(rf"{layer_prefix}\.([0-9]+)\.(.+)", module)
    if match is None or match[2] not in layer:
        return name
    return f"layers.{match[1]}.{layer[match[2]]}.{parameter}"
