"""Sampling fields over a real socket: what they become for the engine, and what they may not be."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.api.schemas import ChatCompletionRequest, CompletionRequest
from tests.fakes import EOS, FakeEngine, cut, fake_logprobs, say
from tests.server.harness import RunningServer, served_model, serving, serving_model

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
BASES = {COMPLETIONS: {"prompt": "x"}, CHAT: {"messages": [{"role": "user", "content": "x"}]}}
SCHEMAS = {COMPLETIONS: CompletionRequest, CHAT: ChatCompletionRequest}
FIELDS = [(path, name) for path, schema in SCHEMAS.items() for name in schema.model_fields]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving(FakeEngine()) as running:
        yield running


@pytest.fixture(autouse=True)
def still_answers(server: RunningServer) -> Iterator[None]:
    """After every request the golden one gets its answer."""
    yield
    golden = server.client.post(COMPLETIONS, json={"prompt": "x", "seed": 5, "max_tokens": 5})
    assert golden.json()["choices"][0]["text"] == "c0s5."


def post(server: RunningServer, path: str = COMPLETIONS, **body: object) -> Any:
    response = server.client.post(path, json={**BASES[path], **body})
    assert response.status_code == 200, response.text
    return response.json()


def refusal(server: RunningServer, path: str = COMPLETIONS, **body: object) -> dict[str, str]:
    response = server.client.post(path, json={**BASES[path], **body})
    assert response.status_code == 400, response.text
    assert len(response.content) < 1000
    return response.json()["error"]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_every_sampling_field_reaches_the_engine(server: RunningServer, path: str) -> None:
    reply = post(
        server,
        path,
        typical_p=0.5,
        presence_penalty=-2,
        frequency_penalty=2,
        repetition_penalty=1.5,
        logit_bias={"5": -100, "258": 1.5},
        allowed_token_ids=[1, 2, 2],
        bad_words=["ab", " c"],
        max_completion_tokens=7,
        min_tokens=3,
        user="somebody",
    )
    assert "warnings" not in reply
    params = server.engine.requests[-1].params
    assert (params.typical_p, params.repetition_penalty) == (0.5, 1.5)
    assert (params.presence_penalty, params.frequency_penalty) == (-2.0, 2.0)
    assert params.logit_bias == {5: -100.0, 258: 1.5}
    assert params.allowed_token_ids == {1, 2}
    assert params.banned_sequences == {(97, 98), (32, 97, 98), (99,), (32, 99)}
    assert (params.max_tokens, params.min_tokens) == (7, 3)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_defaults_ask_for_nothing(server: RunningServer, path: str) -> None:
    post(server, path, bad_words=[], logit_bias={}, response_format={"type": "text"})
    params = server.engine.requests[-1].params
    assert not params.has_penalties
    assert not params.logit_bias
    assert not params.banned_sequences
    assert params.allowed_token_ids is None
    assert params.grammar is None
    assert (params.typical_p, params.logprobs, params.prompt_logprobs) == (1.0, None, None)


def test_the_models_own_defaults_hold_where_the_request_says_nothing() -> None:
    defaults = {"temperature": 0.6, "top_k": 20.0, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1}
    engine = FakeEngine()
    with serving_model(replace(served_model(engine), generation_defaults=defaults)) as client:
        for body in ({}, {"temperature": None}, {"temperature": 0, "top_k": 0, "repetition_penalty": 1}):
            assert client.post(COMPLETIONS, json={"prompt": "x", **body}).status_code == 200
    own, null, given = (request.params for request in engine.requests)
    assert replace(own, seed=0) == replace(null, seed=0)
    assert (own.temperature, own.top_k, own.top_p, own.min_p) == (0.6, 20, 0.9, 0.1)
    assert (own.repetition_penalty, own.typical_p) == (1.1, 1.0)
    assert (given.temperature, given.top_k, given.top_p, given.repetition_penalty) == (0, 0, 0.9, 1)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_null_is_the_default_of_every_field(server: RunningServer, path: str) -> None:
    names = SCHEMAS[path].model_fields.keys() - BASES[path].keys()
    assert "warnings" not in post(server, path, **dict.fromkeys(names))


@pytest.mark.parametrize(
    ("field", "low", "high"),
    [
        ("typical_p", 1e-9, 1),
        ("presence_penalty", -2, 2),
        ("frequency_penalty", -2.0, 2.0),
        ("repetition_penalty", 0.01, 10),
    ],
)
def test_reals_have_the_ends_of_their_range(
    server: RunningServer, field: str, low: float, high: float
) -> None:
    for good in (low, high):
        post(server, **{field: good})
        assert getattr(server.engine.requests[-1].params, field) == good
    for bad in (low - 0.1, high + 0.1, 1e6, -1e6, 10**400, "1", True, [1]):
        error = refusal(server, **{field: bad})
        assert error["param"] == field
        assert field in error["message"]
    for literal in ("NaN", "-Infinity", "1e400"):
        body = f'{{"prompt": "x", "{field}": {literal}}}'.encode()
        headers = {"content-type": "application/json"}
        response = server.client.post(COMPLETIONS, content=body, headers=headers)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == (field if literal == "1e400" else None)


def test_no_field_is_anothers_off_switch(server: RunningServer) -> None:
    post(server, frequency_penalty=-2)
    params = server.engine.requests[-1].params
    assert (params.frequency_penalty, params.presence_penalty, params.repetition_penalty) == (-2.0, 0.0, 1.0)


@pytest.mark.parametrize(
    "value",
    [
        *([], "5", 5, True, {"x": 1}, {"": 1}, {"-1": 1}, {"05": 1}, {"1.0": 1}, {"٣": 1}, {"259": 1}),
        *({"9" * 30: 1}, {str(2**63): 1}, {"5": "1"}, {"5": None}, {"5": True}, {"5": 101}, {"5": -100.1}),
        *({"5": 10**400}, {"5": [1]}, {str(i): 0 for i in range(1025)}),
    ],
)
def test_bad_logit_biases(server: RunningServer, value: object) -> None:
    assert refusal(server, logit_bias=value)["param"] == "logit_bias"


@pytest.mark.parametrize("value", [[], "5", 5, {}, ["5"], [True], [1.0], [-1], [259], [2**63], [1] * 1025])
def test_bad_allowed_token_ids(server: RunningServer, value: object) -> None:
    assert refusal(server, allowed_token_ids=value)["param"].startswith("allowed_token_ids")


@pytest.mark.parametrize("value", ["a", 5, {}, [""], [5], [["a"]], ["a"] * 129, ["a" * 257]])
def test_bad_bad_words(server: RunningServer, value: object) -> None:
    assert refusal(server, bad_words=value)["param"] == "bad_words"


def test_the_largest_lists_that_are_allowed(server: RunningServer) -> None:
    post(
        server,
        logit_bias={str(i): i % 200 - 100 for i in range(259)},
        allowed_token_ids=[i % 259 for i in range(1024)],
        bad_words=[f"{i:03}" + "x" * 253 for i in range(128)],
    )
    assert len(server.engine.requests[-1].params.banned_sequences) == 256


@pytest.mark.parametrize("value", [-1, 101, 2**63, 10**400, "1", 1.0, True, [1]])
@pytest.mark.parametrize(
    ("path", "field", "others"),
    [
        (COMPLETIONS, "logprobs", {"echo": True}),
        (COMPLETIONS, "prompt_logprobs", {"logprobs": 3, "echo": True}),
        (CHAT, "prompt_logprobs", {}),
        (CHAT, "top_logprobs", {"logprobs": True}),
    ],
)
def test_numbers_of_logprobs(
    server: RunningServer, path: str, field: str, others: dict[str, object], value: object
) -> None:
    error = refusal(server, path, **others, **{field: value})
    assert error["param"] == field
    assert field in error["message"]


def test_top_logprobs_need_logprobs(server: RunningServer) -> None:
    assert refusal(server, CHAT, top_logprobs=2)["param"] == "top_logprobs"
    assert refusal(server, CHAT, logprobs=1)["param"] == "logprobs"
    assert refusal(server, top_logprobs=2)["param"] == "top_logprobs"
    assert "logprobs is a number" in refusal(server, top_logprobs=2)["message"]
    assert refusal(server, logprobs_mode="cooked")["message"] == (
        "logprobs_mode must be 'raw' or 'processed', got \"cooked\""
    )


@pytest.mark.parametrize(
    ("path", "body", "is_allowed"),
    [
        (COMPLETIONS, {}, False),
        (COMPLETIONS, {"echo": True}, True),
        (COMPLETIONS, {"prompt_logprobs": 0}, True),
        (COMPLETIONS, {"echo": True, "logprobs": 1, "n": 3}, True),
        (COMPLETIONS, {"echo": True, "prompt": [1] * 4096}, True),
        (COMPLETIONS, {"echo": True, "prompt": [1] * 4097}, False),
        (COMPLETIONS, {"echo": True, "min_tokens": 1}, False),
        (CHAT, {}, False),
        (CHAT, {"prompt_logprobs": 2}, True),
    ],
)
def test_max_tokens_0_needs_something_to_do(
    server: RunningServer, path: str, body: dict[str, object], is_allowed: bool
) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        if is_allowed:
            reply = post(server, path, **body, **{name: 0})
            assert reply["usage"]["completion_tokens"] == 0
        else:
            assert refusal(server, path, **body, **{name: 0})["param"] in (name, "prompt", "min_tokens")


@pytest.mark.parametrize(("path", "field"), FIELDS)
def test_whatever_a_field_holds_the_answer_is_200_or_a_400_that_names_it(
    server: RunningServer, path: str, field: str
) -> None:
    values = [-1, 0, 1, 101, 2.5, 2**63, 10**400, "x", "", True, False, [], {}, [1], ["a"], [-1], [[1]]]
    values += [[{}], {"a": 1}, {"5": 1}, {"5": None}, {"type": "x"}, {"json": "{"}, {"choice": []}, [None]]
    for value in values:
        body = {"max_tokens": 3, **BASES[path], field: value}
        response = server.client.post(path, json=body)
        if field == "model" and isinstance(value, str):
            assert response.status_code == 404
        elif response.status_code == 504:
            assert (field, value) == ("deadline_ms", 1), "it may really take longer"
        elif response.status_code != 200:
            assert response.status_code == 400, response.text
            assert response.json()["error"]["param"].startswith(field)
            assert len(response.content) < 1000


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(path=st.sampled_from([COMPLETIONS, CHAT]), data=st.data())
def test_random_bodies_are_never_a_5xx(server: RunningServer, path: str, data: st.DataObject) -> None:
    names = st.sampled_from(sorted(SCHEMAS[path].model_fields.keys()))
    fields = data.draw(st.dictionaries(names, json_values, max_size=4))
    body = json.dumps({**BASES[path], "max_tokens": 3, **fields}).encode("utf-8", "surrogatepass")
    response = server.client.post(path, content=body, headers={"content-type": "application/json"})
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code == 400:
        assert len(response.content) < 4096


def by_choice(request: object) -> object:
    """Say a letter for each choice; some letters score higher than others."""
    return cut(say("zdkcq"[request.choice] * 3, eos=True), request.params.max_tokens)


def test_best_of_returns_the_likeliest_best_first() -> None:
    with serving(FakeEngine(by_choice)) as server:
        reply = post(server, prompt=["x", "y"], best_of=5, n=2, seed=1)
        everything = post(server, prompt=["x", "y"], n=5, seed=1, logprobs=0)["choices"]
    assert server.engine.requests[0].params.logprobs == 0  # to rank them by, not to return

    def mean(text: str) -> float:
        ids = [*text.encode(), EOS]
        return sum(fake_logprobs(token, 1 + place, 0).logprob for place, token in enumerate(ids)) / len(ids)

    ranked = sorted((choice["text"] for choice in everything[:5]), key=mean, reverse=True)
    assert [choice["text"] for choice in reply["choices"]] == ranked[:2] * 2
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
    assert [choice["logprobs"] for choice in reply["choices"]] == [None] * 4
    assert reply["usage"]["completion_tokens"] == 2 * 5 * 4  # what was generated, not what was returned
    assert reply["usage"]["prompt_tokens"] == 2


def test_best_of_as_many_as_n_changes_nothing(server: RunningServer) -> None:
    plain = post(server, n=3, seed=1)["choices"]
    assert post(server, n=3, best_of=3, seed=1)["choices"] == plain
    assert server.engine.requests[-1].params.logprobs is None
    headers = {"accept": "text/event-stream"}
    body = {"prompt": "x", "n": 2, "best_of": 2, "stream": True}
    assert server.client.post(COMPLETIONS, json=body, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"best_of": 0}, "best_of"),
        ({"best_of": -1}, "best_of"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"best_of": 129}, "best_of"),
        ({"best_of": 10**30}, "best_of"),
        ({"best_of": 65, "prompt": ["x", "y"]}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": "2"}, "best_of"),
        ({"n": 129, "best_of": 129}, "n"),
    ],
)
def test_best_of_is_bounded(server: RunningServer, body: dict[str, object], param: str) -> None:
    num_requests = len(server.engine.requests)
    assert refusal(server, **body)["param"] == param
    assert len(server.engine.requests) == num_requests


@pytest.mark.parametrize(
    ("path", "body", "hint"),
    [
        (CHAT, {"best_of": 2}, "/v1/completions"),
        (CHAT, {"echo": True}, "/v1/completions"),
        (CHAT, {"guided_grammar": "a"}, "structured_outputs.grammar"),
        (COMPLETIONS, {"ebnf": "a"}, "structured_outputs.grammar"),
        (COMPLETIONS, {"repeat_penalty": 1.1}, "repetition_penalty"),
    ],
)
def test_fields_of_elsewhere_say_where_to_go(
    server: RunningServer, path: str, body: dict[str, object], hint: str
) -> None:
    error = refusal(server, path, **body)
    assert error["param"] == next(iter(body))
    assert hint in error["message"]


def test_fields_of_elsewhere_that_ask_for_nothing_are_passed_over(server: RunningServer) -> None:
    assert "warnings" not in post(server, CHAT, best_of=1, echo=False)
    assert "warnings" not in post(server, top_logprobs=0, repeat_penalty=1.0, guided_json=None)
