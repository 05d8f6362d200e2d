"""A Llama checkpoint as `transformers` runs it, with the same dequantised weights."""

from transformers import LlamaConfig, LlamaForCausalLM

from engine.checkpoint import Checkpoint

_REFERENCE_NAMES = {
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attn.": "self_attn.",
}


def build_reference(checkpoint: Checkpoint) -> LlamaForCausalLM:
    """Return a Llama of `transformers` that holds the checkpoint's weights."""
    config = checkpoint.config
    assert config.rope is not None
    model: LlamaForCausalLM = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope.theta},
            tie_word_embeddings=True,
        )
    )
    model.train(mode=False)
    state = {}
    for name, tensor in checkpoint.tensors.items():
        for ours, theirs in _REFERENCE_NAMES.items():
            name = name.replace(ours, theirs)
        state[f"model.{name}"] = tensor.dequantize()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], []), "only the tied head is not stored"
    return model
