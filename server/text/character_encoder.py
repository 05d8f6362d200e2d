"""CharacterEncoder: one token per character, as small nanoGPT models have it."""

from collections.abc import Sequence

from server.text.errors import TextError


class CharacterEncoder:
    """Looks up characters; a vocabulary of a few dozen is the rule, so an unknown one is an error."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._token_ids = {token: token_id for token_id, token in enumerate(tokens)}

    is_linear = True
    spells_all = True  # or encode() raises

    def first_lost(self, text: str) -> str | None:  # noqa: ARG002 - the signature of an encoder
        """Return None: no text loses a character."""
        return None

    def encode(self, text: str) -> list[int]:
        """Return one id per character; raises TextError naming the first that the vocabulary lacks."""
        try:
            return [self._token_ids[character] for character in text]
        except KeyError:
            offset, unknown = next((i, c) for i, c in enumerate(text) if c not in self._token_ids)
            raise TextError(
                f"the character U+{ord(unknown):04X} at offset {offset} is not one of the "
                f"{len(self._token_ids)} characters that this model knows"
            ) from None
