"""The page of a load test: plots and tables in one HTML file that needs no network.

python -m loadtest.report report.json    # draws report.html again from its figures
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import mean
from typing import Any

from loadtest.recording import KINDS
from loadtest.svg import line_chart

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1e293b; background: #f8fafc; }
body { margin: 0 auto; max-width: 1460px; padding: 24px; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 32px 0 8px; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(560px, 1fr)); gap: 16px; }
.plots svg { width: 100%; height: auto; border: 1px solid #e2e8f0; border-radius: 8px; }
table { border-collapse: collapse; background: #fff; }
td, th { border: 1px solid #e2e8f0; padding: 4px 12px; }
th { background: #f1f5f9; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.good { color: #15803d; } .bad { color: #b91c1c; font-weight: 600; } .note { color: #64748b; }
"""

Sample = Mapping[str, Any]


def html_report(result: Mapping[str, Any]) -> str:
    """Return the page; `result` is what locustfile.py writes beside it as JSON."""
    samples = result["samples"]
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Load test of draftline</title>",
        f"<style>{STYLE}</style></head><body>",
        "<h1>Load test</h1>",
        f"<p class='note'>{escape(_circumstances(result))}</p>",
        _verdict(result["problems"]),
        _section("Totals", _table(("figure", "value"), _totals(result))),
        _section("Latencies by kind of request", _latency_table(result["latencies"])),
        _section("Client and server", _agreement_table(result["agreement"])),
        _drift_section(result.get("drift", ())),
        _section("Errors", _table(("error", "times"), result["errors"].items())) if result["errors"] else "",
        "<h2>Plots</h2><div class='plots'>",
        *plots(samples),
        "</div></body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def plots(samples: Sequence[Sample]) -> list[str]:
    """Return the charts that there are figures for."""
    charts = [
        _over_time(
            samples, "Users and requests", "count", users="users", running="running", waiting="waiting"
        ),
        _over_time(samples, "Tokens a second", "tok/s", answers="answer_tok_s", prompts="prompt_tok_s"),
        _against_users(samples, "answer_tok_s", "Throughput against concurrency", "answer tok/s"),
        _percentiles_over_time(samples, "TTFT", "Time to first token"),
        _percentiles_over_time(samples, "ITL", "Between tokens"),
        _over_time(samples, "Shares", "of 1", hits="hit_share", acceptance="acceptance", KV="kv_cache_usage"),
        _over_time(samples, "Resident memory of the server", "MB", memory="memory_mb"),
        _over_time(samples, "Open files of the server", "count", files="open_files"),
    ]
    return [chart for chart in charts if chart]


def throughput_by_users(samples: Iterable[Sample], key: str = "answer_tok_s") -> list[tuple[float, float]]:
    """Return the mean of `key` at each number of users, without the first sample after a change."""
    found: defaultdict[int, list[float]] = defaultdict(list)
    previous = None
    for sample in samples:
        if key in sample and sample["users"] == previous:
            found[sample["users"]].append(sample[key])
        previous = sample["users"]
    return [(float(users), mean(values)) for users, values in sorted(found.items())]


def _over_time(samples: Sequence[Sample], title: str, unit: str, **keys: str) -> str:
    lines = {
        name: [(sample["second"], sample[key]) for sample in samples if key in sample]
        for name, key in keys.items()
    }
    lines = {name: line for name, line in lines.items() if line}
    return line_chart(lines, title=title, x_label="seconds", unit=unit) if lines else ""


def _percentiles_over_time(samples: Sequence[Sample], kind: str, title: str) -> str:
    lines = {
        quantile: [(s["second"], s[kind][quantile]) for s in samples if quantile in s.get(kind, {})]
        for quantile in ("p50", "p95", "p99")
    }
    if not any(lines.values()):
        return ""
    return line_chart(lines, title=title, x_label="seconds", unit=KINDS[kind])


def _against_users(samples: Sequence[Sample], key: str, title: str, unit: str) -> str:
    points = throughput_by_users(samples, key)
    if not points:
        return ""
    return line_chart({"mean": points}, title=title, x_label="users", unit=unit, markers=True)


def _circumstances(result: Mapping[str, Any]) -> str:
    return (
        f"{result['host']}, {result['date']}, {result['cores']} cores of {result['cpu']}, "
        f"commit {result['commit']}; client and server shared what they ran on if the host is this machine"
    )


def _verdict(problems: Sequence[str]) -> str:
    if not problems:
        return "<p class='good'>Passed: no request failed and every limit was kept.</p>"
    items = "".join(f"<li>{escape(problem)}</li>" for problem in problems)
    return f"<p class='bad'>Failed:</p><ul class='bad'>{items}</ul>"


def _totals(result: Mapping[str, Any]) -> list[tuple[str, object]]:
    totals, samples = result["totals"], result["samples"]
    seconds = samples[-1]["second"] if samples else 0.0
    rate = round(totals["answer_tokens"] / seconds, 1) if seconds else 0.0
    return [
        ("seconds", seconds),
        ("answers completed", totals["completed"]),
        ("answers left by the client", totals["aborted"]),
        ("failed", totals["failed"]),
        ("prompt tokens of completed answers", totals["prompt_tokens"]),
        ("tokens of completed answers", totals["answer_tokens"]),
        ("tokens of completed answers a second", rate),
    ]


def _latency_table(latencies: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    header = ("", "request", "count", "p50", "p90", "p95", "p99", "mean")
    rows = [
        (f"{kind}, {KINDS[kind]}", name, *(figures.get(column, "") for column in header[2:]))
        for kind, of in latencies.items()
        for name, figures in sorted(of.items())
    ]
    return _table(header, rows)


def _agreement_table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "<p class='note'>The server has no /metrics to compare with.</p>"
    cells = [(r["figure"], r["client"], r["server"], "yes" if r["agrees"] else "NO") for r in rows]
    note = "<p class='note'>Agreement within 5 %, if nobody else used the server meanwhile.</p>"
    return note + _table(("figure", "client", "server", "agree"), cells)


def _drift_section(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    cells = [(r["figure"], r["early"], r["late"], f"{100 * r['change']:+.1f} %") for r in rows]
    table = _table(("figure", "second quarter", "last quarter", "change"), cells)
    return _section("Drift over the run", table)


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>{content}"


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value: object) -> str:
    if isinstance(value, int | float):
        return f"<td class='number'>{value:,}</td>"
    style = " class='bad'" if value == "NO" else ""
    return f"<td{style}>{escape(str(value))}</td>"


def main(argv: Sequence[str] | None = None) -> None:
    """Draw a page again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", type=Path, help="the .json beside a report")
    source = parser.parse_args(argv).figures
    target = source.with_suffix(".html")
    target.write_text(html_report(json.loads(source.read_text())))
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
