"""What /openapi.json and /docs say of each operation: parameters, bodies, answers and their errors."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ERRORS = {
    400: "A field that cannot be honoured: its name, value and limit.",
    401: "No key, or one that is not known.",
    403: "The host that the request is for is none of this server's.",
    404: "There is no such model or response, or the server was started without the endpoint.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "The queue is full; Retry-After says when to come back.",
    500: "The server failed.",
    503: "The server loads, drains, or its engine is dead.",
}
_OF_BODIES = (400, 401, 403, 404, 408, 413, 415, 429, 500, 503)
_OF_PAGES = (401, 403, 404, 500, 503)
_OBJECT: Mapping[str, Any] = {"type": "object"}
RANGES: Mapping[str, Mapping[str, float]] = {
    "max_tokens": {"minimum": -1},
    "max_completion_tokens": {"minimum": -1},
    "min_tokens": {"minimum": 0},
    "temperature": {"minimum": 0, "maximum": 2},
    "top_p": {"exclusiveMinimum": 0, "maximum": 1},
    "top_k": {"minimum": -1},
    "min_p": {"minimum": 0, "maximum": 1},
    "typical_p": {"exclusiveMinimum": 0, "maximum": 1},
    "presence_penalty": {"minimum": -2, "maximum": 2},
    "frequency_penalty": {"minimum": -2, "maximum": 2},
    "repetition_penalty": {"minimum": 0.01, "maximum": 10},
    "dimensions": {"minimum": 1},
    "n": {"minimum": 1, "maximum": 128},
    "best_of": {"minimum": 1, "maximum": 128},
    "logprobs": {"minimum": 0, "maximum": 100},
    "top_logprobs": {"minimum": 0, "maximum": 100},
    "prompt_logprobs": {"minimum": 0, "maximum": 100},
    "seed": {"minimum": -(2**63), "maximum": 2**63 - 1},
}
"""What the engine's records check, with errors of their own, said again for /docs; a test compares them."""


def with_ranges(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of a body with the ranges of its numbers."""
    properties = {name: {**member, **RANGES.get(name, {})} for name, member in schema["properties"].items()}
    return {**schema, "properties": properties}


def posting(schema: type[BaseModel] | None, *, streams: bool = False) -> dict[str, Any]:
    """Describe an operation with a JSON body of `schema`; with `streams` it may answer in events."""
    body = dict(_OBJECT) if schema is None else with_ranges(schema.model_json_schema())
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": _responses(
            _OF_BODIES, {"text/event-stream": {"schema": {"type": "string"}}} if streams else {}
        ),
        "security": [{"bearer": []}, {}],
    }


def page(path: str) -> dict[str, Any]:
    """Describe an operation without a body."""
    names = [part.strip("{}").partition(":")[0] for part in path.split("/") if part.startswith("{")]
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
    ]
    plain = {"text/plain": {"schema": {"type": "string"}}} if path == "/metrics" else {}
    return {
        "parameters": parameters,
        "responses": _responses(_OF_PAGES, plain),
        "security": [{"bearer": []}, {}],
    }


def describe_with_keys(app: FastAPI) -> None:
    """Let /openapi.json say how a key is sent."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            schemes = {"bearer": {"type": "http", "scheme": "bearer"}}
            schema.setdefault("components", {})["securitySchemes"] = schemes
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's documented way


def _responses(statuses: tuple[int, ...], more: Mapping[str, Any]) -> dict[str, Any]:
    error = {"application/json": {"schema": ERROR_SCHEMA}}
    described: dict[str, Any] = {
        str(status): {"description": _ERRORS[status], "content": error} for status in statuses
    }
    return {
        **described,
        "200": {"description": "The answer.", "content": {"application/json": {"schema": _OBJECT}, **more}},
    }
