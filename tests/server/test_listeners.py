"""TLS and Unix sockets: what is served there, and what is refused in one line."""

import shutil
import socket
import ssl
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from engine.interface.errors import ConfigError
from server.admission import Admission
from server.app import create_app
from server.auth import KeyRing
from server.http_server import DrainingServer
from server.listeners import TlsFiles, listen, listen_unix
from server.metrics import ServerMetrics
from server.serving import RequestLimits, ServerState
from server.settings import ServeSettings
from tests.fakes import FakeEngine, say
from tests.server.harness import served_model

STREAM = {"prompt": "x", "stream": True}


@contextmanager
def serving_on(listener: socket.socket, tls: TlsFiles | None = None) -> Iterator[None]:
    state = ServerState(admission=Admission(max_open=10), metrics=ServerMetrics(), limits=RequestLimits())
    state.publish(served_model(FakeEngine(lambda _: say("hello"))))
    server = DrainingServer(create_app(state, keys=KeyRing()), state, shutdown_timeout=5.0, tls=tls)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subject = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            *subject,
            "-keyout",
            key,
            "-out",
            certificate,
        ],
        check=True,
        capture_output=True,
    )
    return TlsFiles(certificate=certificate, key=key)


def test_a_stream_over_tls(files: TlsFiles) -> None:
    listener = listen("127.0.0.1", 0)
    url = f"https://127.0.0.1:{listener.getsockname()[1]}"
    context = ssl.create_default_context(cafile=str(files.certificate))
    with serving_on(listener, files), httpx.Client(base_url=url, verify=context) as client:
        assert client.get("/ready").status_code == 200
        assert client.post("/v1/completions", json=STREAM).text.endswith("data: [DONE]\n\n")
        with pytest.raises(httpx.TransportError):
            httpx.get(url.replace("https", "http"), timeout=5)
        with (
            socket.create_connection(listener.getsockname()) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1") as connection,
        ):
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n")
            connection.shutdown(socket.SHUT_WR)  # of TLS as well: nobody is left to be asked anything
        assert client.get("/ready").status_code == 200


def test_a_stream_over_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with serving_on(listen_unix(path)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with httpx.Client(
            transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost"
        ) as client:
            assert client.get("/ready").status_code == 200
            assert client.post("/v1/completions", json=STREAM).text.endswith("data: [DONE]\n\n")
        with pytest.raises(ConfigError, match="Address already in use"):
            listen_unix(path)
    listen_unix(path).close()  # of a dead server


def test_what_is_no_place_for_a_socket(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ConfigError, match=r"cannot listen on .*file: Address already in use"):
        listen_unix(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"
    with pytest.raises(ConfigError, match="No such file or directory"):
        listen_unix(tmp_path / "nowhere" / "socket")
    with pytest.raises(ConfigError, match="too long"):
        listen_unix(tmp_path / ("x" * 200))


def test_files_that_make_no_tls_server(files: TlsFiles, tmp_path: Path) -> None:
    assert files.key is not None
    assert ServeSettings(ssl_certfile=files.certificate, ssl_keyfile=files.key).tls() == files
    assert ServeSettings().tls() is None
    with pytest.raises(ConfigError, match="needs --ssl-certfile"):
        ServeSettings(ssl_keyfile=files.key).tls()
    with pytest.raises(ConfigError, match="cannot be used"):
        ServeSettings(ssl_certfile=files.certificate).tls()  # without a key in it
    encrypted = tmp_path / "encrypted.pem"
    subprocess.run(
        ["openssl", "rsa", "-aes256", "-passout", "pass:secret", "-in", files.key, "-out", encrypted],
        check=True,
        capture_output=True,
    )
    with pytest.raises(ConfigError, match="the key is encrypted"):
        ServeSettings(ssl_certfile=files.certificate, ssl_keyfile=encrypted).tls()
