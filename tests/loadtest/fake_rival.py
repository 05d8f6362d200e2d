"""A server process for test_compare: a fake engine behind the real HTTP API on the port it is told.

python tests/loadtest/fake_rival.py PORT
"""

import sys

from server.admission import Admission
from server.app import create_app
from server.auth import KeyRing
from server.http_server import run_server
from server.listeners import listen
from server.metrics import ServerMetrics
from server.serving import RequestLimits, ServerState
from tests.fakes import FakeEngine, cut, say
from tests.server.harness import served_model


def main(port: int) -> None:
    engine = FakeEngine(lambda request: cut(say("x" * 64), request.params.max_tokens), max_model_len=100_000)
    state = ServerState(admission=Admission(max_open=100), metrics=ServerMetrics(), limits=RequestLimits())
    app = create_app(state, keys=KeyRing())
    run_server(
        app,
        state,
        listen("127.0.0.1", port),
        shutdown_timeout=5,
        load=lambda: served_model(engine, name="model"),
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
