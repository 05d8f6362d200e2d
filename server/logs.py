"""Log lines as text or JSON, one a request; neither prompts nor keys are ever logged."""

import json
import logging
import sys
import time
from collections.abc import Mapping

access_logger = logging.getLogger("server.access")

ACCESS_FORMAT = "%(id)s %(method)s %(path)s %(status)s %(seconds).3fs"
GENERATION_FORMAT = (
    f"{ACCESS_FORMAT} prompt=%(prompt_tokens)s completion=%(completion_tokens)s cached=%(cached_tokens)s"
)


class TextFormatter(logging.Formatter):
    """`2030-01-31T12:00:00Z INFO message`, in UTC."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - logging's
        """Return the time to the second."""
        return time.strftime(datefmt or "%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))


class JsonFormatter(logging.Formatter):
    """One JSON object a line; a record whose argument is a mapping contributes its members."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, in ASCII."""
        fields: dict[str, object] = {
            "time": round(record.created, 6),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if isinstance(record.args, Mapping):
            fields |= record.args
        else:
            fields["message"] = record.getMessage()
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def configure_logging(log_format: str) -> None:
    """Send the logs of server, engine and uvicorn to the standard error as `text` or `json`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    for name, level in (("server", logging.INFO), ("engine", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
