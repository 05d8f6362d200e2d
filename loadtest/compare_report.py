"""The table of a comparison in Markdown: every figure, and how draftline stands to each rival."""

from collections.abc import Mapping
from typing import Any

from loadtest.compare_cases import MEASURES, Measure

Medians = Mapping[str, Mapping[str, float]]


def ratio(measure: Measure, ours: float, theirs: float) -> float:
    """Return how many times better `ours` is: above 1 is a win, whichever way the measure counts."""
    better, worse = (ours, theirs) if measure.more_is_better else (theirs, ours)
    return round(better / worse, 2) if worse else 0.0


def ratios(medians: Medians, subject: str) -> dict[str, dict[str, float]]:
    """Return the ratio of `subject` to every other server in every measure that both have."""
    ours = medians[subject]
    return {
        name: {
            measure.key: ratio(measure, ours[measure.key], figures[measure.key])
            for measure in MEASURES
            if measure.is_compared and measure.key in ours and measure.key in figures
        }
        for name, figures in medians.items()
        if name != subject
    }


def markdown(result: Mapping[str, Any]) -> str:
    """Return the table with its circumstances; the first server is the subject."""
    medians = result["medians"]
    names = list(medians)
    lines = [
        f"{_circumstances(result)}",
        "",
        "| | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
        *(_row(measure, result) for measure in MEASURES if any(measure.key in medians[n] for n in names)),
        "",
        f"Medians of {result['arguments']['rounds']} interleaved rounds. In brackets: how many times better "
        f"{names[0]} is than this server; **bold where it is worse**.",
        *_losses(result),
        *(f"{note}." for note in result["notes"]),
    ]
    return "\n".join(lines) + "\n"


def _circumstances(result: Mapping[str, Any]) -> str:
    bandwidth, arguments = result["bandwidth_gb_s"], result["arguments"]
    return (
        f"{result['date'][:10]}, {result['cores']} cores of {result['cpu']}, commit {result['commit']}; "
        f"memory reads at {bandwidth['median']} GB/s (best {bandwidth['best']}); "
        f"{arguments['prompt_tokens']} prompt tokens and {arguments['max_tokens']} answer tokens a stream."
    )


def _row(measure: Measure, result: Mapping[str, Any]) -> str:
    cells = [_cell(measure, result, name) for name in result["medians"]]
    return f"| {measure.label}, {measure.unit} | " + " | ".join(cells) + " |"


def _cell(measure: Measure, result: Mapping[str, Any], name: str) -> str:
    value = result["medians"][name].get(measure.key)
    if value is None:
        return ""
    text = figure(value)
    times = result["ratios"].get(name, {}).get(measure.key)
    if times is None:
        return text
    return f"{text} ({times:.2f})" if times >= 1 else f"{text} (**{times:.2f}**)"


def figure(value: float) -> str:
    """Return a number with three significant digits at least, as people write it."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _losses(result: Mapping[str, Any]) -> list[str]:
    labels = {measure.key: measure.label for measure in MEASURES}
    lost = [
        f"{labels[key]} against {name} ({times:.2f})"
        for name, figures in result["ratios"].items()
        for key, times in figures.items()
        if times < 1
    ]
    return [f"Worse in: {'; '.join(lost)}."] if lost else ["Worse in nothing that was measured."]
