"""What may stand between a client and a server: proxies that cut connections or take a prefix off paths."""

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator

Change = Callable[[bytes], bytes]


class CutError(Exception):
    """The proxy is to cut the connection here."""

    def __init__(self, rest: bytes) -> None:
        self.rest = rest  # still to be forwarded


class CutAfter:
    """Lets so many events of a reply through, then cuts the connection; once."""

    def __init__(self, num_events: int) -> None:
        self._num_left = num_events
        self.has_cut = False

    def __call__(self, data: bytes) -> bytes:
        ends = [match.end() for match in re.finditer(rb"\n\n", data)]
        if self.has_cut or len(ends) < self._num_left:
            self._num_left -= len(ends)
            return data
        self.has_cut = True
        raise CutError(data[: ends[self._num_left - 1]])


def strip(prefix: str) -> Change:
    """Take a prefix off the path of every request."""
    line = re.compile(rb"\A((?:GET|POST|DELETE) )" + prefix.encode())
    return lambda data: line.sub(rb"\1", data)


def _unchanged(data: bytes) -> bytes:
    return data


def _pump(source: socket.socket, target: socket.socket, change: Change) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(change(data))
        target.shutdown(socket.SHUT_WR)
    except CutError as cut:
        target.sendall(cut.rest)
        target.shutdown(socket.SHUT_RDWR)  # not closed: the other pump waits for it
        source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        source.close()
    except OSError:
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def proxy(url: str, *, request: Change = _unchanged, reply: Change = _unchanged) -> Iterator[str]:
    """Forward connections to the server at `url` while the block runs; the URL to use in its place."""
    port = int(url.rpartition(":")[2])
    listener = socket.create_server(("127.0.0.1", 0))
    sockets: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def accept() -> None:
        with contextlib.suppress(OSError):  # the listener is shut down
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", port))
                for pair in ((client, server, request), (server, client, reply)):
                    threads.append(threading.Thread(target=_pump, args=pair))
                    threads[-1].start()
                sockets.extend((client, server))

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        acceptor.join()
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        for each in (listener, *sockets):
            each.close()
