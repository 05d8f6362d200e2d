import json
from collections import OrderedDict
from types import MappingProxyType
from typing import Any

import pytest
from draftline_client import NOT_GIVEN, ChatMessage, _calls, _parse
from hypothesis import given
from hypothesis import strategies as st

HELLO = [{"role": "user", "content": "Hello"}]


def completion_body(prompt: Any = "p", *, stream: bool = False, **given: Any) -> Any:
    options: Any = given
    parse = _parse.parse_completion
    return json.loads(_calls.completion_call(prompt, options, parse, stream=stream).content or b"")


def chat_body(messages: Any, **given: Any) -> Any:
    options: Any = given
    parse = _parse.parse_chat_completion
    return json.loads(_calls.chat_call(messages, options, parse, stream=False).content or b"")


@pytest.mark.parametrize(
    ("prompt", "sent"),
    [
        ("text", "text"),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [1, 2]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        ((1, 2), [1, 2]),
        (range(3), [0, 1, 2]),
        ([range(2), (5,)], [[0, 1], [5]]),
    ],
)
def test_every_form_of_prompt_is_sent(prompt: object, sent: object) -> None:
    assert completion_body(prompt) == {"prompt": sent}


def test_what_is_not_given_is_not_sent_and_none_is_null() -> None:
    assert completion_body(temperature=NOT_GIVEN, seed=None, top_k=0) == {
        "prompt": "p",
        "seed": None,
        "top_k": 0,
    }


def test_stream_is_sent_only_when_it_is_asked_for() -> None:
    streamed = {"prompt": "p", "stream_options": {"include_usage": True}, "stream": True}
    assert completion_body(stream=True) == streamed
    assert completion_body(stream=False) == {"prompt": "p"}


def test_a_stream_asks_for_usage_unless_told_otherwise() -> None:
    for said in (None, {}, {"include_usage": False}):
        assert completion_body(stream=True, stream_options=said)["stream_options"] == said
    assert completion_body(stream=True, stream_options=NOT_GIVEN)["stream_options"] == {"include_usage": True}
    assert completion_body(stream=True, extra_body={"stream_options": {"a": 1}})["stream_options"] == {"a": 1}
    assert "stream_options" not in completion_body(stream=False)


def test_every_option_arrives_under_its_own_name() -> None:
    options: dict[str, Any] = {
        "model": "m",
        "max_tokens": 3,
        "max_completion_tokens": 3,
        "min_tokens": 1,
        "n": 2,
        "seed": 7,
        "temperature": 0.5,
        "top_k": 4,
        "top_p": 0.9,
        "min_p": 0.1,
        "typical_p": 0.9,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.1,
        "logit_bias": {"5": -1.0},
        "allowed_token_ids": [1, 2],
        "bad_words": ["no"],
        "response_format": {"type": "text"},
        "structured_outputs": {"regex": "a"},
        "stop": ["x"],
        "stop_token_ids": [2],
        "include_stop_str_in_output": True,
        "ignore_eos": False,
        "skip_special_tokens": False,
        "stream_options": {"include_usage": True},
        "user": "u",
        "priority": 1,
        "deadline_ms": 100,
        "speculation": {"mode": "ngram", "k": 4},
        "cache_salt": "s",
        "cache_explain": True,
        "return_token_ids": True,
        "return_provenance": True,
        "prompt_logprobs": 1,
        "logprobs_mode": "processed",
        "echo": True,
        "logprobs": 2,
        "best_of": 2,
        "suffix": "end",
    }
    assert completion_body(**options) == {"prompt": "p", **options}


def test_token_ids_as_keys_of_logit_bias_become_strings() -> None:
    assert completion_body(logit_bias={5: 1.5})["logit_bias"] == {"5": 1.5}


def test_any_kind_of_collection_is_sent() -> None:
    body = completion_body(stop=("a", "b"), logit_bias=MappingProxyType({"1": 2.0}), stop_token_ids={3})
    assert (body["stop"], body["logit_bias"], body["stop_token_ids"]) == (["a", "b"], {"1": 2.0}, [3])


def test_an_answer_can_be_passed_back_as_a_message() -> None:
    answer = ChatMessage(role="assistant", content="Hi", extra={"tool_calls": []})
    sent = chat_body([*HELLO, answer, OrderedDict(role="user", content="And?")])["messages"]
    assert sent == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi", "tool_calls": []},
        {"role": "user", "content": "And?"},
    ]


def test_chat_options_are_sent() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = chat_body(
        HELLO, max_completion_tokens=5, logprobs=True, top_logprobs=2, tools=tools, tool_choice="auto"
    )
    assert body == {
        "messages": HELLO,
        "max_completion_tokens": 5,
        "logprobs": True,
        "top_logprobs": 2,
        "tools": tools,
        "tool_choice": "auto",
    }


def test_a_misspelt_option_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"'temprature'.*extra_body"):
        completion_body(temprature=1.0)
    with pytest.raises(TypeError, match="'echo'"):
        chat_body(HELLO, echo=True)
    with pytest.raises(TypeError, match="'seed'"):
        _calls.version_call({"seed": 1})  # type: ignore[typeddict-unknown-key]  # the point of the test


def test_extra_body_adds_fields_and_may_not_repeat_one() -> None:
    assert completion_body(extra_body={"new_field": [1]}) == {"prompt": "p", "new_field": [1]}
    for repeated in ("prompt", "seed", "stream"):
        with pytest.raises(TypeError, match=f"'{repeated}'"):
            completion_body(seed=1, extra_body={repeated: 1})
    with pytest.raises(TypeError, match="extra_body"):
        _calls.version_call({"extra_body": {"a": 1}})


@pytest.mark.parametrize(
    ("value", "error"),
    [(float("nan"), ValueError), (float("inf"), ValueError), (b"bytes", TypeError), (object(), TypeError)],
)
def test_what_json_cannot_hold_is_refused_by_name(value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="temperature cannot be sent as JSON"):
        completion_body(temperature=value)


def test_a_lone_surrogate_and_a_circle_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="prompt cannot be sent"):
        completion_body("\ud800")
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(ValueError, match="stop cannot be sent"):
        completion_body(stop=circle)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_the_encoding(text: str) -> None:
    assert completion_body(text) == {"prompt": text}


def test_tokenize_takes_text_or_messages() -> None:
    assert json.loads(_calls.tokenize_call("t", NOT_GIVEN, {}).content or b"") == {"prompt": "t"}
    call = _calls.tokenize_call(NOT_GIVEN, HELLO, {"add_special_tokens": False})
    assert json.loads(call.content or b"") == {"messages": HELLO, "add_special_tokens": False}
    for text, messages in ((NOT_GIVEN, NOT_GIVEN), ("t", HELLO)):
        with pytest.raises(TypeError, match="either text or messages"):
            _calls.tokenize_call(text, messages, {})


def test_a_model_name_is_one_part_of_the_path() -> None:
    assert _calls.model_call("org/model ü?", {}).path == "/v1/models/org%2Fmodel%20%C3%BC%3F"
    with pytest.raises(ValueError, match="empty"):
        _calls.model_call("", {})


def test_only_calls_without_a_generation_are_repeatable() -> None:
    generations = [
        _calls.completion_call("p", {}, _parse.parse_completion, stream=False),
        _calls.chat_call(HELLO, {}, _parse.parse_chat_completion, stream=False),
    ]
    others = [
        _calls.tokenize_call("t", NOT_GIVEN, {}),
        _calls.detokenize_call([1], {}),
        _calls.version_call({}),
    ]
    assert not any(call.is_repeatable for call in generations)
    assert all(call.is_repeatable for call in others)
