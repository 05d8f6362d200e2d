"""An engine process: `python -m engine.loading.worker SOCKET MANIFEST`, started by EngineProcess."""

import logging
import os
import signal
import socket
import sys

from engine.bridge.engine_worker import Sender, WireLog, serve_engine
from engine.bridge.step_manifest import StepManifest
from engine.bridge.wire import Channel, LoadFailed, StartEngine
from engine.checkpoint import load_checkpoint
from engine.interface.errors import DraftlineError
from engine.loading.idle_memory import IdleMemory
from engine.loading.loader import build_engine


def main(socket_fd: int, manifest_fd: int) -> None:
    """Load what the server says and run it until the server says so or is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they are the server's, which ends this process in good order
    channel, manifest = Channel(socket.socket(fileno=socket_fd)), StepManifest(manifest_fd)
    [start] = channel.receive()
    assert isinstance(start, StartEngine)
    sender = Sender(channel, interval=start.config.stream_interval)
    logging.basicConfig(level=logging.INFO, handlers=[WireLog(sender)])
    try:
        draft = None if start.draft_model is None else load_checkpoint(start.draft_model)
        loaded = build_engine(load_checkpoint(start.model), start.config, draft)
    except DraftlineError as error:
        sender.post(LoadFailed(type(error).__name__, str(error)))
        sender.close()
        return
    IdleMemory().keep_looking(lambda: not loaded.engine.has_work)
    serve_engine(loaded.engine, loaded.info, channel, sender, manifest)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
    os._exit(0)  # torch's own threads need not be waited for
