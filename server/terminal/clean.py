"""Text that nobody here wrote, made safe for a terminal: what a model or a foreign server says."""

_KEPT = "\n\t"
_CONTROLS = [*range(0x20), *range(0x7F, 0xA0)]  # C0, DEL and C1: all that a terminal may act on
_DROPPED: dict[int, int | None] = {code: None for code in _CONTROLS if chr(code) not in _KEPT}
_SURROGATES: dict[int, int | None] = dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)  # no encoding has them
_TEXT_TABLE = _DROPPED | _SURROGATES
_LINE_TABLE: dict[int, int | None] = {**dict.fromkeys(_CONTROLS, 0x20), **_SURROGATES}
_MAX_LINE_CHARS = 500


def clean_text(text: str) -> str:
    """Drop control characters but line feeds and tabs.

    Character by character, so that it does not matter how a text is cut: what is left of an escape sequence
    is its printable rest.
    """
    return text.translate(_TEXT_TABLE)


def clean_line(text: str, *, max_chars: int = _MAX_LINE_CHARS) -> str:
    """Return a text as one line of at most `max_chars` characters, control characters as spaces."""
    line = " ".join(text[: 4 * max_chars].translate(_LINE_TABLE).split())
    return line if len(line) <= max_chars else line[: max_chars - 1] + "…"
