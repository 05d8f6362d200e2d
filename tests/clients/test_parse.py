import dataclasses
import json
from typing import Any

import pytest
from draftline_client import (
    ChatMessage,
    CompletionLogprobs,
    CompletionTokensDetails,
    Delta,
    DraftlineUsage,
    PromptLogprob,
    PromptTokensDetails,
    ProtocolError,
    ReplyWarning,
    SpeculationUsage,
    TokenLogprob,
    TokenProvenance,
    TopLogprob,
    Usage,
    _parse,
)
from draftline_client._fields import Envelope, parse_object

HEAD = {"id": "cmpl-1", "created": 5, "model": "m"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
TOKENS = {"tokens": [1, 2], "count": 2, "max_model_len": 9}
COMPLETION: dict[str, Any] = {
    **HEAD,
    "object": "text_completion",
    "choices": [{"index": 0, "text": "Hi", "finish_reason": "stop", "logprobs": None}],
    "usage": USAGE,
}
CHAT: dict[str, Any] = {
    **HEAD,
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
    "usage": USAGE,
}


def fields(value: object) -> Any:
    return parse_object(json.dumps(value), envelope=Envelope(request_id="req-7"))


def test_a_completion_is_read_field_by_field() -> None:
    completion = _parse.parse_completion(fields(COMPLETION))
    assert (completion.id, completion.created, completion.model) == ("cmpl-1", 5, "m")
    assert completion.request_id == "req-7"
    choice = completion.choices[0]
    assert (choice.index, choice.text, choice.finish_reason, choice.logprobs) == (0, "Hi", "stop", None)
    assert completion.usage == Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5)
    assert (completion.warnings, completion.extra, choice.extra) == ((), {}, {})


def test_records_are_frozen_and_hashable() -> None:
    completion = _parse.parse_completion(fields({**COMPLETION, "newer": {"a": []}}))
    assert hash(completion) == hash(_parse.parse_completion(fields(COMPLETION)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        completion.choices[0].text = "no"  # type: ignore[misc]  # the point of the test


def test_usage_details_warnings_and_token_ids() -> None:
    details = {
        "prompt_tokens_details": {"cached_tokens": 16},
        "completion_tokens_details": {"accepted_prediction_tokens": 4, "rejected_prediction_tokens": 1},
    }
    warning = {"type": "unknown_field", "param": "top_kk", "message": "not a field"}
    choice = {"index": 0, "text": "", "seed": -7, "token_ids": [1, 2], "prompt_token_ids": [3]}
    reply = {
        **COMPLETION,
        "choices": [choice],
        "usage": {**USAGE, **details},
        "warnings": [warning, {"message": "m"}],
    }
    completion = _parse.parse_completion(fields(reply))
    assert completion.usage.prompt_tokens_details == PromptTokensDetails(cached_tokens=16)
    assert completion.usage.completion_tokens_details == CompletionTokensDetails(
        accepted_prediction_tokens=4, rejected_prediction_tokens=1
    )
    assert completion.warnings == (
        ReplyWarning(type="unknown_field", param="top_kk", message="not a field"),
        ReplyWarning(message="m"),
    )
    assert (completion.choices[0].token_ids, completion.choices[0].prompt_token_ids) == ((1, 2), (3,))
    assert (completion.choices[0].finish_reason, completion.choices[0].seed) == (None, -7)


def test_unknown_fields_are_kept_at_every_level() -> None:
    reply = {
        **CHAT,
        "newer": 1,
        "choices": [
            {"index": 0, "seen": True, "message": {"role": "assistant", "content": None, "audio": [1]}}
        ],
        "usage": {**USAGE, "watts": 2, "prompt_tokens_details": {"audio_tokens": 0}},
    }
    answer = _parse.parse_chat_completion(fields(reply))
    assert answer.extra == {"newer": 1}
    assert answer.choices[0].extra == {"seen": True}
    assert answer.choices[0].message == ChatMessage(role="assistant", extra={"audio": [1]})
    assert answer.usage.extra == {"watts": 2}
    assert answer.usage.prompt_tokens_details == PromptTokensDetails(extra={"audio_tokens": 0})


def test_chunks() -> None:
    usage_only = _parse.parse_completion_chunk(fields({**COMPLETION, "choices": []}))
    assert (usage_only.choices, usage_only.usage and usage_only.usage.total_tokens) == ((), 5)
    no_usage = _parse.parse_completion_chunk(fields({**COMPLETION, "usage": None}))
    assert no_usage.usage is None
    first = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    chunk = _parse.parse_chat_completion_chunk(fields({**HEAD, "choices": [first], "prompt_token_ids": [1]}))
    assert chunk.choices[0].delta == Delta(role="assistant", content="")
    assert chunk.prompt_token_ids == (1,)
    last = {"index": 0, "delta": {}, "finish_reason": "length"}
    chunk = _parse.parse_chat_completion_chunk(fields({**HEAD, "choices": [last]}))
    assert (chunk.choices[0].delta, chunk.choices[0].finish_reason) == (Delta(), "length")


def test_logprobs_of_a_completion() -> None:
    logprobs = {
        "tokens": ["a", "b"],
        "token_logprobs": [None, -1],
        "top_logprobs": [None, {"b": -1.0}],
        "text_offset": [0, 1],
    }
    reply = {**COMPLETION, "choices": [{"index": 0, "text": "ab", "logprobs": logprobs}]}
    parsed = _parse.parse_completion(fields(reply)).choices[0].logprobs
    assert parsed is not None
    assert (parsed.tokens, parsed.token_logprobs) == (("a", "b"), (None, -1))
    assert (parsed.top_logprobs, parsed.text_offset) == ((None, {"b": -1.0}), (0, 1))
    choice = {"index": 0, "text": "", "logprobs": {"tokens": [], "token_logprobs": [], "top_logprobs": None}}
    parsed = _parse.parse_completion(fields({**COMPLETION, "choices": [choice]})).choices[0].logprobs
    assert parsed == CompletionLogprobs(tokens=(), token_logprobs=())


def test_logprobs_of_an_answer() -> None:
    top = {"token": "b", "logprob": -2.5, "bytes": None}
    content = [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [top]}]
    choice = {**CHAT["choices"][0], "logprobs": {"content": content, "refusal": None}}
    parsed = _parse.parse_chat_completion(fields({**CHAT, "choices": [choice]})).choices[0].logprobs
    assert parsed is not None
    expected = TokenLogprob(
        token="a", logprob=-0.5, bytes=(97,), top_logprobs=(TopLogprob(token="b", logprob=-2.5),)
    )
    assert parsed.content == (expected,)


def test_prompt_logprobs() -> None:
    scores = [
        None,
        {
            "65": {"logprob": -1, "decoded_token": "A", "rank": 2},
            "7": {"logprob": -0.5, "decoded_token": "b"},
        },
    ]
    choice = {"index": 0, "text": "", "prompt_logprobs": scores}
    parsed = _parse.parse_completion(fields({**COMPLETION, "choices": [choice]})).choices[0].prompt_logprobs
    own = PromptLogprob(logprob=-1, decoded_token="A", extra={"rank": 2})
    expected = (None, {65: own, 7: PromptLogprob(logprob=-0.5, decoded_token="b")})
    assert parsed == expected
    assert (
        _parse.parse_chat_completion(fields({**CHAT, "prompt_logprobs": scores})).prompt_logprobs == expected
    )
    chunk = _parse.parse_chat_completion_chunk(fields({**CHAT, "choices": [], "prompt_logprobs": scores}))
    assert chunk.prompt_logprobs == expected
    assert _parse.parse_completion(fields(COMPLETION)).choices[0].prompt_logprobs is None


@pytest.mark.parametrize(
    ("scores", "field"),
    [
        ({}, "prompt_logprobs"),
        ([1], "prompt_logprobs[0]"),
        ([None, {"x": {"logprob": 0, "decoded_token": ""}}], "prompt_logprobs[1].x"),
        ([{"5": None}], "prompt_logprobs[0].5"),
        ([{"5": {"logprob": None, "decoded_token": ""}}], "prompt_logprobs[0].5.logprob"),
    ],
)
def test_misshapen_prompt_logprobs_are_named(scores: object, field: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        _parse.parse_chat_completion(fields({**CHAT, "prompt_logprobs": scores}))
    assert caught.value.field == field


def test_models_and_tokens() -> None:
    model = {"id": "m", "object": "model", "created": 1, "owned_by": "d", "max_model_len": 2048, "root": "r"}
    models = _parse.parse_model_list(fields({"object": "list", "data": [model]}))
    assert [item.id for item in models] == ["m"]
    assert (len(models), models.data[0].max_model_len, models.data[0].extra) == (1, 2048, {"root": "r"})
    tokenization = _parse.parse_tokenization(fields(TOKENS))
    assert (tokenization.token_ids, tokenization.count, tokenization.max_model_len) == ((1, 2), 2, 9)
    assert tokenization.token_strs is None
    assert _parse.parse_tokenization(fields({**TOKENS, "token_strs": ["a", "b"]})).token_strs == ("a", "b")


def without(record: dict[str, Any], *path: Any) -> Any:
    copy = json.loads(json.dumps(record))
    inner = copy
    for step in path[:-1]:
        inner = inner[step]
    del inner[path[-1]]
    return copy


@pytest.mark.parametrize(
    ("reply", "field"),
    [
        (without(COMPLETION, "id"), "id"),
        (without(COMPLETION, "choices"), "choices"),
        (without(COMPLETION, "usage"), "usage"),
        (without(COMPLETION, "usage", "total_tokens"), "usage.total_tokens"),
        (without(COMPLETION, "choices", 0, "text"), "choices[0].text"),
        ({**COMPLETION, "created": None}, "created"),
        ({**COMPLETION, "created": "5"}, "created"),
        ({**COMPLETION, "created": True}, "created"),
        ({**COMPLETION, "created": 5.5}, "created"),
        ({**COMPLETION, "choices": {}}, "choices"),
        ({**COMPLETION, "choices": ["x"]}, "choices[0]"),
        ({**COMPLETION, "choices": [None]}, "choices[0]"),
        (
            {**COMPLETION, "choices": [{"index": 0, "text": "", "token_ids": [1, "2"]}]},
            "choices[0].token_ids[1]",
        ),
        ({**COMPLETION, "system_fingerprint": 1}, "system_fingerprint"),
        ({**COMPLETION, "warnings": [{}]}, "warnings[0].message"),
    ],
)
def test_a_missing_or_misshapen_field_is_named(reply: object, field: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        _parse.parse_completion(fields(reply))
    assert caught.value.field == field
    assert caught.value.request_id == "req-7"
    assert str(caught.value).endswith(f"at {field} (request id req-7)")


@pytest.mark.parametrize(
    "text", ["", "<html>", "{", "[" * 200_000, '{"a": ' * 200_000, "1" * 10_000, b"\xff", "\x00"]
)
def test_what_is_not_json_is_a_short_error(text: str | bytes) -> None:
    with pytest.raises(ProtocolError, match="not JSON") as caught:
        parse_object(text)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", ["[]", "null", "1", '"a"', "true"])
def test_json_that_is_no_object_is_an_error(text: str) -> None:
    with pytest.raises(ProtocolError, match="in place of an object at its top level"):
        parse_object(text)


def test_speculation_in_usage_and_provenance() -> None:
    counts = {
        "drafted": 5,
        "accepted": 3,
        "verification_steps": 2,
        "mean_accepted_length": 2.5,
        "source": "ngram",
        "estimated_speedup": 1.5,
    }
    tokens = [{"source": "ngram", "step": 7}, {"source": "target", "step": 8, "newer": 1}]
    reply = {
        **COMPLETION,
        "choices": [{"index": 0, "text": "ab", "provenance": tokens}],
        "usage": {**USAGE, "draftline": {"speculation": counts, "newer": 2}},
    }
    completion = _parse.parse_completion(fields(reply))
    speculation = SpeculationUsage(**counts)
    assert completion.usage.draftline == DraftlineUsage(speculation=speculation, extra={"newer": 2})
    assert completion.choices[0].provenance == (
        TokenProvenance(source="ngram", step=7),
        TokenProvenance(source="target", step=8, extra={"newer": 1}),
    )
    off = {**counts, "drafted": 0, "mean_accepted_length": None, "source": None}
    chunk = {**COMPLETION, "choices": [], "usage": {**USAGE, "draftline": {"speculation": off}}}
    parsed = _parse.parse_completion_chunk(fields(chunk))
    assert parsed.usage is not None
    assert parsed.usage.draftline is not None
    assert parsed.usage.draftline.speculation == SpeculationUsage(
        drafted=0, accepted=3, verification_steps=2, estimated_speedup=1.5
    )
    chat = {**CHAT, "choices": [{"index": 0, "message": {"role": "a"}, "provenance": tokens[:1]}]}
    assert _parse.parse_chat_completion(fields(chat)).choices[0].provenance[0].step == 7
