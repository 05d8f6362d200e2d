"""How far the cache had a prompt, through HTTP, on a small real model: in usage and by lookup."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import httpx
import pytest

from engine.interface.config import EngineConfig
from engine.loading.loader import load_engine
from server.serving import ServedModel
from server.text import ChatTemplate, Tokenizer
from tests.drafters import byte_checkpoint
from tests.fakes import CHAT_TEMPLATE, FakeEngine
from tests.server.harness import serving, serving_model, sse_data

COMPLETIONS, CHAT, LOOKUP = "/v1/completions", "/v1/chat/completions", "/v1/cache/lookup"
KEYS = {"one": {"authorization": "Bearer key-of-one"}, "two": {"authorization": "Bearer key-of-two"}}
NEVER = {"reason": "never_seen", "position": 0}
_numbers = count()


@pytest.fixture(scope="module")
def api() -> Iterator[httpx.Client]:
    checkpoint = byte_checkpoint()
    config = EngineConfig(device="cpu", dtype="float32", kv_cache_memory=2**24)
    engine = load_engine(checkpoint, config)
    model = ServedModel(
        name="tiny",
        engine=engine,
        tokenizer=Tokenizer(checkpoint.tokenizer),
        chat_template=ChatTemplate(CHAT_TEMPLATE, bos_token="", eos_token=""),
        max_token_bytes=13,
    )
    with serving_model(model, keys=("key-of-one", "key-of-two")) as client:
        yield client
    engine.close()


def fresh() -> str:
    """A text that no other test has a prefix of."""
    return f"{next(_numbers):03}" + "the sea is wide and the boat is small " * 3


def post(api: httpx.Client, path: str, *, key: str = "one", **body: Any) -> Any:
    response = api.post(path, json=body, headers=KEYS[key])
    assert response.status_code == 200, response.text
    return response


def cache_of(api: httpx.Client, prompt: Any, **body: Any) -> Any:
    fields = {"prompt": prompt, "max_tokens": 2, "cache_explain": True, **body}
    return post(api, COMPLETIONS, **fields).json()["usage"]["draftline"]["cache"]


def look_up(api: httpx.Client, **body: Any) -> Any:
    found = post(api, LOOKUP, **body).json()
    assert found.pop("object") == "draftline.cache_lookup"
    assert found.pop("model") == "tiny"
    return found


def test_usage_says_what_was_cached_and_both_tokens_where_it_ends(api: httpx.Client) -> None:
    text, salt = fresh()[:60], {"cache_salt": "of this test"}
    assert cache_of(api, text, **salt) == {
        "prompt_tokens": 60,
        "cached_tokens": 0,
        "block_size": 16,
        "end": NEVER,
    }
    assert cache_of(api, text, **salt)["end"] == {"reason": "end_of_prompt", "position": 59}
    other = text[:37] + "X" + text[38:]
    reply = post(api, COMPLETIONS, prompt=other, max_tokens=1, cache_explain=True, **salt).json()
    assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] == 37
    assert reply["usage"]["draftline"]["cache"]["end"] == {
        "reason": "different_token",
        "position": 37,
        "cached": _token(text[37]),
        "prompt": _token("X"),
    }
    plain = post(api, COMPLETIONS, prompt=text, max_tokens=1).json()["usage"]
    assert list(plain["draftline"]) == ["speculation"]


def _token(text: str) -> dict[str, object]:
    return {"token_id": ord(text), "text": text}


def test_a_token_that_is_no_whole_character_is_named_by_its_bytes(api: httpx.Client) -> None:
    text = fresh()
    cache_of(api, text + "é and more")
    end = cache_of(api, text + "è and more")["end"]
    assert end["cached"] == {"token_id": 0xA9, "text": "bytes:\\xa9"}
    assert end["prompt"] == {"token_id": 0xA8, "text": "bytes:\\xa8"}


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, "/v1/responses", "/v1/messages"])
def test_every_endpoint_says_the_same_streamed_or_not(api: httpx.Client, path: str) -> None:
    text = fresh()
    body: dict[str, Any] = {"messages": [{"role": "user", "content": text}]}
    if path == COMPLETIONS:
        body = {"prompt": text}
    elif path == "/v1/responses":
        body = {"input": text}
    body |= {"cache_explain": True, "max_output_tokens" if "input" in body else "max_tokens": 2, "seed": 1}
    post(api, path, **body)
    whole = post(api, path, **body).json()["usage"]["draftline"]["cache"]
    assert whole["end"] == {"reason": "end_of_prompt", "position": whole["prompt_tokens"] - 1}
    options = {"stream_options": {"include_usage": True}} if path in (COMPLETIONS, CHAT) else {}
    streamed = post(api, path, **body, **options, stream=True).text
    if options:
        assert sse_data(streamed)[-1]["usage"]["draftline"]["cache"] == whole
    else:
        assert '"reason":"end_of_prompt"' in streamed


def test_choices_share_one_and_lists_of_prompts_have_one_each(api: httpx.Client) -> None:
    first, second = fresh(), fresh()
    assert cache_of(api, first, n=3, best_of=4)["end"]["reason"] != "end_of_prompt"
    both = cache_of(api, [first, second, first[:20] + "#" + second], n=2)
    assert both[0]["end"]["reason"] == "end_of_prompt"
    assert both[1]["cached_tokens"] < 5
    assert both[2]["end"] == {
        "reason": "different_token",
        "position": 20,
        "cached": _token(first[20]),
        "prompt": _token("#"),
    }


def test_a_prompt_that_is_scored_takes_nothing(api: httpx.Client) -> None:
    text = fresh()
    cache_of(api, text)
    assert cache_of(api, text, prompt_logprobs=1)["end"] == {"reason": "not_used", "position": 0}
    assert cache_of(api, text, echo=True, logprobs=1, max_tokens=0)["end"]["reason"] == "not_used"


def test_keys_and_salts_never_learn_of_each_other(api: httpx.Client) -> None:
    text = "§" + fresh()
    cache_of(api, text)
    cache_of(api, text, cache_salt="s")
    for who in ({"key": "two"}, {"cache_salt": "t"}, {"key": "two", "cache_salt": "s"}):
        assert look_up(api, prompt=text, **who)["end"] == NEVER
        assert look_up(api, prompt=text[:9] + "X" + text[10:], **who)["end"] == NEVER
        assert cache_of(api, text, **who)["end"] == NEVER
        assert look_up(api, prompt=text, **who)["end"]["reason"] == "end_of_prompt"
    assert look_up(api, prompt=text, cache_salt="s")["end"]["reason"] == "end_of_prompt"


def test_a_lookup_says_what_a_request_would_and_changes_nothing(api: httpx.Client) -> None:
    text = fresh()
    before = look_up(api, prompt=text)
    metrics = api.get("/metrics", headers=KEYS["one"]).text
    assert look_up(api, prompt=text) == before
    for name in ("draftline_prefix_cache_queries_total", "draftline_generation_tokens_total"):
        assert _sample(api.get("/metrics", headers=KEYS["one"]).text, name) == _sample(metrics, name)
    assert cache_of(api, text) == before
    other = text[:40] + "X" + text[41:]
    assert look_up(api, prompt=list(other.encode())) == look_up(api, prompt=other) == cache_of(api, other)


def _sample(metrics: str, name: str) -> str:
    return next(line for line in metrics.splitlines() if line.startswith(name))


def test_a_chat_is_looked_up_as_it_would_be_rendered(api: httpx.Client) -> None:
    messages = [{"role": "user", "content": fresh()[:20]}]
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    for body in ({"messages": messages}, {"messages": messages, "tools": [tool], "tool_choice": "auto"}):
        before = look_up(api, **body)
        reply = post(api, CHAT, **body, max_tokens=1, cache_explain=True).json()
        assert reply["usage"]["draftline"]["cache"] == before
        assert look_up(api, **body)["end"]["reason"] == "end_of_prompt"


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "prompt", "either prompt or messages"),
        ({"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "prompt", "either"),
        ({"prompt": ["x"]}, "prompt[0]", "must be a token id"),
        ({"prompt": 3}, "prompt", "must be a string or a list of token ids, got 3"),
        ({"prompt": []}, "prompt", "must not be empty"),
        ({"prompt": [999]}, "prompt", "token ids must be between 0 and"),
        ({"prompt": [1] * 600}, "prompt", "maximum context length is 512 tokens; the prompt has 600"),
        ({"prompt": "x", "cache_salt": "x" * 300}, "cache_salt", "must have at most 256 characters"),
        ({"prompt": "x", "model": "other"}, "model", "does not exist"),
        ({"messages": []}, "messages", "1 to 4096 entries"),
    ],
)
def test_what_cannot_be_looked_up_is_refused_by_name(
    api: httpx.Client, body: dict[str, Any], param: str, message: str
) -> None:
    response = api.post(LOOKUP, json=body, headers=KEYS["one"])
    assert response.status_code == (404 if param == "model" else 400)
    assert response.json()["error"]["param"] == param
    assert message in response.json()["error"]["message"]


def test_unknown_fields_are_warnings_and_errors_if_strict(api: httpx.Client) -> None:
    found = post(api, LOOKUP, prompt="x", temprature=1).json()
    assert [warning["param"] for warning in found["warnings"]] == ["temprature"]
    strict = {**KEYS["one"], "x-strict": "1"}
    assert api.post(LOOKUP, json={"prompt": "x", "a": 1}, headers=strict).status_code == 400
    refused = api.post(COMPLETIONS, json={"prompt": "x", "cache_explain": "yes"}, headers=KEYS["one"])
    assert refused.json()["error"]["param"] == "cache_explain"


def test_an_engine_with_no_time_or_dead_is_said_so() -> None:
    engine = FakeEngine(max_open=0)
    with serving(engine) as server:
        refused = server.client.post(LOOKUP, json={"prompt": "x"})
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        engine.die()
        assert server.client.post(LOOKUP, json={"prompt": "x"}).status_code == 503
