"""Both clients against a real socket; every test runs once for each of them."""

import gzip
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from draftline_client import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ClosedError,
    InternalServerError,
    NotFoundError,
    PayloadTooLargeError,
    ProtocolError,
    RateLimitError,
    ServiceUnavailableError,
    UnsupportedMediaTypeError,
    __version__,
)

USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "total_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 0},
}
COMPLETION = {
    "id": "cmpl-1",
    "object": "text_completion",
    "created": 5,
    "model": "m",
    "choices": [{"index": 0, "text": "Hi", "finish_reason": "stop", "logprobs": None}],
    "usage": USAGE,
}
CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 5,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
    "usage": USAGE,
}
MODEL = {"id": "org/m", "object": "model", "created": 1, "owned_by": "draftline", "max_model_len": 2048}
HELLO = [{"role": "user", "content": "Hello"}]

Connect = Callable[..., Any]


def test_a_completion(server: Any, client: Any) -> None:
    server.then(server.json(COMPLETION))
    completion = client.completions.create(prompt="Hello", model="m", max_tokens=2, seed=None)
    assert (completion.choices[0].text, completion.usage.total_tokens) == ("Hi", 5)
    assert completion.request_id == "req-7"
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/v1/completions")
    assert request.body == {"prompt": "Hello", "model": "m", "max_tokens": 2, "seed": None}
    assert request.headers["content-type"] == request.headers["accept"] == "application/json"
    assert request.headers["user-agent"].startswith(f"draftline-client/{__version__} ")
    assert "authorization" not in request.headers


def test_an_answer(server: Any, client: Any) -> None:
    server.then(server.json(CHAT))
    answer = client.chat.create(messages=HELLO, temperature=0.0)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Hi", "stop")
    (request,) = server.requests
    assert (request.path, request.body) == (
        "/v1/chat/completions",
        {"messages": HELLO, "temperature": 0.0},
    )


def test_models(server: Any, client: Any) -> None:
    server.then(server.json({"object": "list", "data": [MODEL]}), server.json(MODEL))
    assert [model.id for model in client.models.list()] == ["org/m"]
    assert client.models.retrieve("org/m").max_model_len == 2048
    assert [request.path for request in server.requests] == ["/v1/models", "/v1/models/org%2Fm"]


def test_tokens(server: Any, client: Any) -> None:
    reply = server.json({"tokens": [1, 2], "count": 2, "max_model_len": 9})
    server.then(reply, reply, server.json({"prompt": "Hi"}))
    assert client.tokenize(text="Hi").token_ids == (1, 2)
    assert client.tokenize(messages=HELLO, add_special_tokens=True).count == 2
    assert client.detokenize((1, 2), skip_special_tokens=True) == "Hi"
    assert [(request.path, request.body) for request in server.requests] == [
        ("/tokenize", {"prompt": "Hi"}),
        ("/tokenize", {"messages": HELLO, "add_special_tokens": True}),
        ("/detokenize", {"tokens": [1, 2], "skip_special_tokens": True}),
    ]


def test_version(server: Any, client: Any) -> None:
    server.then(server.json({"version": "1.2"}))
    assert client.version() == "1.2"


def test_probes(server: Any, client: Any, sleeps: list[float]) -> None:
    server.then(server.raw(b""), server.json({}, status=503), server.raw(b"ok"), server.error(503))
    assert [client.health(), client.health(), client.ready(), client.ready()] == [True, False, True, False]
    assert [request.path for request in server.requests] == ["/health", "/health", "/ready", "/ready"]
    assert sleeps == []


def test_a_probe_of_something_else_is_no_answer(server: Any, client: Any) -> None:
    server.then(server.error(404))
    with pytest.raises(NotFoundError):
        client.ready()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def test_nobody_listens(server: Any, connect: Connect, sleeps: list[float]) -> None:
    client = connect(base_url=f"http://127.0.0.1:{free_port()}", max_retries=3)
    assert not client.ready()
    assert not client.health()
    assert sleeps == []
    with pytest.raises(APIConnectionError, match=r"POST http://127\.0\.0\.1:") as caught:
        client.completions.create(prompt="p")
    assert not caught.value.request_sent
    assert len(sleeps) == 3
    assert all(ceiling / 2 <= slept <= ceiling for slept, ceiling in zip(sleeps, (0.5, 1, 2), strict=True))
    assert server.requests == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequestError),
        (401, AuthenticationError),
        (404, NotFoundError),
        (413, PayloadTooLargeError),
        (415, UnsupportedMediaTypeError),
        (429, RateLimitError),
        (503, ServiceUnavailableError),
        (500, InternalServerError),
        (502, InternalServerError),
        (403, APIStatusError),
        (422, APIStatusError),
        (307, APIStatusError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_statuses_become_errors(
    server: Any, connect: Connect, status: int, kind: type[APIStatusError], stream: bool
) -> None:
    server.then(server.error(status, "what is wrong", Retry_After="2"))
    with pytest.raises(APIStatusError) as caught:
        connect(max_retries=0).completions.create(prompt="p", stream=stream)
    error = caught.value
    assert type(error) is kind
    assert (error.message, error.type, error.param, error.code) == (
        "what is wrong",
        "some_error",
        "top_k",
        "some_code",
    )
    assert (error.status_code, error.request_id, error.retry_after) == (status, "req-7", 2.0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_refused_generation_is_sent_again_when_the_server_says(
    server: Any, client: Any, sleeps: list[float], stream: bool
) -> None:
    last = server.stream(b"data: [DONE]\n\n") if stream else server.json(COMPLETION)
    server.then(server.error(429, Retry_After="7"), server.error(503, Retry_After="900"), last)
    reply = client.completions.create(prompt="p", stream=stream)
    assert sleeps == [7.0, 60.0]
    assert len({str(request.body) for request in server.requests}) == 1
    assert (list(reply) == []) if stream else (reply.id == "cmpl-1")


def test_retries_end(server: Any, client: Any, sleeps: list[float]) -> None:
    server.then(*[server.error(503)] * 3)
    with pytest.raises(ServiceUnavailableError):
        client.chat.create(messages=HELLO)
    assert len(sleeps) == 2


def test_no_retries(server: Any, connect: Connect, sleeps: list[float]) -> None:
    server.then(server.error(429))
    with pytest.raises(RateLimitError):
        connect(max_retries=0).version()
    assert sleeps == []


@pytest.mark.parametrize("status", [400, 500, 502, 504])
def test_a_generation_that_may_have_begun_is_not_sent_again(
    server: Any, client: Any, sleeps: list[float], status: int
) -> None:
    server.then(server.error(status))
    with pytest.raises(APIStatusError):
        client.completions.create(prompt="p")
    assert sleeps == []


def test_a_dropped_generation_is_not_sent_again_but_a_question_is(
    server: Any, client: Any, sleeps: list[float]
) -> None:
    server.then(lambda exchange: exchange.drop())
    with pytest.raises(APIConnectionError) as caught:
        client.completions.create(prompt="p")
    assert caught.value.request_sent
    assert sleeps == []
    server.then(lambda exchange: exchange.drop(), server.error(502), server.json({"version": "1"}))
    assert client.version() == "1"
    assert len(sleeps) == 2


def test_a_reply_cut_in_the_middle(server: Any, client: Any, sleeps: list[float]) -> None:
    def cut(exchange: Any) -> None:
        exchange.head(200, {"Content-Length": "100"})
        exchange._handler.wfile.write(b'{"version"')
        exchange.drop()

    server.then(cut, server.json({"version": "1"}), cut)
    assert client.version() == "1"
    assert len(sleeps) == 1
    with pytest.raises(APIConnectionError) as caught:
        client.completions.create(prompt="p")
    assert caught.value.request_sent


def test_a_slow_first_byte_is_a_timeout(server: Any, connect: Connect, sleeps: list[float]) -> None:
    def never(exchange: Any) -> None:
        exchange.wait_for_disconnect()

    server.then(never, never)
    with pytest.raises(APITimeoutError, match="ReadTimeout") as caught:
        connect().completions.create(prompt="p", timeout=0.05)
    assert caught.value.request_sent
    with pytest.raises(APITimeoutError):
        connect(timeout=httpx.Timeout(5, read=0.05)).completions.create(prompt="p", stream=True)
    assert server.disconnected.wait(20)
    assert sleeps == []


def test_the_servers_probe_has_a_timeout_of_its_own(server: Any, client: Any) -> None:
    server.then(lambda exchange: exchange.wait_for_disconnect())
    assert client.ready(timeout=0.05) is False


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>proxy</html>", b"\xff\xfe", b"[" * 50_000],
    ids=["empty", "html", "binary", "nested"],
)
def test_an_error_body_of_any_kind(server: Any, client: Any, body: bytes) -> None:
    server.then(server.raw(body, status=500))
    with pytest.raises(InternalServerError, match="the server answered 500") as caught:
        client.completions.create(prompt="p")
    assert len(str(caught.value)) < 400
    assert caught.value.type is None


def test_a_huge_error_body_is_not_read_to_its_end(server: Any, client: Any) -> None:
    server.then(server.raw(b"x" * 50_000_000, status=500))
    with pytest.raises(InternalServerError, match="the server answered 500") as caught:
        client.completions.create(prompt="p")
    assert len(str(caught.value)) < 400
    assert server.disconnected.wait(20)


def test_an_error_body_that_unfolds_or_breaks_off(server: Any, client: Any) -> None:
    def broken(exchange: Any) -> None:
        exchange.head(500, {"Content-Length": "1000"})
        exchange.drop()

    folded = gzip.compress(b"x" * 10_000_000)
    server.then(
        server.raw(folded, status=500, Content_Encoding="gzip"),
        server.raw(b"not gzip", status=500, Content_Encoding="gzip"),
        broken,
    )
    for _ in range(3):
        with pytest.raises(InternalServerError, match="the server answered 500") as caught:
            client.completions.create(prompt="p")
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>", "not JSON"),
        (b"[]", "an array in place of an object"),
        (b"{}", "lacks a required field at id"),
    ],
)
def test_a_reply_that_is_not_one(
    server: Any, client: Any, sleeps: list[float], body: bytes, message: str
) -> None:
    server.then(server.raw(body))
    with pytest.raises(ProtocolError, match=message) as caught:
        client.completions.create(prompt="p")
    assert caught.value.request_id == "req-7"
    assert sleeps == []


def test_a_reply_with_a_broken_encoding(server: Any, client: Any) -> None:
    server.then(server.raw(b"not gzip", Content_Encoding="gzip"))
    with pytest.raises(ProtocolError):
        client.version()


def test_one_connection_serves_many_calls(server: Any, client: Any) -> None:
    server.then(server.json(COMPLETION), server.error(400), server.raw(b"ok"), server.error(503))
    server.then(server.json({"version": "1"}))
    client.completions.create(prompt="p")
    with pytest.raises(BadRequestError):
        client.completions.create(prompt="p")
    assert [client.health(), client.ready()] == [True, False]
    client.version()
    assert server.num_connections == 1


def test_options_of_one_call(server: Any, connect: Connect) -> None:
    server.then(server.json(COMPLETION))
    connect(api_key="own").completions.create(
        prompt="p",
        extra_headers={"authorization": "Bearer other", "X-Trace": "1"},
        extra_body={"newer": {"a": 1}},
        timeout=None,
    )
    (request,) = server.requests
    assert (request.headers["authorization"], request.headers["x-trace"]) == ("Bearer other", "1")
    assert request.body == {"prompt": "p", "newer": {"a": 1}}


def test_a_misspelt_option_is_not_sent(server: Any, client: Any) -> None:
    with pytest.raises(TypeError, match="'temprature'"):
        client.completions.create(prompt="p", temprature=1)
    assert server.requests == []


def test_environment(server: Any, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFTLINE_BASE_URL", server.url)
    monkeypatch.setenv("DRAFTLINE_API_KEY", "from-env")
    server.then(*[server.json({"version": "1"})] * 3)
    connect(base_url=None).version()
    connect(base_url=None, api_key="given").version()
    connect(base_url=None, api_key="").version()
    assert [request.headers.get("authorization") for request in server.requests] == [
        "Bearer from-env",
        "Bearer given",
        None,
    ]


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
@pytest.mark.parametrize("prefix", ["", "/behind/a%20proxy"])
def test_base_url_with_and_without_the_version(
    server: Any, connect: Connect, prefix: str, suffix: str
) -> None:
    server.then(server.json(COMPLETION), server.json({"version": "1"}))
    client = connect(base_url=server.url + prefix + suffix)
    client.completions.create(prompt="p")
    client.version()
    assert [request.path for request in server.requests] == [f"{prefix}/v1/completions", f"{prefix}/version"]


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://host", "http://", "/v1", "http://h/?a=1", "http://h:x"]
)
def test_a_base_url_that_is_none(connect: Connect, url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        connect(base_url=url)


def test_no_environment_proxy_for_this_machine(
    server: Any, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert os.environ["HTTP_PROXY"]
    server.then(server.raw(b"ok"))
    assert connect().health()


def test_the_key_is_never_shown(server: Any, connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.then(server.error(401), server.json(COMPLETION))
    client = connect(api_key="hunter2")
    with pytest.raises(AuthenticationError) as caught:
        client.completions.create(prompt="p")
    client.completions.create(prompt="p")
    assert server.requests[0].headers["authorization"] == "Bearer hunter2"
    inner: Any = getattr(client, "_target", client)
    shown = [repr(client), repr(vars(inner)), repr(vars(inner._sender)), repr(vars(inner._sender.endpoint))]
    shown += [str(caught.value), repr(caught.value), repr(vars(caught.value)), caplog.text]
    assert not [text for text in shown if "hunter2" in text]
    assert repr(client).endswith(f"(base_url=URL('{server.url}/'))")


@pytest.mark.parametrize("key", ["hunter2\n", "hun\tter2", "hunter 2", "hunter²", "\ud800hunter2"])
def test_a_key_that_no_header_can_hold(connect: Connect, key: str) -> None:
    with pytest.raises(ValueError, match="api_key holds a character") as caught:
        connect(api_key=key)
    assert "hun" not in str(caught.value)
    assert "hun" not in repr(caught.value.__cause__)


def test_a_header_that_cannot_be_sent_is_not_shown(server: Any, client: Any) -> None:
    with pytest.raises(ValueError, match="extra_headers: the value of 'Authorization'") as caught:
        client.version(extra_headers={"Authorization": "Bearer hunter2\r\nX: y"})
    assert "hunter2" not in str(caught.value)
    assert server.requests == []


def test_a_password_in_the_url_is_not_shown(server: Any, connect: Connect) -> None:
    server.then(server.error(404), lambda exchange: exchange.drop())
    client = connect(base_url=server.url.replace("//", "//user:hunter2@"))
    assert "hunter2" not in repr(client)
    with pytest.raises(NotFoundError):
        client.version()
    with pytest.raises(APIConnectionError) as caught:
        client.completions.create(prompt="p")
    assert "hunter2" not in str(caught.value)


def test_a_closed_client(server: Any, connect: Connect) -> None:
    server.then(server.json({"version": "1"}))
    with connect() as client:
        client.version()
    with pytest.raises(ClosedError, match="the client is closed"):
        client.version()
    with pytest.raises(ClosedError, match="the client is closed"):
        client.completions.create(prompt="p", stream=True)
    client.close()
    assert len(server.requests) == 1
