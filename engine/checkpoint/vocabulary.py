"""The bytes of every token, and GPT-2's printable alphabet that vocabularies are written in."""

from collections.abc import Mapping

from engine.checkpoint.checkpoint import TokenizerData
from engine.interface.errors import CheckpointError

NUM_BYTES = 256


def printable_bytes() -> dict[str, int]:
    """Return GPT-2's alphabet: one printable character for each byte.

    Bytes that Latin-1 prints visibly stand for themselves; the others take the characters from U+0100 on.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = (byte for byte in range(NUM_BYTES) if byte not in visible)
    alphabet = {chr(byte): byte for byte in visible}
    alphabet.update((chr(NUM_BYTES + place), byte) for place, byte in enumerate(hidden))
    return alphabet


def token_bytes(data: TokenizerData) -> tuple[bytes, ...]:
    """Return the bytes of each token by id; raises CheckpointError for a token that has none."""
    alphabet = printable_bytes() if data.kind == "bpe" else {}
    plain_text_ids = data.special_token_ids | data.added_token_ids
    return tuple(
        _encode_text(token, token_id)
        if data.kind == "char" or token_id in plain_text_ids
        else _spell(token, token_id, alphabet)
        for token_id, token in enumerate(data.tokens)
    )


def _spell(token: str, token_id: int, alphabet: Mapping[str, int]) -> bytes:
    try:
        return bytes([alphabet[character] for character in token])
    except KeyError:
        return _encode_text(token, token_id)  # not in the alphabet, so no merge makes it: it is plain text


def _encode_text(token: str, token_id: int) -> bytes:
    try:
        return token.encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(
            f"token {token_id} of the vocabulary holds the lone surrogate "
            f"U+{ord(token[error.start]):04X}, which is no text"
        ) from error
