"""What the endpoints read from a request besides its body."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from starlette.requests import Request

from server.api.body import JsonObject, parse_json_object, read_body, run_sized
from server.api.errors import ApiError, describe
from server.api.schemas import BodyT, ParsedBody, parse_body
from server.serving import ServedModel, ServerState

_BYTES_PER_TOKENISED_BYTE = 8  # of a text, its tokens and the answer that lists them

Translate = Callable[[JsonObject], Mapping[str, object]]
"""From the fields of another API to ours; raises RequestError."""


def server_state(request: Request) -> ServerState:
    """Return the state that create_app was given."""
    state = request.app.state.server
    assert isinstance(state, ServerState)
    return state


def is_strict(request: Request) -> bool:
    """Return whether the client wants warnings to be errors; raises ApiError for a value but 0 and 1."""
    value = request.headers.get("x-strict", "0")
    if value not in ("0", "1"):
        message = f"X-Strict must be 0 or 1, got {describe(value)}"
        raise ApiError(400, message, param="X-Strict", code="invalid_value")
    return value == "1"


def check_model_name(name: str | None, model: ServedModel) -> None:
    """Raise ApiError 404 for another model than the served one; none means the served one."""
    if name is not None and name != model.name:
        message = f"the model {describe(name)} does not exist; this server has {describe(model.name)}"
        raise ApiError(404, message, param="model", code="model_not_found")


def unchanged(fields: JsonObject) -> Mapping[str, object]:
    """Return the fields."""
    return fields


def parse_request(
    raw: bytes, schema: type[BodyT], model: ServedModel, *, strict: bool, translate: Translate = unchanged
) -> ParsedBody[BodyT]:
    """Parse and check the body of a request to `model`; raises ApiError or RequestError."""
    parsed = parse_body(schema, translate(parse_json_object(raw)), strict=strict)
    check_model_name(parsed.body.model, model)
    return parsed


@asynccontextmanager
async def reading(
    request: Request, schema: type[BodyT], *, translate: Translate = unchanged
) -> AsyncIterator[ParsedBody[BodyT]]:
    """Read a request that generates nothing, and count what it holds until the block ends.

    Raises ApiError or RequestError.
    """
    state = server_state(request)
    model, strict = state.loaded_model(), is_strict(request)
    with state.bodies.holding() as held:
        raw = await read_body(request, held, max_size=state.limits.max_body_size)
        held.grow_to(_BYTES_PER_TOKENISED_BYTE * len(raw))
        yield await run_sized(
            len(raw), lambda: parse_request(raw, schema, model, strict=strict, translate=translate)
        )
