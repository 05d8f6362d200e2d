"""The load generator against a real server around a fake engine, and its figures from made-up times."""

import asyncio
import itertools
import json

import pytest

from loadtest import http_load, serve, workloads
from loadtest.http_load import StreamTiming
from loadtest.load_summary import Outcome, Slo, percentiles, summarize
from tests.fakes import FakeEngine, cut, say
from tests.server.harness import serving


def timing(*chunk_times: float, tokens: int | None = None) -> StreamTiming:
    return StreamTiming(
        chunk_times=chunk_times,
        total=chunk_times[-1],
        prompt_tokens=10,
        completion_tokens=tokens or len(chunk_times),
        cached_tokens=4,
    )


@pytest.fixture(scope="module")
def server():
    engine = FakeEngine(
        lambda request: cut(say("word " * 40), request.params.max_tokens), max_model_len=100_000
    )
    with serving(engine, keys=["a-secret-key"]) as running:
        yield running


def run(server, capsys, *flags: str) -> dict:
    base = ("--base-url", server.url, "--model", "fake", "--api-key", "a-secret-key")
    serve.main([*base, "--num-requests", "6", "--max-tokens", "8", *flags])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("flags", [("--concurrency", "3"), ("--rate", "200"), ("--rate", "200", "--mixed")])
def test_both_loops_count_what_the_server_answered(server, capsys, flags):
    result = run(server, capsys, *flags)
    assert (result["requests"], result["failed"]) == (6, 0)
    expected = 48 if "--mixed" not in flags else sum(a for _, a in workloads.mixed_lengths("1", 6))
    assert result["output_tokens"] == expected
    assert set(result["ttft_ms"]) == {"p50", "p90", "p95", "p99", "mean"}
    assert "api_key" not in result["arguments"]


def test_a_shared_prefix_is_shared(server, capsys):
    before = len(server.engine.requests)
    run(server, capsys, "--concurrency", "2", "--shared-prefix-tokens", "100")
    prompts = [bytes(request.prompt_token_ids) for request in server.engine.requests[before:]]
    assert len(set(prompts)) == 6
    assert len({prompt.partition(b"\n")[0] for prompt in prompts}) == 1


def test_failed_requests_are_counted_and_fail_the_run(server, capsys):
    with pytest.raises(SystemExit) as exit_info:
        serve.main(["--base-url", server.url, "--num-requests", "2", "--max-tokens", "3"])  # no key
    assert exit_info.value.code == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["failed"] == 2
    assert "401" in result["first_error"]


def test_nobody_listens(capsys):
    with pytest.raises(SystemExit):
        serve.main(["--base-url", "http://127.0.0.1:9", "--num-requests", "1"])
    assert "ConnectionRefusedError" in capsys.readouterr().out


def test_arrivals_are_a_poisson_process_and_repeatable():
    times = serve.arrival_times(4000, 5.0, "seed")
    assert times == serve.arrival_times(4000, 5.0, "seed")
    assert times != serve.arrival_times(4000, 5.0, "other")
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(0.2, rel=0.06)
    assert deviation == pytest.approx(mean, rel=0.1)  # exponential gaps


def test_goodput_counts_requests_that_met_both_limits():
    outcomes = [
        Outcome(timing=timing(0.1, 0.2, 0.3)),  # good
        Outcome(timing=timing(2.0, 2.1, 2.2)),  # late first token
        Outcome(timing=timing(0.1, 1.1, 2.1)),  # slow tokens
        Outcome(error="refused"),
    ]
    result = summarize(outcomes, 2.0, Slo(ttft=1.0, tpot=0.5))
    assert (result["requests"], result["failed"], result["first_error"]) == (4, 1, "refused")
    assert result["goodput_requests_per_s"] == 0.5
    assert result["goodput_share"] == 0.25
    assert result["output_tok_s"] == 4.5
    assert result["cached_tokens"] == 12


def test_several_tokens_in_a_chunk_make_gap_and_time_per_token_differ():
    answer = timing(1.0, 1.4, 1.8, tokens=9)
    assert answer.gaps == pytest.approx([0.4, 0.4])
    assert answer.tpot == pytest.approx(0.1)
    assert answer.decode_rate == pytest.approx(10.0)


def test_percentiles():
    found = percentiles([0.001 * i for i in range(101)], scale=1e3)
    assert found == {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "mean": 50.0}
    assert percentiles([]) == {}


@pytest.mark.parametrize(
    "flags", [["--num-requests", "0"], ["--rate", "-1"], ["--rate", "1", "--concurrency", "2"]]
)
def test_bad_flags_are_refused(flags, capsys):
    with pytest.raises(SystemExit) as exit_info:
        serve.parse(flags)
    assert exit_info.value.code == 2
    assert flags[0] in capsys.readouterr().err


def test_workloads_are_functions_of_their_seed():
    assert workloads.mixed_lengths(1, 5) == workloads.mixed_lengths(1, 5) != workloads.mixed_lengths(2, 5)
    paragraph, again, head = workloads.copy_prompt("c", 60).split("\n\n")
    assert paragraph == again
    assert paragraph.startswith(head)
    [message] = workloads.edit_messages("e", 40)
    assert "lantern" in message["content"]


def reply(*events: str) -> StreamTiming:
    """Read events that arrived one second apart, each in two parts."""
    received, arrivals = b"", []
    for number, event in enumerate(events, start=1):
        received += f"data: {event}\r\n\r\n".encode()
        arrivals += [(len(received) - 9, number - 0.5), (len(received), number)]
    return http_load.read_stream(received, arrivals)


USAGE = '"usage": {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}}'


@pytest.mark.parametrize(
    "last",
    [
        '{"choices":[],' + USAGE + "}",  # OpenAI, vllm and draftline
        '{"choices":[{"text":"","finish_reason":"length"}],' + USAGE + "}",  # llama.cpp
    ],
)
def test_usage_is_found_where_each_server_puts_it(last):
    found = reply('{"choices":[{"text":"a"}],"usage":null}', '{"choices":[{"text":" b"}]}', last, "[DONE]")
    assert (found.prompt_tokens, found.completion_tokens, found.cached_tokens) == (5, 2, 3)
    assert found.chunk_times == (1, 2)
    assert found.total == 4


@pytest.mark.parametrize("events", [("[DONE]",), ('{"choices":[{"text":"a"}],' + USAGE + "}",)])
def test_half_a_stream_is_an_error(events):
    with pytest.raises(RuntimeError, match="ended early"):
        reply(*events)


def test_a_field_that_is_none_is_left_out(server):
    body = {"model": "fake", "prompt": "x", "max_tokens": 2}
    for extra, ends in (({}, True), ({"ignore_eos": None}, False)):
        asyncio.run(http_load.stream_completion(server.url, body | extra, api_key="a-secret-key"))
        assert server.engine.requests[-1].params.ignore_eos is ends
