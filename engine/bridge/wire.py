"""What crosses between a server and an engine process: frames of MessagePack over a socket, never pickle.

length of the rest (uint32) | kind of message (uint8) | message
"""

import contextlib
import select
import socket
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from engine.bridge.messages import (
    AbortRequests,
    AddRequests,
    CacheLookedUp,
    CloseEngine,
    LookUpCache,
    RequestsRefused,
    StepResults,
)
from engine.interface.config import EngineConfig
from engine.interface.grammar_spec import GrammarSpec
from engine.interface.info import EngineInfo
from engine.interface.limits import EngineLimits
from engine.interface.stats import EngineStats

_HEAD = struct.Struct("<IB")
_MAX_BYTES = 1 << 30
_READ_BYTES = 1 << 16


class StartEngine(NamedTuple):
    """Load this; the first message to a new process."""

    model: str
    draft_model: str | None
    config: EngineConfig


class EngineReady(NamedTuple):
    """The engine takes work."""

    info: EngineInfo
    limits: EngineLimits


class LoadFailed(NamedTuple):
    """The engine cannot be loaded."""

    kind: str  # of the error
    reason: str


class CompileGrammar(NamedTuple):
    """Compile a grammar before a request needs it."""

    number: int
    spec: GrammarSpec


class CancelGrammar(NamedTuple):
    """Nobody waits for a grammar any more."""

    number: int


class GrammarCompiled(NamedTuple):
    """What became of it: no reason where it compiled."""

    number: int
    reason: str | None = None
    param: str | None = None
    is_cancelled: bool = False


class Delivery(NamedTuple):
    """What one or more steps brought for one outbox."""

    outbox: int
    results: list[StepResults]
    refused: list[RequestsRefused]
    looked_up: list[CacheLookedUp]


class Heartbeat(NamedTuple):
    """The latest snapshot; it comes twice a second at least."""

    stats: EngineStats


class LogLine(NamedTuple):
    """A line for the server's log."""

    name: str
    level: int
    text: str


WireMessage = (
    StartEngine
    | AddRequests
    | AbortRequests
    | LookUpCache
    | CloseEngine
    | CompileGrammar
    | CancelGrammar
    | EngineReady
    | LoadFailed
    | GrammarCompiled
    | Delivery
    | Heartbeat
    | LogLine
)
_KINDS: tuple[Any, ...] = WireMessage.__args__
_NUMBERS = {kind: number for number, kind in enumerate(_KINDS)}
_DECODERS = [msgspec.msgpack.Decoder(kind) for kind in _KINDS]
_ENCODER = msgspec.msgpack.Encoder()


def encode(messages: Sequence[WireMessage]) -> bytes:
    """Return the frames of messages; raises TypeError for what is no plain data."""
    frames = bytearray()
    for message in messages:
        content = _ENCODER.encode(message)
        frames += _HEAD.pack(len(content) + 1, _NUMBERS[type(message)])
        frames += content
    return bytes(frames)


class Channel:
    """One end of the socket: one thread sends, one receives."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._unread = bytearray()
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def send(self, messages: Sequence[WireMessage]) -> None:
        """Send messages in order; raises OSError when nobody is at the other end."""
        self.send_frames(encode(messages))

    def send_frames(self, frames: bytes) -> None:
        """Send what encode() made; raises OSError when nobody is at the other end."""
        self._connection.sendall(frames)

    def receive(self, timeout: float | None = None) -> list[WireMessage]:
        """Wait for messages and return all that are there; none if `timeout` seconds passed.

        Raises EOFError when the other end is gone.
        """
        try:
            if not self._poll.poll(None if timeout is None else 1000.0 * timeout):
                return []
            received = self._connection.recv(_READ_BYTES)
        except OSError as error:
            raise EOFError(str(error)) from None
        if not received:
            raise EOFError("the other end is closed")
        self._unread += received
        return self._take_frames()

    def shut_down(self) -> None:
        """Let both ends see the end, whoever still has the socket."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self.shut_down()
        self._connection.close()

    def _take_frames(self) -> list[WireMessage]:
        messages: list[WireMessage] = []
        start, unread = 0, self._unread
        while len(unread) - start >= _HEAD.size:
            length, kind = _HEAD.unpack_from(unread, start)
            if not 1 <= length <= _MAX_BYTES or kind >= len(_DECODERS):
                raise EOFError(f"a frame of {length} bytes and kind {kind} is none of ours")
            end = start + _HEAD.size + length - 1
            if len(unread) < end:
                break
            messages.append(_DECODERS[kind].decode(memoryview(unread)[start + _HEAD.size : end]))
            start = end
        del unread[:start]
        return messages
