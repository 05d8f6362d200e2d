"""A server process for test_shutdown: run_server over a fake engine that standard input steps.

python tests/server/fake_server.py SHUTDOWN_TIMEOUT {ready|loading|failing}
"""

import sys
import threading

from engine.interface.errors import ConfigError
from server.admission import Admission
from server.app import create_app
from server.auth import KeyRing
from server.http_server import run_server
from server.listeners import listen
from server.metrics import ServerMetrics
from server.serving import RequestLimits, ServedModel, ServerState
from tests.fakes import FakeEngine, say
from tests.server.harness import served_model


def main(shutdown_timeout: float, mode: str) -> None:
    engine = FakeEngine(lambda _: say("hello"))
    engine.hold()
    state = ServerState(admission=Admission(max_open=100), metrics=ServerMetrics(), limits=RequestLimits())
    app = create_app(state, keys=KeyRing())
    listener = listen("127.0.0.1", 0)
    print(listener.getsockname()[1], flush=True)

    def load() -> ServedModel:
        if mode == "failing":
            raise ConfigError("no such model")
        if mode == "loading":
            threading.Event().wait()
        return served_model(engine)

    threading.Thread(target=obey, args=(engine,), daemon=True).start()
    run_server(app, state, listener, shutdown_timeout=shutdown_timeout, load=load)
    print("engine closed" if engine.is_closed else "engine never loaded", flush=True)


def obey(engine: FakeEngine) -> None:
    for line in sys.stdin:
        if line == "step when open\n":
            engine.when_open(1, engine.step)
        elif line == "die\n":
            engine.die()
        elif line == "hang\n":
            engine.hangs = True
        else:
            engine.release()


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2])
