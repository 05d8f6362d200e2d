import json
import pickle

import draftline_client
import httpx
import pytest
from draftline_client import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    DraftlineClientError,
    ErrorDetail,
    InternalServerError,
    ProtocolError,
    RateLimitError,
    Received,
    StreamBrokenError,
    StreamError,
    StreamTimeoutError,
    Usage,
    _calls,
    _parse,
    _protocol,
)
from hypothesis import given
from hypothesis import strategies as st

GENERATION = _calls.completion_call("p", {}, _parse.parse_completion, stream=False)
QUESTION = _calls.version_call({})
DATE = "Wed, 21 Oct 2026 07:28:00 GMT"
UNIX_DATE = 1792567680.0


def failed(status_code: int, retry_after: float | None = None) -> APIStatusError:
    return APIStatusError(ErrorDetail(message="m"), status_code=status_code, retry_after=retry_after)


@pytest.mark.parametrize("status_code", [408, 429, 503])
def test_a_refusal_is_retried(status_code: int) -> None:
    assert _protocol.should_retry(GENERATION, failed(status_code))
    assert _protocol.should_retry(QUESTION, failed(status_code))


@pytest.mark.parametrize("status_code", [502, 504])
def test_a_gateway_failure_is_retried_unless_work_may_be_lost(status_code: int) -> None:
    assert not _protocol.should_retry(GENERATION, failed(status_code))
    assert _protocol.should_retry(QUESTION, failed(status_code))


@pytest.mark.parametrize("status_code", [301, 400, 401, 403, 404, 409, 413, 415, 422, 500, 501])
def test_other_statuses_are_final(status_code: int) -> None:
    assert not _protocol.should_retry(GENERATION, failed(status_code))
    assert not _protocol.should_retry(QUESTION, failed(status_code))


@pytest.mark.parametrize(
    ("error", "request_sent", "kind"),
    [
        (httpx.ConnectError("refused"), False, APIConnectionError),
        (httpx.ConnectTimeout(""), False, APITimeoutError),
        (httpx.PoolTimeout(""), False, APITimeoutError),
        (httpx.ProxyError("407"), False, APIConnectionError),
        (httpx.ReadError(""), True, APIConnectionError),
        (httpx.WriteError(""), True, APIConnectionError),
        (httpx.RemoteProtocolError("cut"), True, APIConnectionError),
        (httpx.ReadTimeout(""), True, APITimeoutError),
        (httpx.DecodingError("gzip"), None, ProtocolError),
        (httpx.TooManyRedirects("21"), None, ProtocolError),
    ],
)
def test_failures_of_the_transport(
    error: httpx.RequestError, request_sent: bool | None, kind: type[DraftlineClientError]
) -> None:
    request = httpx.Request("POST", "http://user:hunter2@host:81/v1/completions?x=1")
    with pytest.raises(kind) as caught, _protocol.transport_errors(request):
        raise error
    assert type(caught.value) is kind
    assert caught.value.__cause__ is error
    assert str(caught.value).startswith("POST http://host:81/v1/completions: ")
    assert _protocol.should_retry(GENERATION, caught.value) == (request_sent is False)
    assert _protocol.should_retry(QUESTION, caught.value) == (request_sent is not None)


def test_the_servers_wish_decides_the_delay_within_bounds() -> None:
    assert _protocol.retry_delay(failed(429, 3.5), 0) == 3.5
    assert _protocol.retry_delay(failed(503, 0.0), 5) == 0.0
    assert _protocol.retry_delay(failed(429, 3600.0), 0) == 60.0


@given(st.integers(min_value=0, max_value=10_000))
def test_without_a_wish_delays_double_up_to_a_bound(attempt: int) -> None:
    ceiling = min(0.5 * 2 ** min(attempt, 100), 8.0)
    assert ceiling / 2 <= _protocol.retry_delay(failed(503), attempt) <= ceiling


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (" 0.5 ", 0.5),
        ("0", 0.0),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("1e400", None),
        ("", None),
        ("soon", None),
        (DATE, 30.0),
        ("Wed, 21 Oct 2020 07:28:00 GMT", 0.0),
        ("Wed, 99 Oct 2026 07:28:00 GMT", None),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    headers = httpx.Headers({"Retry-After": value})
    assert _protocol.parse_retry_after(headers, now=UNIX_DATE - 30) == seconds


def test_a_retry_date_is_measured_by_the_servers_own_clock() -> None:
    headers = httpx.Headers({"Retry-After": DATE, "Date": "Wed, 21 Oct 2026 07:27:50 GMT"})
    assert _protocol.parse_retry_after(headers, now=0.0) == 10.0
    assert _protocol.parse_retry_after(httpx.Headers(), now=0.0) is None


def detail(body: bytes) -> ErrorDetail:
    return _protocol.error_detail(body, "the summary")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            b'{"error": {"message": "m", "type": "t", "param": "p", "code": "c"}}',
            ErrorDetail(message="m", type="t", param="p", code="c"),
        ),
        (b'{"error": {"message": "m", "param": null, "code": 7}}', ErrorDetail(message="m", code="7")),
        (b'{"error": {}}', ErrorDetail(message="the summary")),
        (b'{"error": null}', ErrorDetail(message="the summary")),
        (b'{"error": "text"}', ErrorDetail(message="text")),
        (b'{"error": [1]}', ErrorDetail(message="[1]")),
        (b'{"message": "m", "type": "t"}', ErrorDetail(message="m", type="t")),
        (b'{"detail": "Not Found"}', ErrorDetail(message="Not Found")),
        (b"{}", ErrorDetail(message="the summary")),
        (b"[1, 2]", ErrorDetail(message="the summary: [1, 2]")),
        (b"", ErrorDetail(message="the summary")),
        (b"<h1>Bad\r\n gateway</h1>", ErrorDetail(message="the summary: <h1>Bad gateway</h1>")),
        (b"\x1b[31mred\x07\xff", ErrorDetail(message="the summary: [31mred \ufffd")),
        (b"x" * 5000, ErrorDetail(message="the summary: " + "x" * 200)),
        (json.dumps({"error": {"message": "m" * 5000}}).encode(), ErrorDetail(message="m" * 4096)),
        (json.dumps({"error": {"param": ["p"] * 5000}}).encode()[:-9000], None),
    ],
)
def test_an_error_body_may_be_anything(body: bytes, expected: ErrorDetail | None) -> None:
    found = detail(body)
    assert len(found.message) <= 4096
    assert expected is None or found == expected


@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_no_error_body_breaks_the_error(body: bytes) -> None:
    assert detail(body).message.startswith("the summary") or body.lstrip().startswith(b"{")


def test_a_body_is_kept_up_to_its_limit() -> None:
    body = _protocol.BoundedBody(5)
    assert body.add(b"abc")
    assert body.add(b"de")
    assert (body.content(), body.is_truncated) == (b"abcde", False)
    assert not body.add(b"f")
    assert (body.content(), body.is_truncated) == (b"abcde", True)


def test_a_reply_over_the_limit_is_refused() -> None:
    body = _protocol.BoundedBody(1)
    body.add(b"{}")
    with pytest.raises(ProtocolError, match="longer than"):
        _protocol.parse_reply(QUESTION, httpx.Response(200), body)


@pytest.mark.parametrize("value", [-1, 1.0, True, None, "2"])
def test_max_retries_is_checked(value: int) -> None:
    with pytest.raises(ValueError, match="max_retries must be an integer of at least 0"):
        _protocol.checked_max_retries(value)
    assert _protocol.checked_max_retries(0) == 0


USAGE = Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3)
RECEIVED = Received(
    text="Hi", texts=("Hi",), num_chunks=2, request_id="r", usage=USAGE, finish_reasons=(None,)
)
ERRORS = [
    RateLimitError(
        ErrorDetail(message="busy", type="t", param="p", code="c"),
        status_code=429,
        request_id="r",
        retry_after=2.0,
    ),
    InternalServerError(ErrorDetail(message="broken"), status_code=500),
    StreamError(ErrorDetail(message="late"), request_id="r", received=RECEIVED),
    StreamBrokenError("cut", received=RECEIVED),
    StreamTimeoutError("slow", received=RECEIVED),
    APITimeoutError("slow", request_sent=True),
    ProtocolError("odd", field="choices", request_id="r"),
    draftline_client.ClosedError("closed"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_survive_pickling(error: DraftlineClientError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), vars(copy), copy.args) == (str(error), vars(error), error.args)


def test_an_errors_text_holds_its_facts() -> None:
    assert [str(error) for error in ERRORS[:4]] == [
        "busy (HTTP 429, type t, param p, code c, request id r)",
        "broken (HTTP 500)",
        "late (request id r)",
        "cut (after 2 chunks, request id r)",
    ]
