"""TextError: text that no tokenizer can take."""

from engine.interface.errors import RequestError


class TextError(RequestError):
    """Text that cannot become token ids; the message never repeats the text, only where it fails."""
