"""Where the server listens: an address or a Unix socket, with or without TLS."""

import contextlib
import os
import socket
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path

from engine.interface.errors import ConfigError

_BACKLOG = 2048

_SEND_BUFFER = 1 << 18
"""Bytes that the system keeps for a client that does not read; by itself it would keep several megabytes."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket listening on `host` and `port` (0: any free one); raises ConfigError."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # With the protocol named asyncio sets TCP_NODELAY; without, every reply waits 40 ms for an ACK.
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket(family, kind, socket.IPPROTO_TCP))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(
                socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER
            )  # what it accepts has it, too
            listener.bind(address)
            listener.listen(_BACKLOG)
            stack.pop_all()  # it listens: the caller closes it
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    return listener


def listen_unix(path: Path) -> socket.socket:
    """Return a listening Unix socket that its owner and group may use; raises ConfigError.

    A socket that a dead server left there is replaced; anything else is not.
    """
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode) and not _is_served(path):
            path.unlink()
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            umask = os.umask(0o117)
            try:
                listener.bind(str(path))
            finally:
                os.umask(umask)
            listener.listen(_BACKLOG)
            stack.pop_all()
    except OSError as error:
        raise ConfigError(f"cannot listen on {path}: {error.strerror or error}") from None
    return listener


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """A certificate chain and its key, in PEM; without `key` it is in the certificate's file."""

    certificate: Path
    key: Path | None = None

    def check(self) -> None:
        """Raise ConfigError where they do not make a TLS server."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self.certificate, self.key, password=_no_password)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise ConfigError(
                f"--ssl-certfile {self.certificate}: it and its key cannot be used: {reason}"
            ) from None


def _no_password() -> str:
    raise ValueError("the key is encrypted")


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True
