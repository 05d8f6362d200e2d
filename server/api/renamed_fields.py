"""Errors about fields of a chat completion, in the words of the API that was spoken."""

from collections.abc import Mapping

from engine.interface.errors import RequestError


def renamed(error: RequestError, names: Mapping[str, str]) -> RequestError:
    """Return the error with the field's name in `names`, from chat's to the other API's, if it has another.

    A name that begins with a dot is of a member anywhere in the path of a field.
    """
    message, param = str(error), error.param
    if param is None:
        return error
    for chat, theirs in names.items():
        is_member = chat.startswith(".") and chat in param
        if is_member or param == chat or param.startswith((f"{chat}.", f"{chat}[")):
            message, param = message.replace(chat, theirs), param.replace(chat, theirs, 1)
    return RequestError(message, param=param, code=error.code)
