"""Settings of `draftline chat`, `complete` and `bench`."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, SecretStr
from pydantic_settings import CliPositionalArg

from server.settings import ModelSettings

_MAX_SEED = 2**63 - 1


def _complete_url(url: str) -> str:
    """Return the URL under which a server's API is: a URL without a path gets /v1."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError("must be http://HOST:PORT or https://HOST, with or without a path such as /v1")
    if parts.query or parts.fragment:
        raise ValueError("must end with its path")
    path = parts.path.rstrip("/") or "/v1"
    return parts._replace(path=path).geturl()


ApiUrl = Annotated[str, AfterValidator(_complete_url)]


class AnswerParams(BaseModel):
    """How an answer is generated; None: as the server or the model has it by default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float | None = Field(
        None, ge=0, le=2, allow_inf_nan=False, description="0 is greedy; the model's default if not given"
    )
    top_p: float | None = Field(None, gt=0, le=1, description="the model's default if not given")
    top_k: int | None = Field(None, ge=-1, description="the model's default if not given")
    seed: int | None = Field(
        None, ge=-_MAX_SEED - 1, le=_MAX_SEED, description="drawn for each answer if not given"
    )
    max_tokens: PositiveInt | None = Field(None, description="of one answer; what fits if not given")


class AnswerSettings(ModelSettings, AnswerParams):
    """What `chat` and `complete` have in common: a model here or a server elsewhere, and parameters."""

    model_config = ModelSettings.model_config

    url: ApiUrl | None = Field(
        None, description="a server of OpenAI's API to ask, as http://127.0.0.1:8000; loads no model here"
    )
    api_key: SecretStr | None = Field(
        None, description="key for --url. The process list shows it: prefer DRAFTLINE_API_KEY"
    )

    @property
    def params(self) -> AnswerParams:
        """The parameters alone."""
        return AnswerParams(**{name: getattr(self, name) for name in AnswerParams.model_fields})

    @property
    def remote_model(self) -> str | None:
        """The model to ask --url for; None: the first that it lists."""
        return self.model if "model" in self.model_fields_set else None


class ChatSettings(AnswerSettings):
    """Talk to a model in the terminal.

    Each flag is also an environment variable: --max-tokens is DRAFTLINE_MAX_TOKENS.
    """

    system: str | None = Field(None, description="system message")
    plain: bool = Field(False, description="show answers as they are written, not as markdown")
    no_history: bool = Field(False, description="neither read nor keep what was typed before")


class CompleteSettings(AnswerSettings):
    """Continue a text, without a chat template, and print what follows it.

    Each flag is also an environment variable: --max-tokens is DRAFTLINE_MAX_TOKENS.
    """

    text: CliPositionalArg[str] = Field(description="what to continue; - reads it from the standard input")
    max_tokens: PositiveInt | None = Field(128, description="of the answer")


class BenchSettings(ModelSettings):
    """Measure how fast a model runs on this machine, in under a minute for a small one; --json prints JSON.

    Each flag is also an environment variable: --kv-cache-dtype is DRAFTLINE_KV_CACHE_DTYPE.
    """

    rounds: int = Field(3, ge=1, le=100, description="of which the medians are shown")
