"""Fields that this endpoint does not honour: refused unless they ask for nothing, or warned about."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from engine.interface.errors import RequestError
from server.api.errors import describe, shorten
from server.api.limits import MAX_SHOWN_CHARS, MAX_WARNINGS

_UNSUPPORTED = "unsupported_parameter"

NOT_SUPPORTED: Mapping[str, tuple[object, ...]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
}
"""Known fields that are not honoured yet, and the values of each that ask for nothing; null always does."""

ELSEWHERE: Mapping[str, str] = {
    "best_of": "/v1/completions has it",
    "suffix": "/v1/completions has it",
    "prediction": "/v1/chat/completions has it",
    "tools": "/v1/chat/completions has it",
    "tool_choice": "/v1/chat/completions has it",
    "parallel_tool_calls": "/v1/chat/completions has it",
    "echo": "/v1/completions has it",
    "top_logprobs": "/v1/chat/completions has it; here logprobs is a number",
    "guided_grammar": "use structured_outputs.grammar, which is Lark",
    "grammar": "use structured_outputs.grammar, which is Lark",
    "ebnf": "use structured_outputs.grammar, which is Lark",
    "repeat_penalty": "use repetition_penalty",
}
"""Fields of the other endpoint or of other servers, refused with what to do: they change the answer."""

_ELSEWHERE_NO_OPS: Mapping[str, tuple[object, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "best_of": (1,),
    "suffix": ("",),
    "echo": (False,),
    "top_logprobs": (0,),
    "repeat_penalty": (1,),
}

NO_EFFECT: Mapping[str, str] = {
    "metadata": "metadata is not stored",
    "prompt_cache_key": "the prefix cache needs no key; cache_salt separates tenants",
    "prompt_cache_retention": "the prefix cache keeps what fits",
    "safety_identifier": "nobody reads it here",
    "verbosity": "the model does not know it",
}
"""Known fields that change nothing in the answer; each is a warning."""


@dataclass(frozen=True, kw_only=True)
class FieldWarning:
    """One entry of `warnings[]`."""

    param: str
    message: str


def refuse_unsupported(fields: Mapping[str, object], supported: Iterable[str]) -> None:
    """Raise RequestError for a field that asks for something which this endpoint cannot do."""
    refuse_where_set(fields, {name: NOT_SUPPORTED[name] for name in NOT_SUPPORTED.keys() - set(supported)})
    for name in fields.keys() & (ELSEWHERE.keys() - set(supported)):
        value = fields[name]
        if value is not None and not _asks_nothing(value, _ELSEWHERE_NO_OPS.get(name, ())):
            message = f"{name} is no field of this endpoint: {ELSEWHERE[name]}"
            raise RequestError(message, param=name, code=_UNSUPPORTED)


def refuse_where_set(fields: Mapping[str, object], refused: Mapping[str, tuple[object, ...]]) -> None:
    """Raise RequestError for a field of `refused` that is none of its values, which ask for nothing."""
    for name, no_ops in refused.items():
        value = fields.get(name)
        if value is not None and not _asks_nothing(value, no_ops):
            raise RequestError(
                f"{name} is not supported, got {describe(value)}", param=name, code=_UNSUPPORTED
            )


def warnings_about(names: Iterable[str], supported: Iterable[str]) -> tuple[FieldWarning, ...]:
    """Return the warnings for fields that are not `supported`, at most MAX_WARNINGS of them."""
    known = {*supported, *NOT_SUPPORTED, *NO_EFFECT}
    ignored = sorted(set(names) - known.difference(NO_EFFECT) - ELSEWHERE.keys())
    warnings = [_warning(name, known) for name in ignored[:MAX_WARNINGS]]
    if len(ignored) > MAX_WARNINGS:
        more = len(ignored) - MAX_WARNINGS + 1
        warnings[-1] = FieldWarning(param="...", message=f"{more} more fields had no effect")
    return tuple(warnings)


def _asks_nothing(value: object, no_ops: tuple[object, ...]) -> bool:
    # `True == 1` and `False == 0` in Python, not in JSON.
    return any(value == no_op and isinstance(value, bool) == isinstance(no_op, bool) for no_op in no_ops)


def _warning(name: str, known: set[str]) -> FieldWarning:
    if name in NO_EFFECT:
        return FieldWarning(param=name, message=f"{name} had no effect: {NO_EFFECT[name]}")
    message = f"{shorten(name)} is unknown and had no effect"
    close = get_close_matches(name[:MAX_SHOWN_CHARS], known, n=1, cutoff=0.75)
    if close:
        message += f"; did you mean {close[0]}?"
    return FieldWarning(param=shorten(name), message=message)
