"""Puts the newest comparison into the README: a chart as SVG and the table, with date, machine and commit.

    python -m loadtest.charts

Reads the newest loadtest/results/*-compare.json, writes loadtest/results/compare.svg, and replaces what
stands between the two markers in README.md. The same results give the same bytes; a test holds the README
to it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadtest import compare_report
from loadtest.compare_cases import MEASURES
from loadtest.environment import ROOT
from loadtest.svg import Bars, bar_chart

RESULTS = ROOT / "loadtest" / "results"
BEGIN, END = "<!-- comparison: begin -->", "<!-- comparison: end -->"
CHARTED = ("single_tok_s", "streams_16_tok_s", "streams_32_tok_s", "prefill_tok_s")


def newest_result(folder: Path = RESULTS) -> dict[str, Any] | None:
    """Return the newest comparison by its date, or None if there is none."""
    found = [json.loads(path.read_text()) for path in folder.glob("*-compare.json")]
    return max(found, key=lambda result: str(result["date"]), default=None)


def chart(result: Mapping[str, Any]) -> str:
    """Return the chart of a comparison: the measures where more is better."""
    groups = [
        Bars(
            title=f"{measure.label}, {measure.unit}",
            values={n: m[measure.key] for n, m in result["medians"].items() if measure.key in m},
        )
        for measure in MEASURES
        if measure.key in CHARTED and any(measure.key in m for m in result["medians"].values())
    ]
    arguments = result["arguments"]
    subtitle = (
        f"{arguments['model']}, {result['cores']} cores of {result['cpu']}, {result['date'][:10]}, commit "
        f"{result['commit']}; medians of {arguments['rounds']} interleaved rounds, through HTTP"
    )
    return bar_chart(groups, title="Side by side in one run: more is better", subtitle=subtitle)


def readme_with(readme: str, result: Mapping[str, Any]) -> str:
    """Return the README with chart and table between its markers; raises ValueError without markers."""
    if BEGIN not in readme or END not in readme:
        raise ValueError(f"the README has no place for the comparison: write {BEGIN} and {END} into it")
    before, _, rest = readme.partition(BEGIN)
    picture = "![draftline beside its rivals](loadtest/results/compare.svg)"
    table = compare_report.markdown(result)
    return f"{before}{BEGIN}\n{picture}\n\n{table}{END}{rest.partition(END)[2]}"


def main() -> None:
    """Write the chart and the README's block from the newest results file."""
    result = newest_result()
    if result is None:
        raise SystemExit(f"no *-compare.json in {RESULTS}: run python -m loadtest.compare --output {RESULTS}")
    (RESULTS / "compare.svg").write_text(chart(result))
    readme = ROOT / "README.md"
    readme.write_text(readme_with(readme.read_text(), result))
    print(f"wrote {RESULTS / 'compare.svg'} and {readme}")


if __name__ == "__main__":
    main()
