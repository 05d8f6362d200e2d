"""From settings to a served model: checkpoint, engine, tokenizer and chat template."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from hashlib import blake2b
from math import prod
from pathlib import Path
from typing import Any

from pydantic import ByteSize

from engine.checkpoint import Checkpoint, TokenizerData, load_checkpoint
from engine.interface.config import EngineConfig
from engine.interface.errors import CheckpointError
from engine.interface.info import EngineInfo
from engine.interface.pooling import Pooling
from engine.loading.attention import load_attention_model
from engine.loading.loader import load_engine, load_engine_process
from engine.loading.machine import choose_device
from server.answers import FORMATS, ToolFormat, choose_format
from server.answers.reasoning import BEGIN
from server.serving import EmbeddingModel, ServedModel
from server.settings import ModelSettings, ServeSettings
from server.text import ChatTemplate, ContentGuard, Tokenizer, find_fill_in_middle


def load_served_model(settings: ModelSettings) -> ServedModel:
    """Load the model that `settings` name and start its engine; raises DraftlineError."""
    config = engine_config(settings)
    checkpoint = load_checkpoint(settings.model)
    name = settings.served_model_name if isinstance(settings, ServeSettings) else None
    with _naming(checkpoint):
        tokenizer, chat_template = Tokenizer(checkpoint.tokenizer), _chat_template(checkpoint.tokenizer)
    draft_checkpoint = None if settings.draft_model is None else load_checkpoint(settings.draft_model)
    shows_attention = isinstance(settings, ServeSettings) and settings.enable_attention
    attention = load_attention_model(checkpoint) if shows_attention else None
    if _wants_process(settings, config):
        engine = load_engine_process(settings.model, config, settings.draft_model)
    else:
        engine = load_engine(checkpoint, config, draft_checkpoint)
    embedding = _embedding_model(settings, checkpoint)
    return ServedModel(
        name=name or checkpoint.name,
        description=_describe(checkpoint),
        engine=engine,
        tokenizer=tokenizer,
        chat_template=chat_template,
        content_guard=_content_guard(settings, tokenizer),
        max_token_bytes=max((len(token.encode()) for token in checkpoint.tokenizer.tokens), default=1),
        developer_role="developer" if "developer" in (checkpoint.tokenizer.chat_template or "") else "system",
        tool_format=_tool_format(settings, checkpoint.tokenizer),
        has_reasoning=BEGIN in (checkpoint.tokenizer.chat_template or "")
        or BEGIN in checkpoint.tokenizer.tokens,
        fill_in_middle=find_fill_in_middle(tokenizer),
        embedding=None if isinstance(embedding, str) else embedding,
        why_no_embeddings=embedding if isinstance(embedding, str) else "",
        attention=attention,
        generation_defaults=checkpoint.generation_defaults,
        system_fingerprint=_system_fingerprint(checkpoint, _precision(engine.info)),
    )


def engine_config(settings: ModelSettings) -> EngineConfig:
    """Return the settings that are fields of EngineConfig, taken by name."""
    names = {field.name for field in fields(EngineConfig)}
    values: dict[str, Any] = {name: _plain(value) for name, value in settings if name in names}
    if not isinstance(settings, ServeSettings):
        return EngineConfig(**values, max_num_seqs=1)
    return EngineConfig(**values, enable_prefix_caching=not settings.no_prefix_caching)


def _plain(value: object) -> object:
    """Return a setting as the engine's records have it, which cross to other processes."""
    if isinstance(value, Path):
        return str(value)
    return int(value) if isinstance(value, ByteSize) else value


def _wants_process(settings: ModelSettings, config: EngineConfig) -> bool:
    if not isinstance(settings, ServeSettings) or settings.engine_process == "off":
        return False
    return settings.engine_process == "on" or choose_device(config.device).type != "cpu"


def _embedding_model(settings: ModelSettings, checkpoint: Checkpoint) -> EmbeddingModel | str:
    """Return how the model makes embeddings, or why it makes none."""
    asked = settings.pooling if isinstance(settings, ServeSettings) else "auto"
    if asked == "off":
        return "this server makes no embeddings (--pooling off)"
    defaults = checkpoint.embedding_defaults
    if asked == "auto" and defaults.unsupported is not None:
        return (
            f"this model's embeddings need {defaults.unsupported}, which is not supported; "
            "--pooling last or mean makes others of it"
        )
    return EmbeddingModel(
        pooling=(defaults.pooling or Pooling.LAST) if asked == "auto" else Pooling(asked),
        hidden_size=checkpoint.config.hidden_size,
        suffix_token_id=checkpoint.tokenizer.suffix_token_id,
        is_matryoshka=defaults.is_matryoshka,
    )


def _describe(checkpoint: Checkpoint) -> str:
    num_parameters = sum(prod(tensor.shape) for tensor in checkpoint.tensors.values())
    formats = Counter(tensor.format for tensor in checkpoint.tensors.values())
    stored = formats.most_common(1)[0][0] if formats else "nothing"
    return f"{checkpoint.config.architecture}, {num_parameters / 1e6:,.1f}M parameters, stored as {stored}"


@contextlib.contextmanager
def _naming(checkpoint: Checkpoint) -> Iterator[None]:
    """Put the checkpoint's path before errors in what it says of text."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error


def _chat_template(data: TokenizerData) -> ChatTemplate | None:
    if data.chat_template is None:
        return None
    return ChatTemplate(
        data.chat_template,
        bos_token=_token_text(data, data.bos_token_id),
        eos_token=_token_text(data, data.eos_token_id),
    )


def _content_guard(settings: ModelSettings, tokenizer: Tokenizer) -> ContentGuard | None:
    if isinstance(settings, ServeSettings) and settings.allow_special_tokens_in_content:
        return None
    return ContentGuard(tokenizer.special_tokens)


def _tool_format(settings: ModelSettings, data: TokenizerData) -> ToolFormat:
    if isinstance(settings, ServeSettings) and settings.tool_call_parser != "auto":
        return FORMATS[settings.tool_call_parser]
    return choose_format(data.chat_template or "")


def _token_text(data: TokenizerData, token_id: int | None) -> str:
    return "" if token_id is None else data.tokens[token_id]


def _precision(info: EngineInfo | None) -> str:
    return "" if info is None else f"{info.dtype}/{info.kv_cache_dtype}/{info.kernels}"


def _system_fingerprint(checkpoint: Checkpoint, dtype: str) -> str:
    """Name the weights and their precision: what else could change an answer is in the request."""
    digest = blake2b(checkpoint.fingerprint + dtype.encode(), digest_size=6).hexdigest()
    return f"fp_{digest}"
