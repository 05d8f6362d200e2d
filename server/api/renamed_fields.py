"""Errors and warnings about fields of a chat completion, in the words of the API that was spoken."""

from collections.abc import Mapping
from types import MappingProxyType

from engine.interface.errors import RequestError
from server.api.known_fields import FieldWarning

NO_NAMES: Mapping[str, str] = MappingProxyType({})


def renamed(error: RequestError, names: Mapping[str, str]) -> RequestError:
    """Return the error with the field's name in `names`, from chat's to the other API's, if it has another.

    A name that begins with a dot is of a member anywhere in the path of a field.
    """
    if error.param is None:
        return error
    message, param = _rename(str(error), error.param, names)
    return RequestError(message, param=param, code=error.code)


def renamed_warnings(
    warnings: tuple[FieldWarning, ...], names: Mapping[str, str]
) -> tuple[FieldWarning, ...]:
    """Return the warnings with the fields' names, as renamed() does."""
    pairs = [_rename(warning.message, warning.param, names) for warning in warnings]
    return tuple([FieldWarning(param=param, message=message) for message, param in pairs])


def _rename(message: str, param: str, names: Mapping[str, str]) -> tuple[str, str]:
    for chat, theirs in names.items():
        is_member = chat.startswith(".") and chat in param
        if is_member or param == chat or param.startswith((f"{chat}.", f"{chat}[")):
            message, param = message.replace(chat, theirs), param.replace(chat, theirs, 1)
    return message, param
