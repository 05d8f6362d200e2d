"""Settings: one definition for flag, environment and default; a bad value is one clear line."""

from pathlib import Path

import pytest

from engine.checkpoint.registry import DEFAULT_MODEL as ENGINE_DEFAULT_MODEL
from engine.interface.errors import ConfigError
from server.api_keys import ApiKey
from server.settings import (
    CACHE_VARIABLE,
    DEFAULT_MODEL,
    ServeSettings,
    parse_settings,
    unknown_variables,
)
from server.terminal.settings import BenchSettings, ChatSettings, CompleteSettings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)


TWO_KEYS = tuple(map(ApiKey.of, ("key-number-one", "key-number-two")))


def parse(*arguments: str) -> ServeSettings:
    return parse_settings(ServeSettings, arguments, program="draftline serve")


def test_the_defaults_are_the_documented_ones() -> None:
    settings = parse()
    assert settings.model == DEFAULT_MODEL == ENGINE_DEFAULT_MODEL
    assert (settings.host, settings.port, settings.shutdown_timeout) == ("127.0.0.1", 8000, 30.0)
    assert settings.all_keys() == ()
    assert settings.cors_origin == ()
    assert not settings.no_prefix_caching


def test_flags_in_kebab_case() -> None:
    settings = parse(
        *(
            "--model",
            "x.gguf",
            "--max-model-len",
            "2048",
            "--kv-cache-memory",
            "512MiB",
            "--no-prefix-caching",
        ),
        *("--api-key", "key-number-one", "--api-key", "key-number-two", "--cors-origin", "https://a.example"),
    )
    assert (settings.model, settings.max_model_len, settings.kv_cache_memory) == ("x.gguf", 2048, 512 * 2**20)
    assert settings.no_prefix_caching
    assert settings.all_keys() == TWO_KEYS
    assert settings.cors_origin == ("https://a.example",)


def test_the_environment_says_the_same_and_flags_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFTLINE_PORT", "9000")
    monkeypatch.setenv("DRAFTLINE_MAX_QUEUE", "7")
    monkeypatch.setenv("DRAFTLINE_NO_PREFIX_CACHING", "1")
    monkeypatch.setenv("DRAFTLINE_GPU_MEMORY_UTILIZATION", "0.5")
    monkeypatch.setenv("DRAFTLINE_API_KEY", "key-number-one, key-number-two")
    settings = parse("--port", "9001")
    assert (settings.port, settings.max_queue, settings.no_prefix_caching) == (9001, 7, True)
    assert settings.gpu_memory_utilization == 0.5
    assert settings.all_keys() == TWO_KEYS


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("1000", 1000), ("512MiB", 512 * 2**20), ("2GiB", 2 * 2**30)]
)
def test_memory_sizes(text: str, num_bytes: int) -> None:
    assert parse("--kv-cache-memory", text).kv_cache_memory == num_bytes


@pytest.mark.parametrize(
    ("flag", "value", "parts"),
    [
        ("--port", "99999", ["65535", "'99999'"]),
        ("--gpu-memory-utilization", "1.5", ["DRAFTLINE_GPU_MEMORY_UTILIZATION", "less than or equal to 1"]),
        ("--gpu-memory-utilization", "0", ["greater than 0", "'0'"]),
        ("--port", "http", ["valid integer", "'http'"]),
        ("--device", "tpu", ["'auto', 'cpu' or 'cuda'", "'tpu'"]),
        ("--max-model-len", "0", ["greater than 0", "'0'"]),
        ("--kv-cache-memory", "lots", ["'lots'"]),
        ("--shutdown-timeout", "-1", ["greater than or equal to 0"]),
        ("--log-format", "xml", ["'text' or 'json'"]),
        ("--api-key", "short", ["at least 8 characters"]),
        ("--api-key-file", "/nowhere", ["does not point to a file"]),
    ],
)
def test_a_bad_value_names_flag_variable_value_and_limit(flag: str, value: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(f"{flag}={value}")
    message = str(raised.value)
    variable = "DRAFTLINE_" + flag.removeprefix("--").replace("-", "_").upper()
    assert message.startswith(f"{flag} ({variable}): ")
    assert "\n" not in message
    assert all(part in message for part in parts)


def test_keys_are_in_no_error_and_no_repr() -> None:
    with pytest.raises(ConfigError) as raised:
        parse("--api-key", "a secret with spaces")
    assert "secret" not in str(raised.value)
    assert "key-number-one" not in repr(parse("--api-key", "key-number-one"))


def test_a_variable_that_kubernetes_set_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFTLINE_PORT", "tcp://10.0.0.1:80")
    with pytest.raises(ConfigError, match="enableServiceLinks"):
        parse()


def test_keys_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# for the web page\nkey-number-one\n\n  key-number-two  \n")
    assert parse("--api-key-file", str(path)).all_keys() == TWO_KEYS
    path.write_text("key-number-one\nshort\n")
    with pytest.raises(ConfigError, match="at least 8 characters"):
        parse("--api-key-file", str(path)).all_keys()
    path.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="no key"):
        parse("--api-key-file", str(path)).all_keys()


@pytest.mark.parametrize("argument", ["--drafts=x", "--nope", "--por=80", "extra"])
def test_what_is_not_honoured_is_not_accepted(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        parse(argument)
    assert raised.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.parametrize("schema", [ServeSettings, ChatSettings, CompleteSettings, BenchSettings])
def test_help_names_every_flag_and_no_python(
    schema: type[ServeSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        parse_settings(schema, ["--help"], program="draftline x")
    assert raised.value.code == 0
    shown = capsys.readouterr().out
    for name in schema.model_fields:
        assert "TEXT" in shown if name == "text" else f"--{name.replace('_', '-')}" in shown
    assert not any(word in shown for word in ("None", "tuple", "SecretStr", "ByteSize", "False"))


def test_variables_that_nothing_reads_are_named() -> None:
    kubernetes = {"DRAFTLINE_PORT_80_TCP": "x", "DRAFTLINE_SERVICE_HOST": "x"}
    lines = unknown_variables(
        {**kubernetes, "DRAFTLINE_PROT": "1", "DRAFTLINE_PORT": "1", "DRAFTLINE_CACHE_DIR": "x", "PATH": "x"},
        [ServeSettings],
    )
    assert lines == ["the environment variable DRAFTLINE_PROT has no effect; did you mean DRAFTLINE_PORT?"]


def test_speculation_flags() -> None:
    settings = parse("--speculation", "ngram", "--draft-model", "small", "--num-draft-tokens", "4")
    assert (settings.speculation, settings.draft_model, settings.num_draft_tokens) == ("ngram", "small", 4)
    assert (parse().speculation, parse().draft_model, parse().num_draft_tokens) == ("auto", None, 8)
    with pytest.raises(ConfigError, match=r"--num-draft-tokens.*less than or equal to 16, got '17'"):
        parse("--num-draft-tokens", "17")
    with pytest.raises(ConfigError, match="--speculation"):
        parse("--speculation", "always")
