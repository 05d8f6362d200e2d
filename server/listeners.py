"""Where the server listens: an address or a Unix socket, with or without TLS."""

import contextlib
import os
import socket
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.interface.errors import ConfigError

_BACKLOG = 2048

_SEND_BUFFER = 1 << 18
"""Bytes that the system keeps for a client that does not read; by itself it would keep several megabytes."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket listening on `host` and `port` (0: any free one); raises ConfigError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # With the protocol named asyncio sets TCP_NODELAY; without, every reply waits 40 ms for an ACK.
        return _bound(socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP), address)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None


def listen_unix(path: Path) -> socket.socket:
    """Return a listening Unix socket that its owner and group may use; raises ConfigError.

    A socket that a dead server left there is replaced; anything else is not.
    """
    umask = os.umask(0o117)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode) and not _is_served(path):
            path.unlink()
        return _bound(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), str(path))
    except OSError as error:
        raise ConfigError(f"cannot listen on {path}: {error.strerror or error}") from None
    finally:
        os.umask(umask)


def _bound(listener: socket.socket, address: Any) -> socket.socket:
    """Let a socket listen, or close it; what it accepts has its options, too."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(listener)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        listener.bind(address)
        listener.listen(_BACKLOG)
        stack.pop_all()  # it listens: the caller closes it
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
