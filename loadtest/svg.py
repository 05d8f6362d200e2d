"""Charts as plain SVG text: bars and lines, no script, no font file, the same bytes for the same figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

FONT = "font-family='system-ui, sans-serif'"
COLOURS = ("#2563eb", "#d97706", "#15803d", "#be123c", "#7e22ce", "#0e7490", "#64748b")
INK, GRID = "#334155", "#e2e8f0"


@dataclass(frozen=True, kw_only=True)
class Bars:
    """One group of horizontal bars: a title and a figure per name."""

    title: str
    values: Mapping[str, float]


def text(
    x: float, y: float, content: str, *, size: int = 12, anchor: str = "start", weight: int = 400
) -> str:
    """Return a line of text."""
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' text-anchor='{anchor}' font-weight='{weight}' "
        f"fill='{INK}' {FONT}>{escape(content)}</text>"
    )


def document(width: int, height: int, parts: Sequence[str], *, label: str) -> str:
    """Return a whole SVG document with a white ground, readable in a dark page too."""
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' "
        f"height='{height}' role='img' aria-label='{escape(label, quote=True)}'>"
    )
    return (
        "\n".join([head, f"<rect width='{width}' height='{height}' fill='#ffffff'/>", *parts, "</svg>"])
        + "\n"
    )


def bar_chart(groups: Sequence[Bars], *, title: str, subtitle: str) -> str:
    """Return groups of horizontal bars under each other; each group has a scale of its own from zero."""
    width, left, bar, gap = 760, 190, 18, 26
    parts, y = [text(16, 28, title, size=17, weight=600), text(16, 48, subtitle, size=11)], 74.0
    colour_of: dict[str, str] = {}
    for group in groups:
        parts.append(text(16, y, group.title, size=13, weight=600))
        y += 8
        top = max(group.values.values(), default=0.0) or 1.0
        for name, value in group.values.items():
            colour = colour_of.setdefault(name, COLOURS[len(colour_of) % len(COLOURS)])
            length = max(1.0, (width - left - 90) * value / top)
            parts.append(text(left - 8, y + 13, name, anchor="end"))
            parts.append(f"<rect x='{left}' y='{y:.1f}' width='{length:.1f}' height='14' fill='{colour}'/>")
            parts.append(text(left + length + 6, y + 12, _figure(value)))
            y += bar
        y += gap
    return document(width, int(y), parts, label=f"{title}. {subtitle}")


def line_chart(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x_label: str,
    unit: str,
    markers: bool = False,
) -> str:
    """Return points joined by lines (or alone, as `markers`), both axes from zero, with a legend."""
    width, height, left, right, top, bottom = 700, 250, 64, 16, 44, 40
    points = [point for line in lines.values() for point in line]
    x_top, y_top = (round_up(max((p[axis] for p in points), default=1.0)) for axis in (0, 1))
    x_scale, y_scale = (width - left - right) / x_top, (height - top - bottom) / y_top
    parts = [text(left, 20, title, size=14, weight=600)]
    for step in range(5):
        y = height - bottom - y_scale * y_top * step / 4
        parts.append(f"<line x1='{left}' x2='{width - right}' y1='{y:.1f}' y2='{y:.1f}' stroke='{GRID}'/>")
        parts.append(text(left - 6, y + 4, _figure(y_top * step / 4), size=10, anchor="end"))
        x = left + x_scale * x_top * step / 4
        parts.append(text(x, height - bottom + 16, _figure(x_top * step / 4), size=10, anchor="middle"))
    parts.append(text(width - right, height - 8, x_label, size=11, anchor="end"))
    parts.append(text(left, 36, unit, size=11))
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [(left + x_scale * x, height - bottom - y_scale * y) for x, y in line]
        parts += _dots(places, colour) if markers else [_path(places, colour)]
        x = left + 130 + 150 * number
        parts.append(f"<rect x='{x}' y='28' width='10' height='10' fill='{colour}'/>")
        parts.append(text(x + 15, 37, name, size=11))
    return document(width, height, parts, label=title)


def _path(places: Sequence[tuple[float, float]], colour: str) -> str:
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f"<polyline points='{joined}' fill='none' stroke='{colour}' stroke-width='1.6'/>"


def _dots(places: Sequence[tuple[float, float]], colour: str) -> list[str]:
    return [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{colour}'/>" for x, y in places]


def round_up(value: float) -> float:
    """Return the next larger round number: the end of an axis whose quarters are readable."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** (len(f"{int(value)}") - 1) if value >= 1 else 10.0 ** -len(str(int(1 / value)))
    return next(step * unit for step in (1, 1.2, 1.6, 2, 3, 4, 6, 8, 10, 20, 40, 100) if step * unit >= value)


def _figure(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
