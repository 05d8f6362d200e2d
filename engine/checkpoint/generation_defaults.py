"""The sampling parameters that a model's authors recommend, as a request would name them.

Hugging Face has generation_config.json, where `do_sample: false` means the most likely token and a null is no
value; GGUF has `general.sampling.*`, where a temperature or top_k of 0 or less switches it off. What either
holds beyond our parameters is named in a warning.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from engine.checkpoint.metadata import Metadata, shorten
from engine.interface.errors import CheckpointError, RequestError
from engine.interface.sampling_params import SamplingParams

logger = logging.getLogger(__name__)

_REALS = ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty")

_NOT_APPLIED: Mapping[str, object] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "guidance_scale": 1,
    "penalty_alpha": 0,
    "diversity_penalty": 0,
    "encoder_repetition_penalty": 1,
    "encoder_no_repeat_ngram_size": 0,
    "no_repeat_ngram_size": 0,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "top_h": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "bad_words_ids": None,
    "force_words_ids": None,
    "constraints": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "forced_decoder_ids": None,
    "exponential_decay_length_penalty": None,
    "stop_strings": None,
    "watermarking_config": None,
}
"""Keys of generation_config.json that change an answer, with the value that does not."""

_GGUF = "general.sampling."
_GGUF_NAMES = {
    "temperature": "temp",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}
_GGUF_NOT_APPLIED: Mapping[str, object] = {"sequence": "", "xtc_probability": 0, "mirostat": 0}


def read_generation_config(generation: Metadata) -> dict[str, float]:
    """Return the defaults of a generation_config.json; raises CheckpointError for values out of range."""
    found: dict[str, float | None] = {name: generation.find_real(name) for name in _REALS}
    found["top_k"] = generation.find_integer("top_k")
    if not generation.boolean("do_sample", default=True):
        found["temperature"] = 0.0
    _warn(generation, _NOT_APPLIED, prefix="")
    return _checked({name: value for name, value in found.items() if value is not None}, generation.path)


def read_gguf_sampling(metadata: Metadata) -> dict[str, float]:
    """Return the defaults of a GGUF file's `general.sampling.*`; raises CheckpointError as above."""
    found = {ours: metadata.find_real(f"{_GGUF}{theirs}") for ours, theirs in _GGUF_NAMES.items()}
    defaults = {name: _shortest(value) for name, value in found.items() if value is not None}
    top_k = metadata.find_integer(f"{_GGUF}top_k")
    if top_k is not None:
        defaults["top_k"] = max(0, top_k)
    if "temperature" in defaults:
        defaults["temperature"] = max(0.0, defaults["temperature"])
    window = metadata.integer(f"{_GGUF}penalty_last_n", default=-1)  # tokens that count; -1: all of them
    if window == 0:
        defaults.pop("repetition_penalty", None)
    elif window > 0 and defaults.get("repetition_penalty", 1.0) != 1.0:
        logger.warning(
            "%s: %spenalty_last_n = %d is not applied: a repetition penalty counts every token of prompt and "
            "answer",
            metadata.path,
            _GGUF,
            window,
        )
    _warn(metadata, _GGUF_NOT_APPLIED, prefix=_GGUF)
    return _checked(defaults, metadata.path)


def _shortest(value: float) -> float:
    """Return the decimal that a float32 was written as: 0.6 and not 0.6000000238."""
    single = np.float32(value)
    return float(str(single)) if float(single) == value else value


def _warn(metadata: Metadata, neutral: Mapping[str, object], *, prefix: str) -> None:
    found = {f"{prefix}{key}": (metadata.find(f"{prefix}{key}"), value) for key, value in neutral.items()}
    names = [
        f"{key} = {shorten(value)}"
        for key, (value, none) in found.items()
        if value is not None and value not in (none, [], {}, "", False)
    ]
    if names:
        logger.warning(
            "%s: %s: not applied, there is no such sampling parameter", metadata.path, ", ".join(names)
        )


def _checked(defaults: dict[str, float], path: Path) -> dict[str, float]:
    """Return the defaults if a request could ask for them."""
    reals = {name: value for name, value in defaults.items() if name != "top_k"}
    try:
        SamplingParams(top_k=int(defaults.get("top_k", 0)), **reals)  # type: ignore[arg-type]
    except RequestError as error:
        raise CheckpointError(f"{path}: {error}; change or remove it there") from error
    return defaults
