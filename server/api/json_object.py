"""Json: an object of the wire while it is read or put together."""

from typing import Any, TypeAlias

from engine.interface.errors import RequestError
from server.api.errors import describe, shorten

Json: TypeAlias = dict[str, Any]


def optional_member(body: Json, name: str, kind: type, expected: str) -> Any:
    """Return a member of a body, None where there is none; raises RequestError if it is no `kind`."""
    value = body.get(name)
    if value is not None and not isinstance(value, kind):
        raise wrong_type(name, expected, value)
    return value


def wrong_type(where: str, expected: str, value: object) -> RequestError:
    """Return the error for a value that is not what is expected there."""
    return RequestError(f"{where} must be {expected}, got {describe(value)}", param=shorten(where))
