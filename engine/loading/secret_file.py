"""A random secret that outlives the process, in a file for its owner alone."""

import contextlib
import os
import secrets
from pathlib import Path

from engine.interface.errors import ConfigError

_NUM_BYTES = 32


def read_or_create_secret(path: Path) -> bytes:
    """Return the 32 bytes of a file, which is made where it is not there; raises ConfigError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(_NUM_BYTES))
        secret = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    if len(secret) != _NUM_BYTES:
        raise ConfigError(f"{path} must have {_NUM_BYTES} bytes, it has {len(secret)}; delete it")
    return secret
