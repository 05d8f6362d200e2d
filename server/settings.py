"""Settings of the commands: each is a flag, a DRAFTLINE_ environment variable and a default, defined once."""

import argparse
import ipaddress
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ByteSize,
    Field,
    FilePath,
    PositiveInt,
    SecretStr,
    ValidationError,
)
from pydantic_settings import BaseSettings, CliApp, CliSettingsSource, NoDecode, SettingsConfigDict

from engine.interface.config import (
    Device,
    DType,
    EngineConfig,
    Kernels,
    KVCacheDType,
    Quantization,
    SpeculationChoice,
)
from engine.interface.errors import ConfigError
from engine.interface.speculation import MAX_DRAFT_TOKENS
from server.api_keys import ApiKey, check_key, read_key_file
from server.listeners import TlsFiles

ENV_PREFIX = "DRAFTLINE_"
DEFAULT_MODEL = "smollm2-135m-instruct"  # the engine's; its registry imports torch, --help must not
CACHE_VARIABLE = "DRAFTLINE_CACHE_DIR"  # read by the engine
MAX_ISA_VARIABLE = "DRAFTLINE_MAX_CPU_ISA"  # likewise

_DEFAULT = EngineConfig()  # what the engine does by itself; a flag says otherwise only where users need it
_KUBERNETES_VARIABLE = re.compile(r"DRAFTLINE_(SERVICE|PORT)_")  # set for a Service named draftline


def _split(value: object) -> object:
    """Split the text of an environment variable at commas; a flag that is repeated comes as a list."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _check_keys(keys: Sequence[SecretStr]) -> tuple[SecretStr, ...]:
    for key in keys:
        check_key(key.get_secret_value())
    return tuple(keys)


# Not declared as the tuples that they become: pydantic-settings before 2.16 keeps only the last flag of one.
Keys = Annotated[Sequence[SecretStr], NoDecode, BeforeValidator(_split), AfterValidator(_check_keys)]
Origins = Annotated[Sequence[str], NoDecode, BeforeValidator(_split), AfterValidator(tuple)]
MemorySize = Annotated[ByteSize, Field(gt=0)]


class _HelpFormatter(argparse.HelpFormatter):
    """Says what a value is rather than its Python type, and no default that says nothing."""

    _METAVARS: ClassVar = {
        "ByteSize": "SIZE",
        "Path": "FILE",
        "float": "NUMBER",
        "int": "NUMBER",
        "str": "TEXT",
        "SecretStr": "KEY",
        "Sequence[SecretStr]": "KEY",
        "Sequence[str]": "TEXT",
    }

    def add_usage(self, _usage: Any, actions: Any, groups: Any, prefix: str | None = None) -> None:
        positional = "".join(f" {action.metavar}" for action in actions if not action.option_strings)
        super().add_usage(f"%(prog)s [--flag VALUE ...]{positional}", actions, groups, prefix)

    def add_argument(self, action: argparse.Action) -> None:
        action.metavar = self._METAVARS.get(str(action.metavar), action.metavar)
        action.help = re.sub(r" \(default: (None|False|\(\))\)", "", action.help or "")
        super().add_argument(action)


class ModelSettings(BaseSettings):
    """Which model to load, and where."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        extra="forbid",
        frozen=True,
        cli_kebab_case=True,
        cli_implicit_flags="toggle",
        cli_avoid_json=True,
        cli_hide_none_type=True,
    )

    model: str = Field(
        DEFAULT_MODEL, description="a name of `draftline models`, a file or a folder, or hf:ORG/REPO"
    )
    device: Device = Field(_DEFAULT.device, description="where to run")
    dtype: DType = Field(
        _DEFAULT.dtype,
        description="of weights and activations; auto keeps quantised weights as they are stored",
    )
    kernels: Kernels = Field(
        _DEFAULT.kernels,
        description="fused (C++ on a CPU, Triton on a GPU), or plain torch; auto: fused where they can",
    )
    kv_cache_dtype: KVCacheDType = Field(
        _DEFAULT.kv_cache_dtype,
        description="of keys and values in the fused kernels of a CPU; int8 halves their memory",
    )
    quantization: Quantization | None = Field(
        _DEFAULT.quantization,
        description="re-encode the weights in 8 or 4 bits when loading; fused kernels of a CPU only",
    )
    max_model_len: PositiveInt | None = Field(
        _DEFAULT.max_model_len,
        description="tokens of prompt and answer together; the model's own limit if not given",
    )
    kv_cache_memory: MemorySize | None = Field(
        None, description="for keys and values, as 512MiB or 2GiB; chosen from what is free if not given"
    )
    gpu_memory_utilization: float | None = Field(
        _DEFAULT.gpu_memory_utilization,
        gt=0,
        le=1,
        description="share of a GPU's memory for this server: weights, buffers, keys and values; 0.9 if not "
        "given",
    )
    enforce_eager: bool = Field(
        _DEFAULT.enforce_eager, description="on a GPU: launch every kernel by itself, without CUDA graphs"
    )
    debug_kernels: bool = Field(
        _DEFAULT.debug_kernels,
        description="on a GPU: wait for every kernel and say which one failed, in which step; slow",
    )
    block_size: PositiveInt = Field(_DEFAULT.block_size, description="tokens in a block of the KV cache")
    speculation: SpeculationChoice = Field(
        "auto", description="how to guess ahead for requests that do not say; never changes an answer"
    )
    draft_model: str | None = Field(
        None, min_length=1, description="a smaller model of the same vocabulary, named as --model is"
    )
    num_draft_tokens: int = Field(
        _DEFAULT.num_draft_tokens, ge=1, le=MAX_DRAFT_TOKENS, description="guessed in one step at most"
    )


class ServeSettings(ModelSettings):
    """Serve a model over the OpenAI HTTP API.

    Each flag is also an environment variable: --max-queue is DRAFTLINE_MAX_QUEUE.
    """

    served_model_name: str | None = Field(
        None, min_length=1, max_length=256, description="name of the model in the API; its own if not given"
    )
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for every interface")
    port: int = Field(8000, ge=0, le=65535, description="0 takes any free one")
    uds: Path | None = Field(None, description="Unix socket to listen on, in place of --host and --port")
    ssl_certfile: FilePath | None = Field(None, description="PEM certificate chain: serve HTTPS")
    ssl_keyfile: FilePath | None = Field(None, description="PEM key, if it is not in --ssl-certfile")
    max_num_seqs: PositiveInt = Field(
        _DEFAULT.max_num_seqs, description="answers that are generated at the same time"
    )
    max_num_batched_tokens: PositiveInt = Field(
        _DEFAULT.max_num_batched_tokens, description="tokens of one step, prompts included"
    )
    kv_cache_dir: Path | None = Field(
        None,
        description="directory in which the prefix cache outlives the server: one server's own",
    )
    kv_cache_dir_size: MemorySize = Field(
        "4GiB", validate_default=True, description="of what is kept there; the longest unused goes first"
    )
    no_prefix_caching: bool = Field(False, description="compute every prompt from its beginning")
    api_key: Keys = Field(
        (),
        description="a key that clients must send; repeatable; none: everybody may enter. The process list "
        "shows it: prefer DRAFTLINE_API_KEY or --api-key-file",
    )
    api_key_file: FilePath | None = Field(
        None,
        description="file of further keys, read again on SIGHUP: one a line, # begins a comment; or "
        "NAME.toml with their names and limits",
    )
    allow_special_tokens_in_content: bool = Field(
        False, description="let control tokens that a chat message spells take effect: trusted clients only"
    )
    tool_call_parser: Literal["auto", "hermes", "llama3_json", "pythonic", "mistral"] = Field(
        "auto", description="how the model writes calls of tools; auto: as its chat template says"
    )
    pooling: Literal["auto", "last", "mean", "off"] = Field(
        "auto",
        description="how /v1/embeddings makes one vector of a text's hidden states; auto: as the checkpoint "
        "says, else last",
    )
    enable_attention: bool = Field(
        False,
        description="serve /v1/attention: loads the weights a second time, in float32, 4 bytes for each (0.7 "
        "GB for the default model)",
    )
    engine_process: Literal["auto", "on", "off"] = Field(
        "auto",
        description="run the engine in a process of its own, started again when it crashes; auto: on a GPU",
    )
    max_queue: PositiveInt = Field(
        _DEFAULT.max_queue, description="answers that may wait; one more is refused with 429"
    )
    max_queue_tokens: PositiveInt | None = Field(
        None, description="of the prompts of all open requests together; more are refused with 429"
    )
    max_connections: PositiveInt = Field(
        1024, description="that may be open; beyond them only health probes are answered"
    )
    response_store: int = Field(
        0,
        ge=0,
        le=100_000,
        description="how many responses of /v1/responses are kept, in memory, to go on from",
    )
    stream_interval: float = Field(
        0.01,
        ge=0,
        le=10,
        description="seconds between two chunks of a stream, at least: tokens that come sooner go together",
    )
    max_body_size: MemorySize = Field(
        "4MiB", validate_default=True, description="of a request; a larger one is refused"
    )
    shutdown_timeout: float = Field(
        30.0, ge=0, le=86400, description="seconds that open requests get to finish after SIGTERM"
    )
    log_format: Literal["text", "json"] = Field("text", description="of the log on the standard error")
    metrics_key_names: bool = Field(False, description="count tokens by the names of keys in /metrics")
    otlp_traces_endpoint: str | None = Field(
        None,
        min_length=1,
        description="URL to send OpenTelemetry spans to, as http://localhost:4318/v1/traces",
    )
    cors_origin: Origins = Field(
        (), description="origin whose pages may call the API; repeatable; none by default"
    )

    allowed_host: Origins = Field(
        (),
        description="host that requests may be for; repeatable; on a loopback address only its own names "
        "by default, else any; * for any",
    )

    def allowed_hosts(self) -> tuple[str, ...]:
        """Return the hosts that requests may be for; none: any."""
        if "*" in self.allowed_host or not (self.allowed_host or _is_loopback(self.host)):
            return ()
        own = f"[{self.host}]" if ":" in self.host else self.host
        loopback = (own, "localhost", "127.0.0.1", "[::1]") if _is_loopback(self.host) else ()
        return (*self.allowed_host, *loopback)

    def tls(self) -> TlsFiles | None:
        """Return the files of a TLS server; raises ConfigError for those that make none."""
        if self.ssl_certfile is None:
            if self.ssl_keyfile is not None:
                raise ConfigError("--ssl-keyfile needs --ssl-certfile")
            return None
        files = TlsFiles(certificate=self.ssl_certfile, key=self.ssl_keyfile)
        files.check()
        return files

    def all_keys(self) -> tuple[ApiKey, ...]:
        """Return the keys of the flags and of the file; raises ConfigError."""
        keys = [ApiKey.of(key.get_secret_value()) for key in self.api_key]
        if self.api_key_file is not None:
            keys += read_key_file(self.api_key_file)
        return tuple(keys)


SettingsT = TypeVar("SettingsT", bound=ModelSettings)


def parse_settings(schema: type[SettingsT], arguments: Sequence[str], *, program: str) -> SettingsT:
    """Read settings from flags, then the environment; raises ConfigError with one line for a bad value.

    Exits like argparse for --help and for flags that do not exist.
    """
    try:
        source: CliSettingsSource[SettingsT] = CliSettingsSource(
            schema,
            cli_prog_name=program,
            cli_show_env_vars=False,
            formatter_class=_HelpFormatter,
        )
        return CliApp.run(schema, cli_args=list(arguments), cli_settings_source=source)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def unknown_variables(environment: Mapping[str, str], schemas: Iterable[type[ModelSettings]]) -> list[str]:
    """Return a line for each DRAFTLINE_ variable that no setting of `schemas` reads."""
    known = {
        CACHE_VARIABLE,
        MAX_ISA_VARIABLE,
        *(ENV_PREFIX + name.upper() for schema in schemas for name in schema.model_fields),
    }
    lines = []
    for name in sorted(environment):
        is_ours = name.upper().startswith(ENV_PREFIX) and not _KUBERNETES_VARIABLE.match(name)
        if is_ours and name.upper() not in known:
            close = get_close_matches(name.upper(), known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            lines.append(f"the environment variable {name} has no effect{hint}")
    return lines


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    variable = ENV_PREFIX + name.upper()
    message = first["msg"].removeprefix("Value error, ")
    is_secret = name.startswith("api_key")
    shown = "" if is_secret else f", got {str(first['input'])[:80]!r}"
    hint = ""
    if os.environ.get(variable, "").startswith("tcp://"):
        hint = " (set by Kubernetes for a Service named draftline: set enableServiceLinks: false)"
    flag = "--" + name.replace("_", "-")
    return f"{flag} ({variable}): {message[:1].lower()}{message[1:]}{shown}{hint}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
