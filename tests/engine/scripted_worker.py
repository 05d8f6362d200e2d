"""An engine process over a scripted model, for tests: the last token of a prompt says what becomes of it.

python tests/engine/scripted_worker.py GATE SOCKET MANIFEST, where no second token comes before GATE exists.
"""

import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from engine.bridge.engine_worker import Sender, WireLog, serve_engine
from engine.bridge.step_manifest import StepManifest
from engine.bridge.wire import Channel, LoadFailed, StartEngine
from engine.interface.info import EngineInfo
from tests.tiny import scripted_engine

KILL, HANG, STOP, RAISE, EXIT = 90, 91, 92, 93, 94
INFO = EngineInfo(
    device="cpu",
    dtype="none",
    kernels="script",
    kv_cache_dtype="none",
    num_threads=1,
    max_model_len=128,
    block_size=4,
    num_kv_blocks=128,
    kv_cache_bytes=0,
    weight_bytes=0,
)


def main(gate: Path, socket_fd: int, manifest_fd: int) -> None:
    channel, manifest = Channel(socket.socket(fileno=socket_fd)), StepManifest(manifest_fd)
    [start] = channel.receive()
    assert isinstance(start, StartEngine)
    sender = Sender(channel, interval=start.config.stream_interval)
    logging.basicConfig(level=logging.INFO, handlers=[WireLog(sender)])
    if start.model == "missing":
        sender.post(LoadFailed("CheckpointError", "missing: no such file"))
        sender.close()
        return
    if start.model == "crash":
        os._exit(7)

    def next_token(tokens: list[int]) -> int:
        if len(tokens) > 1:
            while not gate.exists():
                time.sleep(0.005)
        if tokens[-1] == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        if tokens[-1] == HANG:
            time.sleep(600)
        if tokens[-1] == STOP:
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(600)  # this thread may run on for a moment
        if tokens[-1] == RAISE:
            raise RuntimeError("scripted")
        if tokens[-1] == EXIT:
            raise SystemExit(3)
        return (tokens[-1] + 1) % 100

    engine = scripted_engine(next_token, max_num_seqs=4, max_model_len=128, block_size=4, num_blocks=128)
    serve_engine(engine, INFO, channel, sender, manifest)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    os._exit(0)
