"""hf:ORG/REPO: a Hugging Face repository, downloaded or from the local cache."""

import re
from importlib.util import find_spec
from pathlib import Path

from engine.checkpoint.metadata import shorten
from engine.interface.errors import CheckpointError

PREFIX = "hf:"

_SPEC = re.compile(r"hf:(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)

_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    "modules.json",
    "*_Pooling/config.json",
)


def check_spec(spec: str) -> None:
    """Raise CheckpointError for a spec that is misspelled, or when huggingface_hub is not installed."""
    _match(spec)
    if find_spec("huggingface_hub") is None:
        raise _not_installed(spec)


def download_repository(spec: str) -> Path:
    """Return the local folder of `hf:ORG/REPO` or `hf:ORG/REPO@REVISION`.

    Only the files that a checkpoint needs are fetched, into Hugging Face's own cache; HF_HUB_OFFLINE, HF_HOME
    and HF_TOKEN mean what they mean there. Raises CheckpointError when huggingface_hub is not installed, or
    the repository is neither reachable nor in the cache.
    """
    match = _match(spec)
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise _not_installed(spec) from error
    try:
        folder = snapshot_download(
            match["repository"], revision=match["revision"], allow_patterns=list(_FILES)
        )
    except (OSError, ValueError, RuntimeError) as error:  # the hub's own errors derive from these
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{spec}: cannot be fetched and is not in the local cache: {reason}; without a network, download "
            "the model elsewhere and pass its folder"
        ) from error
    return Path(folder)


def _match(spec: str) -> re.Match[str]:
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise CheckpointError(f"{shorten(spec)}: must be hf:ORG/REPO or hf:ORG/REPO@REVISION")
    return match


def _not_installed(spec: str) -> CheckpointError:
    return CheckpointError(
        f"{spec}: huggingface_hub is not installed; run `pip install 'draftline[hub]'`, or pass the path "
        "of a downloaded model"
    )


def repository_name(spec: str) -> str:
    """Return ORG/REPO of a spec."""
    return spec.removeprefix(PREFIX).partition("@")[0]
