"""Fields of config.json that change the forward pass of other families and are not applied to this one.

transformers ignores them under a `model_type` that does not have them; a file that holds one that is not
neutral was written for another model, and its answers would be wrong without a word.
"""

import logging
import math
import re
from collections.abc import Mapping

from engine.checkpoint.architectures.architecture import Architecture
from engine.checkpoint.metadata import MAX_INTEGER, Metadata, shorten
from engine.checkpoint.model_config import ModelConfig
from engine.interface.errors import CheckpointError

logger = logging.getLogger(__name__)

_ONE = (1.0,)
_OFF = (0.0, False)
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    **dict.fromkeys(("embedding_multiplier", "scale_emb", "lm_head_multiplier"), _ONE),
    **dict.fromkeys(("residual_multiplier", "residual_scale", "logits_scaling", "logit_scale"), _ONE),
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct", "rope_pct", "rope_percentage"), _ONE),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "clip_qkv"), _OFF),
    **dict.fromkeys(("logits_soft_cap", "attention_chunk_size", "attention_sink_size"), _OFF),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), (0.0, 1.0)),
    **dict.fromkeys(("moe_num_experts", "n_shared_experts"), (0.0, 1.0)),
    **dict.fromkeys(("rope_interleave", "rope_interleaved", "alibi", "use_alibi"), _OFF),
    **dict.fromkeys(("use_qk_norm", "qk_norm", "qk_layernorm", "use_parallel_residual"), _OFF),
    **dict.fromkeys(("is_causal",), (True,)),
    **dict.fromkeys(("use_bidirectional_attention",), _OFF),
    **dict.fromkeys(("parallel_attn", "per_layer_config", "kv_lora_rank", "q_lora_rank"), _OFF),
}
"""The values that leave the forward pass of any family as it is; null does, too."""

_HARMLESS = re.compile(
    r"^_|^(add|output|return|summary|unsloth)_|drop|penalty|beam|length|repeat_ngram|_token_i|_version"
    r"|^(do_sample|early_stopping|chunk_size_feed_forward|initializer_range|is_decoder|n_ctx"
    r"|max_new_tokens|num_labels|num_return_sequences|pretraining_tp|reorder_and_upcast_attn|temperature"
    r"|top_[kp]|torchscript|typical_p|use_bfloat16|use_cache|use_mrope)$"
)
"""Names of numbers and flags that no logit depends on."""


def check_foreign_fields(metadata: Metadata, architecture: Architecture, config: ModelConfig) -> None:
    """Raise CheckpointError for a value that would need another forward pass, naming it.

    A number that neither the family nor this module knows is named in a warning.
    """
    neutral = {**_NEUTRAL, **_neutral_of(config), **architecture.neutral_fields}
    for key, values in neutral.items():
        value = metadata.find(key)
        if value is not None and not _is_neutral(value, values):
            wanted = " or ".join(shorten(value) for value in dict.fromkeys(values)) or "absent"
            raise CheckpointError(
                f"{metadata.path}: {key} = {shorten(value)} has no effect in a {architecture.name} model, "
                f"for which it would have to be {wanted}; remove it if the model was trained without, else "
                "model_type is wrong"
            )
    _check_layers(metadata, architecture, config.max_position_embeddings)
    unknown = sorted(
        key
        for key, value in metadata.values.items()
        if key not in {*neutral, *architecture.known_fields, "no_rope_layer_interval"}
        and _may_matter(key, value)
    )
    if unknown:
        logger.warning(
            "%s: a %s model has no %s; not applied", metadata.path, architecture.name, ", ".join(unknown)
        )


def _neutral_of(config: ModelConfig) -> dict[str, tuple[object, ...]]:
    """Return the numbers whose neutral value depends on the shape of the model."""
    return {
        "attention_multiplier": (config.head_dim**-0.5,),
        "query_pre_attn_scalar": (config.head_dim,),
        "rotary_dim": (config.head_dim,),
        "dim_model_base": (config.hidden_size,),  # MiniCPM divides the logits by hidden_size / dim_model_base
        "scale_depth": (math.sqrt(config.num_layers),),  # and residuals by sqrt(num_layers) / scale_depth
    }


def _is_neutral(value: object, neutral: tuple[object, ...]) -> bool:
    if value in ({}, []):
        return True
    if isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) > MAX_INTEGER:  # may have too many digits for a float
            return False
        return any(
            isinstance(other, int | float) and math.isclose(value, other, rel_tol=1e-3) for other in neutral
        )
    return value in neutral


def _check_layers(metadata: Metadata, architecture: Architecture, max_positions: int) -> None:
    """Refuse layers that differ from one another where the family has one kind only."""
    layer_types = metadata.find_list("layer_types")
    if layer_types is not None and not architecture.has_layer_types:
        others = [kind for kind in layer_types if kind != "full_attention"]
        if others:
            raise CheckpointError(
                f"{metadata.path}: layer_types has {shorten(others[0])}, but every layer of a "
                f"{architecture.name} model is full_attention; remove the field if the model was trained so"
            )
    rotated = metadata.find_list("no_rope_layers")  # 1: a layer with rotary positions
    interval = metadata.find("no_rope_layer_interval") if rotated is None else None
    if interval or (rotated is not None and any(layer != 1 for layer in rotated)):
        key = "no_rope_layer_interval" if interval else "no_rope_layers"
        raise CheckpointError(
            f"{metadata.path}: {key} = {shorten(rotated or interval)} has no effect in a {architecture.name} "
            "model; remove it if every layer has rotary positions"
        )
    window = 0 if architecture.has_sliding_window else metadata.integer("sliding_window", default=0)
    if 0 < window < max_positions and metadata.boolean("use_sliding_window", default=True):
        raise CheckpointError(
            f"{metadata.path}: sliding_window = {shorten(window)} has no effect in a {architecture.name} "
            "model; remove it if every layer sees the whole context"
        )


def _may_matter(key: str, value: object) -> bool:
    """Tell whether an unknown field could be a number or a flag that a forward pass needs."""
    if _HARMLESS.search(key):
        return False
    numbers = value if isinstance(value, list) else [value]  # one for each layer, or for all
    return any(
        isinstance(number, int | float) and (number is True or number not in (0, 1)) for number in numbers
    )
