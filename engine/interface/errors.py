"""The exception tree of the engine.

DraftlineError
├── ConfigError            a setting or a model configuration that cannot be served
├── CheckpointError        a file that is missing, truncated, corrupt or not what it says
├── RequestError           a request that can never run; names the field (HTTP 400)
├── CancelledError         work that ended because nobody waits for it any more
├── QueueFullError         too many requests wait already; come back later (HTTP 429)
├── NonFiniteError         the model computed NaN or infinities for a request (HTTP 500)
├── SlowReaderError        a stream that nobody read, until it did not fit in memory (HTTP 408)
├── StepError              a step fails whenever it runs this request (HTTP 500)
└── EngineUnavailableError the engine is loading, draining or dead (HTTP 503)
    ├── EngineRestartingError  it failed and is started again; every open request gets this error
    └── EngineDeadError    it failed for good; every open request gets this error
"""


class DraftlineError(Exception):
    """Base class of every error that draftline raises on purpose."""


class ConfigError(DraftlineError):
    """A setting or model configuration that cannot be served."""


class CheckpointError(DraftlineError):
    """A checkpoint that is missing, truncated, corrupt or unsupported."""


class RequestError(DraftlineError):
    """A request that can never run; `param` names the offending field, `code` is OpenAI's word for why."""

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class NonFiniteError(DraftlineError):
    """The model computed values that are not finite, of which no answer can be made."""


class SlowReaderError(DraftlineError):
    """An answer was not read as fast as it came; what waited to be read had become too much."""


class StepError(DraftlineError):
    """A step of the engine raises whenever it runs this request."""


class CancelledError(DraftlineError):
    """Work that ended because whoever asked for it left."""


class QueueFullError(DraftlineError):
    """The waiting queue is full."""


class EngineUnavailableError(DraftlineError):
    """The engine takes no new work: it is loading or draining."""


class EngineRestartingError(EngineUnavailableError):
    """The engine failed and is being started again; what was open is lost."""


class EngineDeadError(EngineUnavailableError):
    """A step of the engine raised; nothing can run any more."""
