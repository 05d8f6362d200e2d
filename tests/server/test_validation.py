"""What a request may not be, and that nothing dies of it."""

import json
from collections.abc import Iterator

import httpx
import pytest

from tests.fakes import FakeEngine
from tests.server.harness import RunningServer, serving

MAX_MODEL_LEN = 100


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving(FakeEngine(max_model_len=MAX_MODEL_LEN)) as running:
        yield running


@pytest.fixture(autouse=True)
def still_answers(server: RunningServer) -> Iterator[None]:
    """After every bad request a good one gets the golden answer."""
    yield
    golden = server.client.post("/v1/completions", json={"prompt": "x", "seed": 5, "max_tokens": 5})
    assert golden.json()["choices"][0]["text"] == "c0s5."


def send(server: RunningServer, body: bytes, path: str = "/v1/completions") -> httpx.Response:
    return server.client.post(path, content=body, headers={"content-type": "application/json"})


def refusal(
    server: RunningServer, fields: dict[str, object], path: str = "/v1/completions"
) -> dict[str, str]:
    """Return the error of a body that must be refused with a small 400."""
    response = send(server, json.dumps(fields).encode(), path)
    assert response.status_code == 400, response.text
    assert len(response.content) < 4096
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return error


@pytest.mark.parametrize(
    "prompt", ["", [], [[]], ["a", ""], [[1], []], None, [1, "a"], ["a", 1], [[1, "a"]], 5, {}, [True], [1.0]]
)
def test_bad_prompts(server: RunningServer, prompt: object) -> None:
    assert refusal(server, {"prompt": prompt})["param"].startswith("prompt")


def test_a_missing_prompt(server: RunningServer) -> None:
    assert refusal(server, {}) == {
        "message": "prompt is required",
        "type": "invalid_request_error",
        "param": "prompt",
        "code": "invalid_value",
    }


@pytest.mark.parametrize("ids", [[-1], [259], [2**63], [-(2**63)], [10**400], [0, 1, 300]])
def test_token_ids_outside_the_vocabulary(server: RunningServer, ids: list[int]) -> None:
    assert "between 0 and 258" in refusal(server, {"prompt": ids})["message"]
    assert refusal(server, {"prompt": "x", "stop_token_ids": ids})["param"] == "stop_token_ids"
    assert refusal(server, {"tokens": ids}, "/detokenize")["param"] == "tokens"


@pytest.mark.parametrize(
    "literal", ["NaN", "Infinity", "-Infinity", "1e400", "-0.1", "2.1", "1e6", '"1"', "true"]
)
@pytest.mark.parametrize("field", ["temperature", "top_p", "min_p"])
def test_reals_outside_their_range(server: RunningServer, field: str, literal: str) -> None:
    response = send(server, b'{"prompt": "x", "%s": %s}' % (field.encode(), literal.encode()))
    assert response.status_code == 400
    if literal not in ("NaN", "Infinity", "-Infinity"):  # no JSON at all
        assert response.json()["error"]["param"] == field


@pytest.mark.parametrize("temperature", [0, 1e-45, -0.0, 2])
def test_extreme_temperatures_that_mean_something(server: RunningServer, temperature: float) -> None:
    response = send(server, json.dumps({"prompt": "x", "temperature": temperature}).encode())
    assert response.status_code == 200


@pytest.mark.parametrize("top_p", [0, 1.1])
def test_top_p(server: RunningServer, top_p: float) -> None:
    assert refusal(server, {"prompt": "x", "top_p": top_p})["param"] == "top_p"


@pytest.mark.parametrize("top_k", [0, -1, 10**6])
def test_top_k_off_or_larger_than_the_vocabulary(server: RunningServer, top_k: int) -> None:
    assert send(server, json.dumps({"prompt": "x", "top_k": top_k}).encode()).status_code == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("top_k", -2),
        ("seed", 2**63),
        ("seed", -(2**63) - 1),
        ("max_tokens", 0),
        ("max_tokens", -2),
        ("min_tokens", -1),
        ("min_tokens", 17),
        ("n", 0),
        ("n", -1),
        ("n", 129),
        ("n", 10**30),
    ],
)
def test_integers_outside_their_range(server: RunningServer, field: str, value: int) -> None:
    error = refusal(server, {"prompt": "x", field: value})
    assert error["param"] == field
    assert field in error["message"]


@pytest.mark.parametrize(
    "field",
    [
        *("max_tokens", "max_completion_tokens", "min_tokens", "top_k", "n", "best_of", "seed", "logprobs"),
        "prompt_logprobs",
    ],
)
@pytest.mark.parametrize("value", ["1", 1.0, True, [1], {"a": 1}])
def test_integers_are_integers(server: RunningServer, field: str, value: object) -> None:
    error = refusal(server, {"prompt": "x", field: value})
    assert error["param"] == field
    assert error["message"].startswith(f"{field} must be an integer, got ")


@pytest.mark.parametrize(
    "field",
    [
        *("stream", "ignore_eos", "echo", "return_token_ids", "skip_special_tokens"),
        "include_stop_str_in_output",
    ],
)
@pytest.mark.parametrize("value", [1, 0, "true", "false"])
def test_booleans_are_booleans(server: RunningServer, field: str, value: object) -> None:
    assert refusal(server, {"prompt": "x", field: value})["param"] == field


@pytest.mark.parametrize("stop", ["", [""], ["a", ""], ["x"] * 17, "x" * 257, [1], 5, {"a": 1}, [["a"]]])
def test_bad_stop_strings(server: RunningServer, stop: object) -> None:
    assert refusal(server, {"prompt": "x", "stop": stop})["param"] == "stop"


def test_sixteen_stop_strings_are_fine(server: RunningServer) -> None:
    body = {"prompt": "x", "stop": [chr(0x4E00 + i) for i in range(16)], "stop_token_ids": []}
    assert send(server, json.dumps(body).encode()).status_code == 200


@pytest.mark.parametrize(
    ("num_prompt_tokens", "max_tokens", "generated"),
    [(1, None, 16), (90, None, 10), (99, None, 1), (99, 1, 1), (50, 50, 50)],
)
def test_the_longest_that_fits(
    server: RunningServer, num_prompt_tokens: int, max_tokens: int | None, generated: int
) -> None:
    body = {"prompt": [1] * num_prompt_tokens, "max_tokens": max_tokens}
    assert send(server, json.dumps(body).encode()).status_code == 200
    assert server.engine.requests[-1].params.max_tokens == generated


@pytest.mark.parametrize(
    ("num_prompt_tokens", "max_tokens", "param"),
    [
        (100, None, "prompt"),
        (101, None, "prompt"),
        (100, 1, "prompt"),
        (99, 2, "max_tokens"),
        (1, 10**9, "max_tokens"),
    ],
)
def test_too_long_names_limit_prompt_and_request(
    server: RunningServer, num_prompt_tokens: int, max_tokens: int | None, param: str
) -> None:
    error = refusal(server, {"prompt": [1] * num_prompt_tokens, "max_tokens": max_tokens})
    assert error["param"] == param
    for number in (MAX_MODEL_LEN, num_prompt_tokens, max_tokens or "at least 1"):
        assert str(number) in error["message"]


def test_a_hopelessly_long_text_is_not_even_tokenised(server: RunningServer) -> None:
    error = refusal(server, {"prompt": "a" * 10_000})
    assert error["param"] == "prompt"
    assert "10000 bytes" in error["message"]
    assert str(MAX_MODEL_LEN) in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "x", "stop": ["\\uDFFF"]}',
        b'{"prompt": "x", "model": "\\ud83d"}',
        b'{"prompt": "x", "\\ud800": 1}',
        b'{"prompt": "x", "a": {"b": [{"c": "\\ud800"}]}}',
        b'{"prompt": "x", "bad_words": ["\\ud800"]}',
        b'{"prompt": "x", "logit_bias": {"\\ud800": 1}}',
        b'{"prompt": "x", "structured_outputs": {"choice": ["\\ud800"]}}',
        b'{"prompt": "x", "response_format": {"json_schema": {"schema": {"\\ud800": 1}}}}',
    ],
)
def test_lone_surrogates(server: RunningServer, body: bytes) -> None:
    response = send(server, body)
    assert response.status_code == 400
    assert "surrogate" in response.json()["error"]["message"]
    response.content.decode("utf-8")


def test_a_pair_of_surrogates_is_an_emoji(server: RunningServer) -> None:
    assert send(server, b'{"prompt": "\\ud83d\\ude00"}').status_code == 200
    assert bytes(server.engine.requests[-1].prompt_token_ids).decode() == "😀"


def test_another_model_is_a_404(server: RunningServer) -> None:
    response = send(server, json.dumps({"prompt": "x", "model": "nobody" * 100}).encode())
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert len(response.content) < 400


def test_too_many_prompts_are_refused_before_anything_is_done(server: RunningServer) -> None:
    num_requests = len(server.engine.requests)
    assert refusal(server, {"prompt": ["x"] * 100_000})["param"] == "prompt"
    assert refusal(server, {"prompt": ["x"] * 64, "n": 3})["param"] == "n"
    assert len(server.engine.requests) == num_requests


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("service_tier", "priority"),
    ],
)
def test_known_fields_that_are_not_honoured_are_refused(
    server: RunningServer, field: str, value: object
) -> None:
    error = refusal(server, {"prompt": "x", field: value})
    assert error["param"] == field
    assert "not supported" in error["message"]
    assert error["code"] == "unsupported_parameter"


def test_known_fields_that_ask_for_nothing_are_fine(server: RunningServer) -> None:
    body = {
        "prompt": "x",
        "n": 2,
        "best_of": 2,
        "suffix": "",
        "logit_bias": {},
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "response_format": {"type": "text"},
        "tools": [],
    }
    response = send(server, json.dumps(body).encode())
    assert response.status_code == 200
    assert "warnings" not in response.json()


def test_many_unknown_fields_are_few_warnings(server: RunningServer) -> None:
    body = {"prompt": "x", **{f"field{i}" * 50: 1 for i in range(1000)}}
    warnings = send(server, json.dumps(body).encode()).json()["warnings"]
    assert len(warnings) == 16
    assert len(json.dumps(warnings)) < 8192


@pytest.mark.parametrize("value", [{"include_usage": True}, {}])
def test_stream_options_need_a_stream(server: RunningServer, value: object) -> None:
    assert refusal(server, {"prompt": "x", "stream_options": value})["param"] == "stream_options"


@pytest.mark.parametrize("value", [True, [], {"include_usage": 1}])
def test_bad_stream_options(server: RunningServer, value: object) -> None:
    assert refusal(server, {"prompt": "x", "stream": True, "stream_options": value})["param"].startswith(
        "stream_options"
    )


def test_a_cache_salt_has_a_length_limit(server: RunningServer) -> None:
    assert refusal(server, {"prompt": "x", "cache_salt": "s" * 257})["param"] == "cache_salt"
    assert refusal(server, {"prompt": "x", "cache_salt": 5})["param"] == "cache_salt"


def test_no_error_is_amplified(server: RunningServer) -> None:
    for fields in (
        {"prompt": [[{}] * 1000] * 100},
        {"prompt": ["x"] * 50 + [1] * 50},
        {"prompt": "x", "stop": [{"a": "b" * 1000}] * 10},
        {"prompt": "x", "seed": "7" * 100_000},
        {"prompt": "x", "model": "\x00\x01" * 5000},
    ):
        response = send(server, json.dumps(fields).encode())
        assert response.status_code in (400, 404)
        assert len(response.content) < 4096


def test_messages_with_many_errors_give_one(server: RunningServer) -> None:
    error = refusal(server, {"messages": [{}] * 4000}, "/v1/chat/completions")
    assert error["param"] == "messages[0].role"
