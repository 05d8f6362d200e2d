"""create_app: the endpoints, their errors, and what surrounds them."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from engine.interface.errors import DraftlineError
from server.api import operations
from server.api.chat import create_chat_completion
from server.api.completions import create_completion
from server.api.errors import ApiError, describe, to_api_error
from server.api.responses.endpoint import create_response, delete_response, retrieve_response
from server.api.schemas import ChatCompletionRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from server.auth import KeyRing
from server.middleware import AuthMiddleware, RequestMiddleware
from server.serving import ServerState

_PAGES = {
    "/v1/models": operations.list_models,
    "/v1/models/{model:path}": operations.retrieve_model,
    "/tokenizer_info": operations.tokenizer_info,
    "/health": operations.health,
    "/ready": operations.ready,
    "/metrics": operations.metrics,
    "/version": operations.show_version,
}


def create_app(state: ServerState, *, keys: KeyRing, cors_origins: Sequence[str] = ()) -> FastAPI:
    """Return the ASGI application that serves what `state` holds, once it holds a model."""
    app = FastAPI(
        title="draftline",
        version=operations.installed_version(),
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        redirect_slashes=False,
    )
    app.state.server = state
    _add_routes(app)
    for error in (ApiError, DraftlineError, HTTPException):
        app.add_exception_handler(error, _answer_error)
    # The last one added is the outermost: a refusal must carry CORS headers and a request id too.
    app.add_middleware(AuthMiddleware, keys=keys)
    app.add_middleware(RequestMiddleware, metrics=state.metrics)
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(cors_origins),
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    return app


def _add_routes(app: FastAPI) -> None:
    app.post("/v1/completions", openapi_extra=_json_body(CompletionRequest))(create_completion)
    app.post("/v1/chat/completions", openapi_extra=_json_body(ChatCompletionRequest))(create_chat_completion)
    app.post("/v1/responses", openapi_extra=_any_json_body())(create_response)
    app.get("/v1/responses/{response_id}")(retrieve_response)
    app.delete("/v1/responses/{response_id}")(delete_response)
    app.post("/tokenize", openapi_extra=_json_body(TokenizeRequest))(operations.tokenize)
    app.post("/detokenize", openapi_extra=_json_body(DetokenizeRequest))(operations.detokenize)
    app.post("/v1/chat/completions/render", openapi_extra=_json_body(ChatCompletionRequest))(
        operations.render_chat_prompt
    )
    for path, endpoint in _PAGES.items():
        app.get(path)(endpoint)
        app.head(path, include_in_schema=False)(endpoint)


def _json_body(schema: type[BaseModel]) -> dict[str, Any]:
    """Describe the body to /docs; the endpoint reads it itself, so that every error has one shape."""
    content = {"application/json": {"schema": schema.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


def _any_json_body() -> dict[str, Any]:
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
    }


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):  # of the router: no such path, or not with this method
        error = ApiError(error.status_code, _explain(request, error), headers=error.headers)
    return to_api_error(error).response()


def _explain(request: Request, error: HTTPException) -> str:
    """Say which path or method there is not, and what there is."""
    path = describe(request.url.path)
    if error.status_code == 404:
        routes = {route.path for route in request.app.routes if isinstance(route, APIRoute)}
        return f"there is no {path} here; there is {', '.join(sorted(routes))}"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return f"{path} does not take {describe(request.method)}; it takes {allowed}"
    return str(error.detail)
