"""The report's figures: from a server's metrics and made-up answers, and the page that shows them."""

import json
import xml.etree.ElementTree as ET

import pytest

from loadtest import report
from loadtest.load_shapes import burst, ramp
from loadtest.recording import ClientTotals, Recorder, agreement, agrees, server_rates
from loadtest.server_metrics import read_samples, scrape
from loadtest.svg import line_chart, round_up
from tests.fakes import FakeEngine, say
from tests.server.harness import serving

METRICS = """
# HELP draftline_generation_tokens_total Tokens generated.
draftline_generation_tokens_total{model_name="m"} 120.0
draftline_request_success_total{finished_reason="stop",model_name="m"} 3.0
draftline_request_success_total{finished_reason="length",model_name="m"} 4.0
draftline_time_to_first_token_seconds_bucket{le="+Inf",model_name="m"} 7.0
draftline_time_to_first_token_seconds_sum{model_name="m"} 1.4
draftline_time_to_first_token_seconds_count{model_name="m"} 7.0
process_open_fds 12.0
"""


def test_samples_are_summed_and_kept_by_label():
    found = read_samples(METRICS)
    assert found["draftline_request_success_total"] == 7
    assert found["draftline_request_success_total{finished_reason=stop}"] == 3
    assert found["process_open_fds"] == 12
    assert not any("bucket" in name for name in found)


def test_a_real_scrape_has_what_the_report_reads():
    with serving(FakeEngine(lambda _: say("hello")), keys=["a-secret-key"]) as server:
        server.client.headers["Authorization"] = "Bearer a-secret-key"
        server.client.post("/v1/completions", json={"prompt": "x"}).raise_for_status()
        found = scrape(server.url, "a-secret-key")
    assert found["draftline_request_success_total"] == 1
    assert found["draftline_time_to_first_token_seconds_count"] == 1
    for row in agreement(ClientTotals(completed=1), {}, found):
        assert row["figure"]
    assert server_rates({}, found, 1.0)["memory_mb"] > 10


def test_client_and_server_are_set_side_by_side():
    totals = ClientTotals(
        completed=6,
        aborted=1,
        answer_tokens=110,
        aborted_tokens=9,
        ttft_seconds=1.5,
        num_first_tokens=7,
        decode_seconds=2.0,
        decode_tokens=100,
    )
    rows = {row["figure"]: row for row in agreement(totals, {}, read_samples(METRICS))}
    assert rows["answers, left ones too"] == {
        "figure": "answers, left ones too",
        "client": 7,
        "server": 7,
        "agrees": True,
    }
    assert rows["answer tokens"]["agrees"]
    assert rows["mean time to first token, ms"]["client"] == pytest.approx(214.29)
    assert rows["mean time to first token, ms"]["server"] == pytest.approx(200.0)
    assert not rows["mean time to first token, ms"]["agrees"]
    assert agrees(100, 95)
    assert not agrees(100, 94.9)


def recorded() -> dict:
    recorder = Recorder()
    recorder.begin({"draftline_generation_tokens_total": 20.0})
    for second in range(1, 9):
        recorder.observe("TTFT", "chat", 100.0 * second)
        recorder.observe("ITL", "chat", 10.0)
        tokens = 20.0 + 50.0 * second
        drafts = {"draftline_spec_decode_num_draft_tokens_total": 10.0 * second}
        accepted = {"draftline_spec_decode_num_accepted_tokens_total": 7.0 * second}
        server = {"draftline_generation_tokens_total": tokens} | drafts | accepted
        recorder.sample(float(second), 4 if second < 5 else 8, server)
    recorder.errors["429: full <b>"] += 2
    return {
        "host": "http://127.0.0.1:1",
        "date": "2026-01-02",
        "cores": 2,
        "cpu": "c",
        "commit": "abc",
        "problems": ["2 requests failed"],
        **recorder.result(),
    }


def test_drift_sets_the_second_quarter_beside_the_last():
    recorder = Recorder()
    for second in range(1, 41):
        recorder.observe("TTFT", "chat", 100.0 if second <= 20 else 150.0)
        metrics = {"process_resident_memory_bytes": 5e8, "process_open_fds": 10.0 + (second > 30)}
        recorder.sample(float(second), 3, metrics)
    found = {row["figure"]: row for row in recorder.result()["drift"]}
    assert found["time to first token p50, ms"]["change"] == 0.5
    assert found["resident memory, MB"] == {
        "figure": "resident memory, MB",
        "early": 500.0,
        "late": 500.0,
        "change": 0.0,
    }
    assert (found["open files"]["early"], found["open files"]["late"]) == (10, 11)
    assert "acceptance" not in found
    page = report.html_report({**recorded(), **recorder.result()})
    assert "Drift over the run" in page
    assert "+50.0 %" in page
    assert recorded()["drift"] == []


def test_samples_hold_rates_and_percentiles_of_their_interval():
    samples = recorded()["samples"]
    assert [sample["answer_tok_s"] for sample in samples] == [50.0] * 8
    assert [sample["acceptance"] for sample in samples] == [0.7] * 8
    assert [sample["TTFT"]["p50"] for sample in samples] == [100.0 * n for n in range(1, 9)]
    assert report.throughput_by_users(samples) == [(4.0, 50.0), (8.0, 50.0)]


def test_the_page_opens_offline_and_tells_failures(tmp_path, capsys):
    source = tmp_path / "report.json"
    source.write_text(json.dumps(recorded()))
    report.main([str(source)])
    page = source.with_suffix(".html").read_text()
    assert page == report.html_report(recorded())
    assert "2 requests failed" in page
    assert "429: full &lt;b&gt;" in page
    outside = [part for part in page.split("http")[1:] if not part.startswith(("://www.w3.org", "://127"))]
    assert outside == []
    assert "<script" not in page
    for chart in report.plots(recorded()["samples"]):
        assert ET.fromstring(chart).tag.endswith("svg")
    assert page.count("<svg") == len(report.plots(recorded()["samples"])) >= 6


def test_a_run_without_metrics_still_has_a_page():
    recorder = Recorder()
    recorder.begin({})
    recorder.sample(1.0, 3, {})
    page = report.html_report({**recorded(), **recorder.result(), "problems": []})
    assert "no request failed" in page
    assert "has no /metrics" in page
    assert "Throughput against concurrency" not in page


@pytest.mark.parametrize(("value", "end"), [(0, 1), (0.03, 0.03), (7, 8), (300, 300), (301, 400), (41, 60)])
def test_axes_end_at_round_numbers(value, end):
    assert round_up(value) == pytest.approx(end)


def test_a_line_chart_stays_inside_its_frame():
    drawn = ET.fromstring(line_chart({"a": [(0, 0), (10, 5)]}, title="t", x_label="x", unit="u"))
    [line] = [element for element in drawn if element.tag.endswith("polyline")]
    places = [tuple(float(n) for n in point.split(",")) for point in line.attrib["points"].split()]
    assert all(0 <= x <= 700 and 0 <= y <= 250 for x, y in places)


def test_shapes():
    steps = [ramp(second, step_users=4, step_seconds=10, num_steps=3) for second in (0, 9.9, 10, 29, 30)]
    assert steps == [4, 4, 8, 12, None]
    rhythm = {"users": 2, "burst_users": 9, "period": 60.0, "length": 10.0, "duration": 100.0}
    assert [burst(second, **rhythm) for second in (0, 49, 50, 59.9, 60, 100)] == [2, 2, 9, 9, 2, None]
