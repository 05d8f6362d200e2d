"""JSON as the server writes it: compact, UTF-8."""

import json

from starlette.responses import Response

encode_string = json.encoder.encode_basestring
"""A str as a JSON string literal, in one call into C."""


def to_json(value: object) -> bytes:
    """Return `value` as compact JSON; raises ValueError for NaN and infinity."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def json_response(body: object, status: int = 200) -> Response:
    """Return `body` as a JSON answer."""
    return Response(to_json(body), status, media_type="application/json")
