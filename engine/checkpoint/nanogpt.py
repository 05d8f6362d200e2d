"""nanoGPT checkpoints: ckpt.pt with its model_args, and the vocabulary that lies beside it."""

import io
import pickle
import pickletools
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch

from engine.checkpoint import names
from engine.checkpoint.architectures.gpt2 import GPT2, with_gpt2_layers
from engine.checkpoint.assembly import assemble, config_errors_as_checkpoint_errors
from engine.checkpoint.checkpoint import Checkpoint, TokenizerData
from engine.checkpoint.huggingface_tokenizer import read_tokenizer
from engine.checkpoint.metadata import Metadata, shorten
from engine.checkpoint.model_config import Activation, ModelConfig
from engine.checkpoint.stored_tensor import PLAIN_FORMATS, TorchTensor
from engine.interface.errors import CheckpointError

_FORMATS = {dtype: name for name, dtype in PLAIN_FORMATS.items()}
_MAX_META_BYTES = 1 << 20
_MAX_PICKLE_BYTES = 1 << 22
"""Of a checkpoint without its weights: some hundred bytes a tensor; more would only take time to read."""
_GPT2_END_TOKEN_ID = 50256


def load_nanogpt(path: Path, *, name: str | None = None) -> Checkpoint:
    """Read a nanoGPT ckpt.pt; the weights stay in the memory-mapped file.

    With meta.pkl beside it the vocabulary is one of characters; else GPT-2's vocab.json and merges.txt, or
    its tokenizer.json, must lie beside it. Nothing is unpickled that could run code.
    Raises CheckpointError when a file is missing, corrupt or of another kind.
    """
    checkpoint = _load_pickle(path)
    state, arguments = checkpoint.get("model"), checkpoint.get("model_args")
    if not isinstance(state, Mapping) or not isinstance(arguments, Mapping):
        raise CheckpointError(f"{path}: not a nanoGPT checkpoint: it needs the keys 'model' and 'model_args'")
    metadata = Metadata({str(key): value for key, value in arguments.items()}, path=path)
    with config_errors_as_checkpoint_errors(path):
        config = _read_config(metadata)
    tokenizer = _read_tokenizer(path)
    return assemble(
        name=name or (path.resolve().parent.name if path.stem == "ckpt" else path.stem),
        path=path,
        weight_files=(path,),
        config=config,
        tensors=_read_tensors(state, path, has_biases=metadata.boolean("bias", default=True)),
        tokenizer=tokenizer,
        stop_token_ids=frozenset() if tokenizer.eos_token_id is None else frozenset({tokenizer.eos_token_id}),
        generation_defaults={},
    )


def _load_pickle(path: Path) -> Mapping[object, object]:
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = [entry.file_size for entry in archive.infolist() if entry.filename.endswith("data.pkl")]
        if sum(sizes) > _MAX_PICKLE_BYTES:
            raise CheckpointError(f"{path}: its pickle has {sum(sizes)} bytes, more than {_MAX_PICKLE_BYTES}")
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except Exception as error:  # unpickling corrupt bytes may raise anything
        reason = f"{type(error).__name__} {shorten(str(error).partition(chr(10))[0])}"
        raise CheckpointError(
            f"{path}: not a checkpoint that torch.load can read safely: {reason}"
        ) from error
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path}: not a nanoGPT checkpoint: it holds a {type(loaded).__name__}")
    return loaded


def _read_config(arguments: Metadata) -> ModelConfig:
    hidden_size, num_heads = arguments.integer("n_embd"), arguments.integer("n_head")
    if num_heads < 1 or hidden_size % num_heads:
        raise CheckpointError(f"{arguments.path}: n_head {num_heads} does not divide n_embd {hidden_size}")
    sizes = ModelConfig(
        architecture=GPT2.name,
        vocab_size=arguments.integer("vocab_size", default=50304),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_layers=arguments.integer("n_layer"),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden_size // num_heads,
        max_position_embeddings=arguments.integer("block_size"),
        norm_eps=1e-5,
        activation=Activation.GELU,
        rope=None,
        tie_word_embeddings=True,
    )
    return with_gpt2_layers(sizes)


def _read_tensors(state: Mapping[object, object], path: Path, *, has_biases: bool) -> dict[str, TorchTensor]:
    """Name the tensors as we do; those of a model trained without biases get biases of zero."""
    tensors: dict[str, TorchTensor] = {}
    wrapper = names.shared_wrapper([str(key) for key in state])
    for key, value in state.items():
        stored_name = str(key).removeprefix(wrapper)
        if names.is_ignored_buffer(stored_name):
            continue
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or not value.is_contiguous():
            # strides of zero could make a small file claim any shape
            raise CheckpointError(f"{path}: {shorten(stored_name)} is not a plain contiguous tensor")
        if value.dtype not in _FORMATS:
            raise CheckpointError(
                f"{path}: tensor {stored_name} is {value.dtype}; supported are {', '.join(PLAIN_FORMATS)}"
            )
        tensors[GPT2.tensor_names.to_ours(stored_name)] = TorchTensor(
            name=stored_name,
            path=path,
            shape=tuple(value.shape),
            format=_FORMATS[value.dtype],
            load=partial(torch.Tensor.detach, value),
        )
    if has_biases:
        return tensors
    for weight in [name for name in tensors if name.endswith(".weight")]:
        bias = f"{weight.removesuffix('.weight')}.bias"
        is_linear_or_norm = not weight.startswith(("embed_", "lm_head"))
        if is_linear_or_norm and bias not in tensors:
            tensors[bias] = _zero_bias(bias, tensors[weight].shape[0], path)
    return tensors


def _zero_bias(name: str, size: int, path: Path) -> TorchTensor:
    return TorchTensor(name=name, path=path, shape=(size,), format="F32", load=partial(torch.zeros, size))


def _read_tokenizer(path: Path) -> TokenizerData:
    meta = path.parent / "meta.pkl"
    if meta.is_file():
        return _read_characters(meta)
    if not any((path.parent / file_name).is_file() for file_name in ("tokenizer.json", "vocab.json")):
        raise CheckpointError(
            f"{path}: no vocabulary beside it: put meta.pkl there (character-level models; nanoGPT's "
            "prepare.py writes it beside the data), or GPT-2's vocab.json and merges.txt or tokenizer.json"
        )
    config = Metadata({"eos_token_id": _GPT2_END_TOKEN_ID}, path=path)
    return read_tokenizer(path.parent, architecture=GPT2, config=config)


def _read_characters(path: Path) -> TokenizerData:
    """Read meta.pkl's `itos`, from character ids to characters."""
    meta = _load_plain_pickle(path)
    characters = meta.get("itos") if isinstance(meta, dict) else None
    if not isinstance(characters, dict) or set(characters) != set(range(len(characters))):
        raise CheckpointError(f"{path}: 'itos' must map the ids 0, 1, 2, ... to characters")
    tokens = tuple(characters[i] for i in range(len(characters)))
    wrong = [token for token in tokens if not isinstance(token, str) or len(token) != 1]
    if wrong or len(set(tokens)) != len(tokens):
        what = f"{shorten(wrong[0])} is not one" if wrong else "one occurs twice"
        raise CheckpointError(f"{path}: 'itos' must map to distinct characters: {what}")
    return TokenizerData(kind="char", tokens=tokens, merges=(), special_token_ids=frozenset())


class _PlainUnpickler(pickle.Unpickler):
    """Unpickles containers, strings and numbers, which need no import, and nothing else."""

    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it wants {module_name}.{global_name}, but may hold plain values only")


def _load_plain_pickle(path: Path) -> object:
    try:
        if path.stat().st_size > _MAX_META_BYTES:
            raise CheckpointError(f"{path}: larger than {_MAX_META_BYTES} bytes; not nanoGPT's meta.pkl")
        data = path.read_bytes()
        _check_memo(data)
        return _PlainUnpickler(io.BytesIO(data)).load()
    except CheckpointError:
        raise
    except Exception as error:  # unpickling corrupt bytes may raise anything
        reason = f"{type(error).__name__} {shorten(str(error))}"
        raise CheckpointError(f"{path}: not a plain pickle: {reason}") from error


def _check_memo(data: bytes) -> None:
    """Refuse a memo slot beyond what the file can fill: the C unpickler allocates up to it."""
    for opcode, argument, _ in pickletools.genops(data):
        is_put = opcode.name in ("PUT", "BINPUT", "LONG_BINPUT")
        if is_put and isinstance(argument, int) and argument > len(data):
            raise pickle.UnpicklingError(f"memo slot {argument} in a file of {len(data)} bytes")
