"""POST /v1/completions over a real socket, against a scripted engine."""

from collections.abc import Iterator

import httpx
import pytest

from tests.fakes import EOS, FakeEngine, cut, say
from tests.server.harness import RunningServer, serving, sse_data


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving(FakeEngine()) as running:
        yield running


def post(server: RunningServer, path: str = "/v1/completions", **body: object) -> httpx.Response:
    return server.client.post(path, json=body)


def stream_text(response: httpx.Response) -> dict[int, str]:
    texts: dict[int, str] = {}
    for chunk in sse_data(response.text):
        for choice in chunk["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return texts


def test_a_completion_has_openais_shape(server: RunningServer) -> None:
    reply = post(server, prompt="abc", seed=7, max_tokens=4).json()
    assert reply.pop("id").startswith("cmpl-")
    assert isinstance(reply.pop("created"), int)
    assert reply == {
        "object": "text_completion",
        "model": "fake",
        "system_fingerprint": "fp_fake",
        "choices": [{"index": 0, "text": "c0s7", "logprobs": None, "finish_reason": "length", "seed": 7}],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 4,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
            "draftline": {
                "speculation": {
                    "drafted": 0,
                    "accepted": 0,
                    "verification_steps": 0,
                    "mean_accepted_length": None,
                    "source": None,
                    "estimated_speedup": 1.0,
                }
            },
        },
    }


def test_max_tokens_defaults_to_16_and_null_is_the_default(server: RunningServer) -> None:
    post(server, prompt="abc", max_tokens=None, temperature=None, stop=None, stream=None, n=None, user=None)
    assert server.engine.requests[-1].params.max_tokens == 16


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", [(97, 98)]),
        (["ab", "c"], [(97, 98), (99,)]),
        ([5, 6], [(5, 6)]),
        ([[5], [6, 7]], [(5,), (6, 7)]),
        (["ab", [7]], [(97, 98), (7,)]),
        ("<|im_end|>", [(258,)]),
    ],
)
def test_every_form_of_prompt_reaches_the_engine(
    server: RunningServer, prompt: object, expected: list[tuple[int, ...]]
) -> None:
    reply = post(server, prompt=prompt, seed=1).json()
    sent = server.engine.requests[-len(expected) :]
    assert [request.prompt_token_ids for request in sent] == expected
    assert len(reply["choices"]) == len(expected)
    assert reply["usage"]["prompt_tokens"] == sum(map(len, expected))


def test_choices_are_numbered_prompt_by_prompt_and_prompts_count_once(server: RunningServer) -> None:
    reply = post(server, prompt=["ab", "cd"], n=2, seed=9, max_tokens=4).json()
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in reply["choices"]] == ["c0s9", "c1s9", "c0s9", "c1s9"]
    assert reply["usage"]["prompt_tokens"] == 4
    assert reply["usage"]["completion_tokens"] == 16


def test_a_drawn_seed_is_reported_and_reproduces_the_answer(server: RunningServer) -> None:
    first = post(server, prompt=["a", "a"], max_tokens=40).json()["choices"]
    assert first[0]["seed"] != first[1]["seed"]  # the same prompt twice is two different questions
    again = post(server, prompt="a", max_tokens=40, seed=first[1]["seed"]).json()["choices"][0]
    assert again["text"] == first[1]["text"]
    assert 0 <= first[0]["seed"] < 2**53  # exact in JavaScript


def test_a_stream_says_what_the_whole_answer_says(server: RunningServer) -> None:
    body = {"prompt": ["ab", "cd"], "n": 2, "seed": 9, "max_tokens": 6}
    whole = post(server, **body).json()
    streamed = post(server, **body, stream=True)
    assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert stream_text(streamed) == {choice["index"]: choice["text"] for choice in whole["choices"]}


def test_the_finish_reason_comes_alone_and_usage_last(server: RunningServer) -> None:
    response = post(
        server, prompt="ab", seed=1, max_tokens=4, stream=True, stream_options={"include_usage": True}
    )
    *content, finish, usage = sse_data(response.text)
    assert [chunk["choices"][0]["text"] for chunk in content] == list("c0s1")
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in content)
    assert finish["choices"] == [
        {"index": 0, "text": "", "logprobs": None, "finish_reason": "length", "seed": 1}
    ]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 4
    assert all(chunk["usage"] is None for chunk in (*content, finish))
    assert len({chunk["id"] for chunk in (*content, finish, usage)}) == 1


def test_without_include_usage_no_chunk_has_usage(server: RunningServer) -> None:
    chunks = sse_data(post(server, prompt="ab", stream=True).text)
    assert all("usage" not in chunk for chunk in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_echo_repeats_the_clients_own_words(server: RunningServer) -> None:
    body = {"prompt": ["hé", [104, 105]], "echo": True, "seed": 1, "max_tokens": 2}
    whole = [choice["text"] for choice in post(server, **body).json()["choices"]]
    assert whole == ["héc0", "hic0"]
    assert stream_text(post(server, **body, stream=True)) == dict(enumerate(whole))


def test_return_token_ids(server: RunningServer) -> None:
    body = {"prompt": "ab", "n": 2, "seed": 1, "max_tokens": 3, "return_token_ids": True}
    choices = post(server, **body).json()["choices"]
    assert [choice["prompt_token_ids"] for choice in choices] == [[97, 98]] * 2
    assert [bytes(choice["token_ids"]).decode() for choice in choices] == ["c0s", "c1s"]
    chunks = sse_data(post(server, **body, stream=True).text)
    opening = [chunk["choices"][0] for chunk in chunks if "prompt_token_ids" in chunk["choices"][0]]
    assert [choice["prompt_token_ids"] for choice in opening] == [[97, 98]] * 2
    streamed: dict[int, list[int]] = {0: [], 1: []}
    for chunk in chunks:
        for choice in chunk["choices"]:
            streamed[choice["index"]] += choice.get("token_ids", [])
    assert list(streamed.values()) == [choice["token_ids"] for choice in choices]


def test_a_stop_string_ends_one_choice_and_frees_it() -> None:
    engine = FakeEngine(lambda request: say("one STOP two" if request.choice == 0 else "three four"))
    with serving(engine) as server:
        body = {"prompt": "x", "n": 2, "stop": "STOP", "max_tokens": 50}
        reply = post(server, **body).json()
        assert [choice["text"] for choice in reply["choices"]] == ["one ", "three four"]
        assert [choice["finish_reason"] for choice in reply["choices"]] == ["stop", "length"]
        assert reply["usage"]["completion_tokens"] == len("one STOP") + len("three four")
        assert engine.num_aborted == 1
        assert stream_text(post(server, **body, stream=True)) == {0: "one ", 1: "three four"}
        kept = post(server, **body, include_stop_str_in_output=True).json()
        assert kept["choices"][0]["text"] == "one STOP"
        assert engine.num_open == 0


def test_the_end_token_is_counted_and_not_shown() -> None:
    with serving(FakeEngine(lambda _: say("hi", eos=True, cached=2))) as server:
        reply = post(server, prompt="abcd").json()
        assert reply["choices"][0]["text"] == "hi"
        assert reply["choices"][0]["finish_reason"] == "stop"
        assert reply["usage"]["completion_tokens"] == 3
        assert reply["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
        shown = post(server, prompt="a", skip_special_tokens=False, include_stop_str_in_output=True)
        assert shown.json()["choices"][0]["text"] == "hi<|endoftext|>"
        hidden = post(server, prompt="a", skip_special_tokens=False, return_token_ids=True)
        assert hidden.json()["choices"][0]["text"] == "hi"
        assert hidden.json()["choices"][0]["token_ids"] == [*b"hi", EOS]


def test_cached_tokens_are_those_of_each_prompts_first_choice() -> None:
    def script(request: object) -> object:
        return cut(say("abcdef", cached=2 if request.choice == 0 else 3), 2)

    with serving(FakeEngine(script)) as server:
        reply = post(server, prompt=["abc", "def"], n=2).json()
    assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] == 4


def test_text_is_whole_characters_and_flushed_at_the_end() -> None:
    with serving(FakeEngine(lambda request: cut(say("é😀é"), request.params.max_tokens))) as server:
        chunks = sse_data(post(server, prompt="x", max_tokens=8, stream=True).text)
        assert [chunk["choices"][0]["text"] for chunk in chunks] == ["é", "😀", "é", ""]
        cut_short = {"prompt": "x", "max_tokens": 5}
        whole = post(server, **cut_short).json()["choices"][0]["text"]
        assert whole.startswith("é")
        assert "\N{REPLACEMENT CHARACTER}" in whole
        assert stream_text(post(server, **cut_short, stream=True)) == {0: whole}


def test_unknown_fields_are_warned_about_with_the_right_spelling(server: RunningServer) -> None:
    body = {"prompt": "x", "temprature": 0.5, "metadata": {"a": "b"}, "xyz": 1}
    warnings = post(server, **body).json()["warnings"]
    assert [warning["param"] for warning in warnings] == ["metadata", "temprature", "xyz"]
    assert "did you mean temperature?" in warnings[1]["message"]
    chunks = sse_data(post(server, **body, stream=True).text)
    assert chunks[0]["warnings"] == warnings
    assert all("warnings" not in chunk for chunk in chunks[1:])


def test_x_strict_makes_a_warning_an_error(server: RunningServer) -> None:
    body = {"prompt": "x", "temprature": 0.5}
    refused = server.client.post("/v1/completions", json=body, headers={"X-Strict": "1"})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "temprature"
    odd = server.client.post("/v1/completions", json=body, headers={"X-Strict": "yes"})
    assert odd.status_code == 400


def test_a_request_id_is_echoed_if_sane(server: RunningServer) -> None:
    def request_id(sent: str) -> str:
        headers = {"X-Request-Id": sent}
        response = server.client.post("/v1/completions", json={"prompt": "x"}, headers=headers)
        return response.headers["x-request-id"]

    assert request_id("trace-1.a:b") == "trace-1.a:b"
    assert request_id("not sane") != "not sane"
    assert request_id("x" * 500).startswith("req-")


def test_sampling_fields_reach_the_engine(server: RunningServer) -> None:
    post(
        server,
        prompt="x",
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        min_tokens=2,
        stop_token_ids=[3, 4],
        ignore_eos=True,
        max_tokens=9,
        seed=-1,
    )
    params = server.engine.requests[-1].params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.9, 40, 0.05)
    assert (params.min_tokens, params.max_tokens, params.seed) == (2, 9, -1)
    assert params.stop_token_ids == {3, 4}
    assert params.ignore_eos


def test_one_write_and_one_chunk_carry_all_that_is_there() -> None:
    engine = FakeEngine(lambda _: say("abcdefgh"))
    engine.hold()
    with serving(engine) as server:
        engine.when_open(1, lambda: engine.step(3))
        url = "/v1/completions"
        with server.client.stream("POST", url, json={"prompt": "x", "stream": True}) as response:
            writes = response.iter_raw()
            for num_steps, text in ((0, b'"text":"abc"'), (1, b'"text":"d"')):
                engine.step(num_steps)
                first = next(writes)
                assert first.count(b"data: ") == 1
                assert text in first
            engine.step(4)
            last = next(writes)
            assert last.count(b"data: ") == 3  # the text, the finish and [DONE]
            assert b'"text":"efgh"' in last
            assert list(writes) == []
