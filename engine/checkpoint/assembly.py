"""The last step of every loader: checks that need configuration and tensors together, then the record."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from engine.checkpoint.checkpoint import Checkpoint, StoredTensor, TokenizerData
from engine.checkpoint.embedding_defaults import EmbeddingDefaults
from engine.checkpoint.fingerprint import compute_fingerprint
from engine.checkpoint.metadata import shorten
from engine.checkpoint.model_config import ModelConfig, RopeConfig, RopeScaling
from engine.checkpoint.names import layer_indices, layer_prefixes
from engine.checkpoint.stored_tensor import are_equal, describe
from engine.interface.errors import CheckpointError, ConfigError

MAX_CONTEXT = 1 << 24
"""Above the longest context of any published model; position tables of a corrupt one would fill memory."""

MAX_TENSORS = 1 << 14
"""A dozen for each of more than a thousand layers; each costs time to look at."""

_EMBEDDING = "embed_tokens.weight"
_HEAD = "lm_head.weight"


@contextmanager
def config_errors_as_checkpoint_errors(path: Path) -> Iterator[None]:
    """Turn ConfigError into a CheckpointError that names the file the values came from."""
    try:
        yield
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def assemble(
    *,
    name: str,
    path: Path,
    weight_files: Sequence[Path],
    config: ModelConfig,
    tensors: Mapping[str, StoredTensor],
    tokenizer: TokenizerData,
    stop_token_ids: frozenset[int],
    generation_defaults: Mapping[str, float],
    embedding_defaults: EmbeddingDefaults | None = None,
) -> Checkpoint:
    """Build a Checkpoint after the checks that keep a corrupt configuration from costing memory.

    A head stored although it equals the embedding is dropped and the model tied; one that differs from it
    is kept and the model untied, whatever the configuration says. End tokens outside the vocabulary, which
    small models inherit from a configuration class, can never be generated and are left out.
    """
    kept = dict(tensors)
    if _HEAD in kept and _EMBEDDING in kept:
        is_copy = are_equal(kept[_HEAD], kept[_EMBEDDING])
        if is_copy:
            del kept[_HEAD]
        config = replace(config, tie_word_embeddings=is_copy)
    if config.rope is not None:
        _check_rope(config.rope, path)
    _check_head(config, kept, path)
    _check_layers(config, kept, path)
    _check_sizes(config, kept, path)
    _check_tokenizer(config, tokenizer, path)
    return Checkpoint(
        name=name,
        path=path,
        config=config,
        tensors=kept,
        tokenizer=tokenizer,
        stop_token_ids=frozenset(i for i in stop_token_ids if 0 <= i < config.vocab_size),
        generation_defaults=generation_defaults,
        embedding_defaults=embedding_defaults or EmbeddingDefaults(),
        fingerprint=compute_fingerprint(config, kept, weight_files),
    )


def _check_rope(rope: RopeConfig, path: Path) -> None:
    """Refuse values that the rotary tables would divide by, or take the logarithm of, in vain."""
    limits = {"theta": 1.0, "beta_fast": 0.0, "beta_slow": 0.0, "low_freq_factor": 0.0}
    for name, limit in limits.items():
        if getattr(rope, name) <= limit:
            raise CheckpointError(f"{path}: rope {name} must be above {limit}, got {getattr(rope, name)}")
    if rope.high_freq_factor <= rope.low_freq_factor:
        raise CheckpointError(
            f"{path}: rope high_freq_factor must be above low_freq_factor ({rope.low_freq_factor}), "
            f"got {rope.high_freq_factor}"
        )
    if not 1.0 <= rope.factor <= MAX_CONTEXT:
        raise CheckpointError(f"{path}: rope factor must be from 1 to {MAX_CONTEXT}, got {rope.factor}")
    if rope.scaling in (RopeScaling.LLAMA3, RopeScaling.YARN) and rope.original_max_position_embeddings < 1:
        raise CheckpointError(f"{path}: rope original_max_position_embeddings must be at least 1")


def _check_head(config: ModelConfig, tensors: Mapping[str, StoredTensor], path: Path) -> None:
    """Refuse to take the embedding for a head that the configuration says is another matrix."""
    if not config.tie_word_embeddings and _EMBEDDING in tensors and _HEAD not in tensors:
        raise CheckpointError(
            f"{path}: tensor {_HEAD} is missing, and the configuration does not tie it to {_EMBEDDING}; "
            "fetch the missing file, or set tie_word_embeddings to true in config.json if it was trained so"
        )


def _check_layers(config: ModelConfig, tensors: Mapping[str, StoredTensor], path: Path) -> None:
    stored = layer_indices(tensors)
    if tensors and not stored:
        prefixes = ", ".join(map(shorten, layer_prefixes(tensors)[:3]))
        found = f"before their layers' numbers the names have {prefixes}" if prefixes else "none has a layer"
        raise CheckpointError(
            f"{path}: none of the {len(tensors)} tensors has a name that this family has: {found}; save the "
            "model itself, without what is wrapped around it, or rename them"
        )
    if len(stored) != config.num_layers or max(stored, default=0) >= config.num_layers:
        raise CheckpointError(
            f"{path}: the configuration says {config.num_layers} layers but tensors of {len(stored)} are "
            f"stored (highest number {max(stored, default='none')}); the file is incomplete or altered"
        )


def _check_sizes(config: ModelConfig, tensors: Mapping[str, StoredTensor], path: Path) -> None:
    """Compare every size in the configuration with a tensor that has it; the model checks all shapes."""
    if config.max_position_embeddings > MAX_CONTEXT:
        raise CheckpointError(
            f"{path}: a context of {config.max_position_embeddings} tokens is more than {MAX_CONTEXT}"
        )
    q_rows = config.num_heads * config.head_dim
    kv_rows = config.num_kv_heads * config.head_dim
    expected = {
        _EMBEDDING: (config.vocab_size, config.hidden_size),
        "embed_positions.weight": (config.max_position_embeddings, config.hidden_size),
        "layers.0.attn.q_proj.weight": (q_rows, config.hidden_size),
        "layers.0.attn.k_proj.weight": (kv_rows, config.hidden_size),
        "layers.0.attn.qkv_proj.weight": (q_rows + 2 * kv_rows, config.hidden_size),
        "layers.0.mlp.up_proj.weight": (config.intermediate_size, config.hidden_size),
    }
    for name, shape in expected.items():
        if name in tensors and tensors[name].shape != shape:
            what = describe(name, tensors[name])
            raise CheckpointError(
                f"{what} has shape {list(tensors[name].shape)}, but the configuration says {list(shape)}"
            )
    if _EMBEDDING not in tensors:
        raise CheckpointError(f"{path}: tensor {_EMBEDDING} is missing")


def _check_tokenizer(config: ModelConfig, tokenizer: TokenizerData, path: Path) -> None:
    if len(tokenizer.tokens) > config.vocab_size:
        raise CheckpointError(
            f"{path}: the tokenizer has {len(tokenizer.tokens)} tokens but the model only "
            f"{config.vocab_size}; they belong to different models"
        )
    try:
        for text in (*tokenizer.tokens, tokenizer.chat_template or ""):
            text.encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(
            f"{path}: a token or the chat template is not valid Unicode: {error}"
        ) from error
