"""Speculation over a real socket: the field, usage, provenance, metrics; endings inside accepted runs."""

from collections.abc import Iterator
from typing import Any

import pytest

from engine.interface.config import EngineConfig
from engine.interface.speculation import DraftSource, SpeculationMode, SpeculationParams
from engine.loading.loader import load_engine
from server.serving import ServedModel
from server.text import Tokenizer
from tests.drafters import byte_checkpoint, noisy_copy
from tests.fakes import FakeEngine, say
from tests.server.harness import RunningServer, serving, serving_model, sse_data

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
BASES = {COMPLETIONS: {"prompt": "x"}, CHAT: {"messages": [{"role": "user", "content": "x"}]}}
TEXT = "one two three four"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Say TEXT, four tokens a step, of which three were drafted."""
    with serving(FakeEngine(lambda _: say(TEXT, tokens_per_step=4, num_drafted=5))) as running:
        yield running


def post(server: RunningServer, path: str = COMPLETIONS, **body: object) -> Any:
    response = server.client.post(path, json={**BASES[path], **body})
    assert response.status_code == 200, response.text
    return sse_data(response.text) if body.get("stream") else response.json()


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"mode": "ngram", "k": 4}, SpeculationParams(mode=SpeculationMode.NGRAM, k=4)),
        ({"mode": "off"}, SpeculationParams(mode=SpeculationMode.OFF)),
        ({"k": 16}, SpeculationParams(k=16)),
        ({"mode": None, "k": None}, SpeculationParams()),
        ({}, SpeculationParams()),
        (None, SpeculationParams()),
    ],
)
def test_the_field_reaches_the_engine(
    server: RunningServer, path: str, value: object, expected: SpeculationParams
) -> None:
    post(server, path, speculation=value, n=2)
    assert [request.speculation for request in server.engine.requests[-2:]] == [expected] * 2


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(
    ("value", "param", "message"),
    [
        ("ngram", "speculation", "must be an object, got 'ngram'"),
        ([], "speculation", "must be an object"),
        ({"mode": "fast"}, "speculation.mode", "must be one of off, auto, draft, ngram, got 'fast'"),
        ({"mode": 1}, "speculation.mode", "must be one of off, auto, draft, ngram, got 1"),
        ({"mode": ["off"]}, "speculation.mode", "must be one of off, auto, draft, ngram"),
        ({"k": 0}, "speculation.k", "must be between 1 and 16, got 0"),
        ({"k": 17}, "speculation.k", "must be between 1 and 16, got 17"),
        ({"k": True}, "speculation.k", "must be an integer between 1 and 16"),
        ({"k": "4"}, "speculation.k", "must be an integer between 1 and 16"),
        ({"k": 4.0}, "speculation.k", "must be an integer between 1 and 16"),
    ],
)
def test_malformed_values_are_named(
    server: RunningServer, path: str, value: object, param: str, message: str
) -> None:
    response = server.client.post(path, json={**BASES[path], "speculation": value})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert message.replace("'", "") in error["message"].replace("'", "").replace('"', "")


def test_an_unknown_key_is_a_warning(server: RunningServer) -> None:
    reply = post(server, speculation={"mode": "auto", "depth": 3})
    assert [warning["param"] for warning in reply["warnings"]] == ["speculation.depth"]


def check_usage(usage: Any, *, num_choices: int) -> None:
    # 18 tokens in steps of 4, 4, 4, 4 and 2; the last token of each step is the target's own.
    assert usage["completion_tokens"] == 18 * num_choices
    assert usage["completion_tokens_details"] == {
        "reasoning_tokens": 0,
        "accepted_prediction_tokens": 13 * num_choices,
        "rejected_prediction_tokens": 12 * num_choices,
    }
    assert usage["draftline"]["speculation"] == {
        "drafted": 25 * num_choices,
        "accepted": 13 * num_choices,
        "verification_steps": 5 * num_choices,
        "mean_accepted_length": 3.6,
        "source": "ngram",
        "estimated_speedup": 2.0,
    }


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_usage_counts_all_choices_streamed_or_not(server: RunningServer, path: str, n: int) -> None:
    check_usage(post(server, path, n=n)["usage"], num_choices=n)
    chunks = post(server, path, n=n, stream=True, stream_options={"include_usage": True})
    check_usage(chunks[-1]["usage"], num_choices=n)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_provenance_of_every_token_streamed_or_not(server: RunningServer, path: str) -> None:
    reply = post(server, path, return_provenance=True, return_token_ids=True)
    [choice] = reply["choices"]
    sources = [token["source"] for token in choice["provenance"]]
    assert sources == (["ngram"] * 3 + ["target"]) * 4 + ["ngram", "target"]
    steps = [token["step"] for token in choice["provenance"]]
    assert [step - steps[0] for step in steps] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 2
    streamed = post(server, path, return_provenance=True, stream=True)
    pieces = [c for chunk in streamed for c in chunk["choices"] if "provenance" in c]
    assert [token["source"] for piece in pieces for token in piece["provenance"]] == sources
    assert "provenance" not in post(server, path)["choices"][0]


def test_a_draft_that_is_right_to_its_end_brings_a_bonus() -> None:
    with serving(FakeEngine(lambda _: say("abcdef", tokens_per_step=3, num_drafted=2))) as server:
        [choice] = post(server, return_provenance=True)["choices"]
    assert [token["source"] for token in choice["provenance"]] == ["ngram", "ngram", "bonus"] * 2


@pytest.mark.parametrize(
    ("source", "label"),
    [
        (DraftSource.GRAMMAR, "grammar"),
        (DraftSource.DRAFT_MODEL, "draft"),
        (DraftSource.NGRAM_POOL, "ngram"),
    ],
)
def test_every_source_has_its_label_in_provenance_and_usage(source: DraftSource, label: str) -> None:
    script = say("abcdef", tokens_per_step=3, num_drafted=4, source=source)
    with serving(FakeEngine(lambda _: script)) as server:
        reply = post(server, return_provenance=True)
    [choice] = reply["choices"]
    assert [token["source"] for token in choice["provenance"]] == [label, label, "target"] * 2
    assert reply["usage"]["draftline"]["speculation"]["source"] == label


@pytest.mark.parametrize("tokens_per_step", [1, 2, 3, 5, 8, 18])
@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_inside_an_accepted_run_cuts_exactly_there(tokens_per_step: int, include: bool) -> None:
    script = say(TEXT, tokens_per_step=tokens_per_step, num_drafted=tokens_per_step)
    with serving(FakeEngine(lambda _: script)) as server:
        body = {
            "stop": ["wo", "four"],
            "include_stop_str_in_output": include,
            "return_provenance": True,
            "return_token_ids": True,
        }
        reply = post(server, logprobs=0, **body)
        chunks = post(server, logprobs=0, stream=True, **body)
    [choice] = reply["choices"]
    expected = "one two" if include else "one t"
    assert (choice["text"], choice["finish_reason"]) == (expected, "stop")
    assert choice["token_ids"] == list(b"one two")
    assert len(choice["provenance"]) == reply["usage"]["completion_tokens"] == 7
    assert choice["logprobs"]["tokens"] == list(expected)
    details = reply["usage"]["completion_tokens_details"]
    num_accepted = sum(token["source"] == "ngram" for token in choice["provenance"])
    assert details["accepted_prediction_tokens"] == num_accepted
    pieces = [c for chunk in chunks for c in chunk["choices"]]
    assert "".join(piece["text"] for piece in pieces) == expected
    scored = [token for piece in pieces if piece["logprobs"] for token in piece["logprobs"]["tokens"]]
    assert scored == list(expected)
    assert pieces[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_token_at_the_end_of_a_run_is_counted_and_shown_only_if_asked_for(include: bool) -> None:
    with serving(FakeEngine(lambda _: say("abc", tokens_per_step=4, eos=True, num_drafted=3))) as server:
        reply = post(
            server, include_stop_str_in_output=include, skip_special_tokens=False, return_provenance=True
        )
    assert reply["choices"][0]["text"] == ("abc<|endoftext|>" if include else "abc")
    assert reply["usage"]["completion_tokens"] == len(reply["choices"][0]["provenance"]) == 4


def test_the_speedup_histogram_counts_choices_with_drafts(server: RunningServer) -> None:
    name = "draftline_spec_decode_speedup_ratio"

    def count(model: str = "fake") -> float:
        metrics = server.client.get("/metrics").text
        [line] = [x for x in metrics.splitlines() if x.startswith(f'{name}_count{{model_name="{model}"}}')]
        return float(line.split()[-1])

    before = count()
    post(server, n=2)
    assert count() == before + 2


# The real engine behind the same socket.


@pytest.fixture(scope="module")
def real() -> Iterator[Any]:
    checkpoint = byte_checkpoint()
    config = EngineConfig(device="cpu", dtype="float32", kv_cache_memory=2**24, speculation="auto")
    engine = load_engine(checkpoint, config, noisy_copy(checkpoint, 0.02))
    model = ServedModel(
        name="tiny",
        engine=engine,
        tokenizer=Tokenizer(checkpoint.tokenizer),
        chat_template=None,
        max_token_bytes=5,
    )
    with serving_model(model) as client:
        yield client
    engine.close()


def complete(client: Any, **body: object) -> Any:
    full = {"prompt": "tell me, tell me, tell", "max_tokens": 40, "ignore_eos": True, "seed": 3, **body}
    response = client.post(COMPLETIONS, json=full)
    assert response.status_code == 200, response.text
    return response.json()


def test_the_answer_is_the_same_in_every_mode(real: Any) -> None:
    modes = [{"mode": "off"}, {"mode": "ngram", "k": 5}, {"mode": "draft", "k": 3}, {"mode": "auto"}, None]
    replies = [
        complete(real, n=3, logprobs=1, return_token_ids=True, speculation=mode, temperature=0.8)
        for mode in modes
    ]
    assert all(reply["choices"] == replies[0]["choices"] for reply in replies)
    off, _, draft, *_ = (reply["usage"] for reply in replies)
    assert off["draftline"]["speculation"]["drafted"] == 0
    assert draft["draftline"]["speculation"]["source"] == "draft"
    assert draft["draftline"]["speculation"]["accepted"] > 10
    assert draft["draftline"]["speculation"]["estimated_speedup"] > 0
    details = draft["completion_tokens_details"]
    assert sum(details.values()) == draft["draftline"]["speculation"]["drafted"]


def test_provenance_of_a_sampled_answer_from_a_draft_model(real: Any) -> None:
    reply = complete(real, return_provenance=True, speculation={"mode": "draft", "k": 4}, temperature=0.9)
    tokens = reply["choices"][0]["provenance"]
    assert len(tokens) == 40
    assert {token["source"] for token in tokens} == {"draft", "bonus", "target"}
    accepted = reply["usage"]["completion_tokens_details"]["accepted_prediction_tokens"]
    assert sum(token["source"] == "draft" for token in tokens) == accepted


def test_stop_strings_cut_the_same_place_in_every_mode(real: Any) -> None:
    whole = complete(real, temperature=0.8, speculation={"mode": "off"})["choices"][0]["text"]
    stop = whole[8:10]
    texts = {
        complete(real, temperature=0.8, stop=stop, speculation={"mode": mode, "k": 7})["choices"][0]["text"]
        for mode in ("off", "ngram", "draft", "auto")
    }
    assert texts == {whole[: whole.index(stop)]}


def test_prometheus_counts_drafts(real: Any) -> None:
    complete(real, speculation={"mode": "draft", "k": 2})
    metrics = real.get("/metrics").text
    for name in ("num_drafts_total", "num_draft_tokens_total", "num_accepted_tokens_total"):
        [line] = [x for x in metrics.splitlines() if x.startswith(f"draftline_spec_decode_{name}{{")]
        assert float(line.split()[-1]) > 0
    assert (
        'draftline_spec_decode_num_accepted_tokens_per_pos_total{model_name="tiny",position="0"}' in metrics
    )


def test_draft_without_a_draft_model_is_refused() -> None:
    checkpoint = byte_checkpoint()
    config = EngineConfig(device="cpu", dtype="float32", kv_cache_memory=2**22)
    engine = load_engine(checkpoint, config)
    tokenizer = Tokenizer(checkpoint.tokenizer)
    model = ServedModel(name="t", engine=engine, tokenizer=tokenizer, chat_template=None, max_token_bytes=5)
    try:
        with serving_model(model) as client:
            body = {"prompt": "x", "max_tokens": 1, "speculation": {"mode": "draft"}}
            response = client.post(COMPLETIONS, json=body)
    finally:
        engine.close()
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "speculation.mode"
