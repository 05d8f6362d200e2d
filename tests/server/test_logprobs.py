"""Logprobs in the shapes of the API, over a real socket, against a scripted engine."""

import json
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from engine.checkpoint import TokenizerData
from server.api import limits, token_budget
from server.text import Tokenizer
from tests.fakes import EOS, IM_START, FakeEngine, Script, cut, fake_logprobs, say
from tests.server.harness import RunningServer, serving, sse_data

TEXT = "é😀 STOP x"
HELLO = [{"role": "user", "content": "hé"}]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving(FakeEngine(lambda request: cut(say(TEXT), request.params.max_tokens))) as running:
        yield running


def complete(server: RunningServer, **body: object) -> dict[str, Any]:
    response = server.client.post("/v1/completions", json={"prompt": "ab", "max_tokens": 20, **body})
    assert response.status_code == 200, response.text
    return json.loads(response.content, parse_constant=pytest.fail)


def chat(server: RunningServer, **body: object) -> dict[str, Any]:
    fields = {"messages": HELLO, "max_tokens": 20, **body}
    response = server.client.post("/v1/chat/completions", json=fields)
    assert response.status_code == 200, response.text
    return json.loads(response.content, parse_constant=pytest.fail)


def streamed(server: RunningServer, path: str, **body: object) -> dict[int, dict[str, Any]]:
    """Put the chunks of each choice of a stream together."""
    whole: dict[int, dict[str, Any]] = {}
    for chunk in sse_data(server.client.post(path, json={"stream": True, **body}).text):
        for choice in chunk["choices"]:
            so_far = whole.setdefault(choice["index"], {"text": "", "logprobs": None, "finish_reason": None})
            so_far["text"] += choice.get("text") or choice.get("delta", {}).get("content", "")
            so_far["finish_reason"] = choice["finish_reason"] or so_far["finish_reason"]
            for name, items in (choice["logprobs"] or {}).items():
                so_far["logprobs"] = so_far["logprobs"] or {}
                so_far["logprobs"][name] = (so_far["logprobs"].get(name) or []) + (items or [])
            if "prompt_logprobs" in choice:
                assert "prompt_logprobs" not in so_far
                so_far["prompt_logprobs"] = choice["prompt_logprobs"]
    return whole


def join(tokens: list[str]) -> str:
    """Join the tokens of a completion as a client does: those that are no whole characters name bytes."""

    def to_bytes(token: str) -> bytes:
        if token.startswith("bytes:"):
            return bytes(int(byte, 16) for byte in re.findall(r"\\x([0-9a-f]{2})", token))
        return token.encode()

    return b"".join(map(to_bytes, tokens)).decode(errors="replace")


def test_a_completions_logprobs_have_openais_shape(server: RunningServer) -> None:
    choice = complete(server, logprobs=2, max_tokens=7)["choices"][0]
    assert choice["text"] == "é😀 "
    logprobs = choice["logprobs"]
    assert list(logprobs) == ["tokens", "token_logprobs", "top_logprobs", "text_offset"]
    names = [rf"bytes:\x{byte:02x}" for byte in "é😀".encode()] + [" "]
    assert logprobs["tokens"] == names
    assert logprobs["text_offset"] == [0, 0, 1, 1, 1, 1, 2]
    scores = [fake_logprobs(byte, 2 + place, 2) for place, byte in enumerate(b"\xc3\xa9\xf0\x9f\x98\x80 ")]
    assert logprobs["token_logprobs"] == [score.logprob for score in scores]
    assert logprobs["top_logprobs"][-1] == {"!": -0.5, '"': -0.5625, " ": scores[-1].logprob}


@pytest.mark.parametrize("num_top", [0, 1, 100])
def test_the_chosen_token_is_among_the_top_even_outside_of_them(server: RunningServer, num_top: int) -> None:
    logprobs = complete(server, logprobs=num_top)["choices"][0]["logprobs"]
    for token, logprob, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert top[token] == logprob
        assert len(top) == num_top + 1


def test_no_logprobs_unless_asked_for(server: RunningServer) -> None:
    assert complete(server)["choices"][0]["logprobs"] is None
    assert chat(server, logprobs=False, top_logprobs=0)["choices"][0]["logprobs"] is None
    assert server.engine.requests[-1].params.logprobs is None
    assert server.engine.requests[-1].params.prompt_logprobs is None


def test_a_chats_logprobs_have_openais_shape(server: RunningServer) -> None:
    choice = chat(server, logprobs=True, top_logprobs=1, max_tokens=3)["choices"][0]
    first, *_ = choice["logprobs"]["content"]
    assert choice["logprobs"]["refusal"] is None
    assert first["token"] == r"bytes:\xc3"
    assert first["bytes"] == [0xC3]
    assert first["logprob"] < 0
    assert first["top_logprobs"] == [{"token": r"bytes:\xc4", "logprob": -0.5, "bytes": [0xC4]}]
    without_top = chat(server, logprobs=True, max_tokens=3)["choices"][0]["logprobs"]["content"]
    assert [entry["top_logprobs"] for entry in without_top] == [[]] * 3


@pytest.mark.parametrize("stop", [None, "STOP", ["STOP x", "zz"], "é"])
@pytest.mark.parametrize("include_stop", [False, True])
def test_streamed_or_not_the_same_cut_at_the_same_token(
    server: RunningServer, stop: object, include_stop: bool
) -> None:
    body = {
        "max_tokens": 20,
        "n": 2,
        "seed": 3,
        "stop": stop,
        "include_stop_str_in_output": include_stop,
    }
    whole = complete(server, **body, logprobs=1)["choices"]
    chunks = streamed(server, "/v1/completions", prompt="ab", **body, logprobs=1)
    for choice in whole:
        again = chunks[choice["index"]]
        assert again["text"] == choice["text"] == join(choice["logprobs"]["tokens"])
        assert again["finish_reason"] == choice["finish_reason"]
        assert (again["logprobs"] or {name: [] for name in choice["logprobs"]}) == choice["logprobs"]
    answers = chat(server, **body, logprobs=True)["choices"]
    chat_chunks = streamed(server, "/v1/chat/completions", messages=HELLO, **body, logprobs=True)
    for answer in answers:
        content = answer["logprobs"]["content"]
        again = chat_chunks[answer["index"]]
        assert (again["logprobs"] or {"content": []})["content"] == content
        spelt = bytes(byte for entry in content for byte in entry["bytes"]).decode()
        assert again["text"] == answer["message"]["content"] == spelt


def test_a_token_that_the_cut_runs_through_is_listed() -> None:
    data = TokenizerData(tokens=("ab", "cd"), merges=(), special_token_ids=frozenset(), kind="char")
    engine = FakeEngine(lambda _: Script(steps=((0, 1),)), vocab_size=2)
    with serving(engine, tokenizer=Tokenizer(data)) as server:
        cut_off = complete(server, prompt=[0], stop="bc", logprobs=0)["choices"][0]
        assert cut_off["text"] == "a"
        assert cut_off["logprobs"]["tokens"] == ["ab"]
        kept = complete(server, prompt=[0], stop="bc", logprobs=0, include_stop_str_in_output=True)
        assert kept["choices"][0]["text"] == "abc"
        assert kept["choices"][0]["logprobs"]["tokens"] == ["ab", "cd"]


def test_the_end_token_has_a_logprob_when_it_is_kept() -> None:
    with serving(FakeEngine(lambda _: say("hi", eos=True))) as server:
        hidden = complete(server, logprobs=0, return_token_ids=True)["choices"][0]
        assert hidden["logprobs"]["tokens"] == ["h", "i"]
        assert hidden["token_ids"] == [*b"hi", EOS]
        kept = complete(server, logprobs=0, include_stop_str_in_output=True)["choices"][0]
        assert kept["text"] == "hi"  # special tokens are skipped, not forgotten
        assert kept["logprobs"]["tokens"] == ["h", "i", "<|endoftext|>"]
        assert kept["logprobs"]["text_offset"] == [0, 1, 2]


@pytest.mark.parametrize("prompt", ["aé😀b", list("aé😀b".encode()), "a"])
def test_echo_scores_the_prompt_first(server: RunningServer, prompt: str | list[int]) -> None:
    text = prompt if isinstance(prompt, str) else bytes(prompt).decode()
    choice = complete(server, prompt=prompt, echo=True, logprobs=1, max_tokens=0)["choices"][0]
    logprobs = choice["logprobs"]
    num_tokens = len(text.encode())
    assert choice["text"] == text == join(logprobs["tokens"])
    assert [len(items) for items in logprobs.values()] == [num_tokens] * 4
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert None not in logprobs["token_logprobs"][1:]
    assert choice["finish_reason"] == "length"
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert token.startswith("bytes:") or text[offset] == token
    answered = complete(server, prompt=prompt, echo=True, logprobs=1, max_tokens=6)["choices"][0]
    assert answered["text"] == text + "é😀" == join(answered["logprobs"]["tokens"])
    expected_offsets = [len(text) + place for place in (0, 0, 1, 1, 1, 1)]
    assert answered["logprobs"]["text_offset"] == logprobs["text_offset"] + expected_offsets


@pytest.mark.parametrize("max_tokens", [0, 6, 20])
def test_a_streamed_echo_says_the_same(server: RunningServer, max_tokens: int) -> None:
    body = {
        "prompt": ["aé", [0xF0, 0x9F], "c"],
        "n": 2,
        "seed": 1,
        "echo": True,
        "logprobs": 2,
        "prompt_logprobs": 1,
        "max_tokens": max_tokens,
        "stop": "STOP",
    }
    whole = complete(server, **body)["choices"]
    chunks = streamed(server, "/v1/completions", **body)
    assert len(whole) == 6
    for choice in whole:
        again = chunks[choice["index"]]
        for name in ("text", "logprobs", "prompt_logprobs", "finish_reason"):
            assert again[name] == choice[name]


def test_half_a_character_at_the_end_of_the_prompt_stays_apart(server: RunningServer) -> None:
    choice = complete(server, prompt=[0xC3], echo=True, logprobs=0, max_tokens=2)["choices"][0]
    assert choice["text"] == "\N{REPLACEMENT CHARACTER}é"
    assert choice["logprobs"]["text_offset"] == [0, 1, 1]
    assert complete(server, prompt=[0xC3], max_tokens=2)["choices"][0]["text"] == "é"


def test_special_tokens_of_a_prompt_are_named_and_stand_where_they_stood(server: RunningServer) -> None:
    shown = complete(server, prompt="<|im_start|>a", echo=True, logprobs=0, max_tokens=0)["choices"][0]
    assert shown["text"] == "<|im_start|>a" == join(shown["logprobs"]["tokens"])
    assert shown["logprobs"]["text_offset"] == [0, 12]
    ids = {"prompt": [IM_START, ord("a")], "echo": True, "logprobs": 0, "max_tokens": 0}
    hidden = complete(server, **ids)["choices"][0]
    assert hidden["text"] == "a"
    assert hidden["logprobs"]["tokens"] == ["<|im_start|>", "a"]
    assert hidden["logprobs"]["text_offset"] == [0, 0]
    again = complete(server, **ids, skip_special_tokens=False)["choices"][0]
    assert again["text"] == "<|im_start|>a"
    assert again["logprobs"]["text_offset"] == [0, 12]


def test_a_prompt_is_scored_once_for_all_its_choices(server: RunningServer) -> None:
    reply = complete(server, prompt=["ab", "cd"], n=3, echo=True, logprobs=1, prompt_logprobs=4)
    sent = server.engine.requests[-6:]
    assert [request.params.prompt_logprobs for request in sent] == [4, None, None] * 2
    assert [request.params.logprobs for request in sent] == [1] * 6
    for first in (0, 3):
        scores = [choice["prompt_logprobs"] for choice in reply["choices"][first : first + 3]]
        assert scores[0] == scores[1] == scores[2]
        assert len(scores[0]) == 2
    assert {len(top) for top in reply["choices"][5]["logprobs"]["top_logprobs"][1:]} == {2}


def test_choices_wait_for_the_scores_of_their_prompt() -> None:
    engine = FakeEngine(lambda request: cut(say("xyz"), request.params.max_tokens))
    engine.hold()
    with serving(engine) as server:

        def second_choice_first() -> None:
            engine._running.reverse()
            engine.step(3)

        engine.when_open(2, second_choice_first)
        body = {"prompt": "ab", "n": 2, "echo": True, "logprobs": 0, "max_tokens": 3}
        choices = streamed(server, "/v1/completions", **body)
    assert [choices[index]["text"] for index in (0, 1)] == ["abxyz"] * 2
    assert choices[0]["logprobs"] == choices[1]["logprobs"]


def test_prompt_logprobs_of_a_completion(server: RunningServer) -> None:
    choice = complete(server, prompt="aé", prompt_logprobs=1, max_tokens=0)["choices"][0]
    assert choice["text"] == ""
    assert choice["logprobs"] is None
    first, second, third = choice["prompt_logprobs"]
    assert first is None
    assert second == {
        "195": {"logprob": fake_logprobs(195, 1, 0).logprob, "decoded_token": r"bytes:\xc3"},
        "196": {"logprob": -0.5, "decoded_token": r"bytes:\xc4"},
    }
    assert list(third) == ["169", "170"]


def test_prompt_logprobs_of_a_chat(server: RunningServer) -> None:
    body = {"prompt_logprobs": 0, "return_token_ids": True, "n": 2}
    whole = chat(server, **body)
    assert len(whole["prompt_logprobs"]) == len(whole["prompt_token_ids"])
    assert whole["prompt_logprobs"][0] is None
    fields = {"messages": HELLO, "max_tokens": 20, "stream": True, **body}
    chunks = sse_data(server.client.post("/v1/chat/completions", json=fields).text)
    scored = [chunk["prompt_logprobs"] for chunk in chunks if "prompt_logprobs" in chunk]
    assert scored == [whole["prompt_logprobs"]]


def test_max_tokens_0_scores_and_generates_nothing(server: RunningServer) -> None:
    reply = complete(server, prompt=["ab", "c"], echo=True, max_tokens=0)
    assert [choice["text"] for choice in reply["choices"]] == ["ab", "c"]
    assert [choice["logprobs"] for choice in reply["choices"]] == [None, None]
    assert reply["usage"]["completion_tokens"] == 0
    assert chat(server, prompt_logprobs=0, max_tokens=0)["choices"][0]["message"]["content"] == ""
    chunks = streamed(server, "/v1/completions", prompt="ab", echo=True, max_tokens=0)
    assert chunks[0]["text"] == "ab"


def test_logprobs_mode_reaches_the_engine_and_is_no_use_alone(server: RunningServer) -> None:
    assert "warnings" not in complete(server, logprobs=0, logprobs_mode="processed")
    assert server.engine.requests[-1].params.processed_logprobs
    complete(server, logprobs=0, logprobs_mode="raw")
    assert not server.engine.requests[-1].params.processed_logprobs
    (warning,) = complete(server, logprobs_mode="processed")["warnings"]
    assert warning["param"] == "logprobs_mode"


def test_the_logprobs_of_one_reply_are_bounded(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_budget, "MAX_LOGPROB_ENTRIES", 60)

    def refusal(**body: object) -> str:
        response = server.client.post("/v1/completions", json={"prompt": "ab", **body})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "logprobs"
        return response.json()["error"]["message"]

    assert "10 tokens" in refusal(logprobs=2, n=2, max_tokens=11)
    complete(server, logprobs=2, n=2, max_tokens=10)
    complete(server, logprobs=2, n=2, max_tokens=None)
    assert server.engine.requests[-1].params.max_tokens == 10  # what fits, as of the context
    complete(
        server, logprobs=2, n=2, max_tokens=20, stream=False, best_of=None, prompt="ab"
    ) if False else None
    body = {"prompt": "ab", "logprobs": 2, "n": 2, "max_tokens": 20, "stream": True}
    assert server.client.post("/v1/completions", json=body).status_code == 200
    assert limits.MAX_LOGPROB_ENTRIES > 8192 * 101  # a whole context of the default model


def test_the_openai_sdk_reads_them(server: RunningServer) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
        answer = client.chat.completions.create(
            model="fake", messages=HELLO, logprobs=True, top_logprobs=2, max_tokens=9
        )
        completion = client.completions.create(model="fake", prompt="ab", logprobs=2, echo=True, max_tokens=9)
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content
    assert content is not None
    assert [len(entry.top_logprobs) for entry in content] == [2] * 9
    assert completion.choices[0].logprobs is not None
    assert completion.choices[0].logprobs.tokens is not None
    assert join(completion.choices[0].logprobs.tokens) == completion.choices[0].text
