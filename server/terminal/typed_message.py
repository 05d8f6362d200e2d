"""What the user types as one message: where it ends, and what its marks mean."""

_QUOTES = '"""'


def is_complete(text: str) -> bool:
    r"""Tell whether Enter sends `text`: not behind a trailing backslash or inside an opened `\"\"\"`."""
    stripped = text.strip()
    if stripped.startswith(_QUOTES):
        return len(stripped) >= 2 * len(_QUOTES) and stripped.endswith(_QUOTES)
    return not text.endswith("\\")


def without_marks(text: str) -> str:
    r"""Return the message that was typed: without the quotes around it and the backslashes at line ends."""
    stripped = text.strip()
    if stripped.startswith(_QUOTES) and is_complete(text):
        return stripped[len(_QUOTES) : -len(_QUOTES)].strip("\n")
    return stripped
