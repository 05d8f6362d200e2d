"""create_app: the endpoints, their errors, and what surrounds them."""

from collections.abc import Sequence

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from engine.interface.errors import DraftlineError
from engine.interface.version import installed_version
from server.api import operations
from server.api.attention import show_attention
from server.api.cache_lookup import look_up_cache
from server.api.chat import create_chat_completion
from server.api.completions import create_completion
from server.api.distribution import create_distribution
from server.api.embeddings import create_embeddings
from server.api.errors import ANTHROPIC_PATH, ApiError, describe, to_api_error
from server.api.messages.endpoint import count_message_tokens, create_message
from server.api.openapi import describe_with_keys, page, posting
from server.api.pages import show_docs, show_playground, static_files
from server.api.responses.endpoint import create_response, delete_response, retrieve_response
from server.api.schemas import (
    AttentionRequest,
    CacheLookupRequest,
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    DistributionRequest,
    EmbeddingRequest,
    TokenizeRequest,
)
from server.api.under_way import cancel_request, list_requests
from server.auth import DOCS_PATH, PLAYGROUND_PATH, STATIC_PATH, KeyRing
from server.middleware import AuthMiddleware, HostMiddleware, RequestMiddleware
from server.quota import RATE_LIMIT_HEADERS
from server.serving import ServerState
from server.tracing import Tracing

_PAGES = {
    "/v1/models": operations.list_models,
    "/v1/models/{model:path}": operations.retrieve_model,
    "/v1/responses/{response_id}": retrieve_response,
    "/v1/requests": list_requests,
    "/tokenizer_info": operations.tokenizer_info,
    "/health": operations.health,
    "/ready": operations.ready,
    "/metrics": operations.metrics,
    "/version": operations.show_version,
}


def create_app(
    state: ServerState,
    *,
    keys: KeyRing,
    cors_origins: Sequence[str] = (),
    allowed_hosts: Sequence[str] = (),
    tracing: Tracing | None = None,
) -> FastAPI:
    """Return the ASGI application that serves what `state` holds, once it holds a model.

    Without `allowed_hosts` it answers for any host.
    """
    app = FastAPI(
        title="draftline",
        version=installed_version(),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.server = state
    _add_routes(app)
    for error in (ApiError, DraftlineError, HTTPException):
        app.add_exception_handler(error, _answer_error)
    # The last one added is the outermost: a refusal must carry CORS headers and a request id too.
    app.add_middleware(AuthMiddleware, keys=keys)
    if allowed_hosts:
        app.add_middleware(HostMiddleware, allowed=allowed_hosts)
    app.add_middleware(RequestMiddleware, metrics=state.metrics, tracing=tracing)
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(cors_origins),
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after", *RATE_LIMIT_HEADERS],
        )
    return app


def _add_routes(app: FastAPI) -> None:
    streamed, chat = True, "/v1/chat/completions"
    for path, schema, streams, endpoint in (
        ("/v1/completions", CompletionRequest, streamed, create_completion),
        (chat, ChatCompletionRequest, streamed, create_chat_completion),
        (f"{chat}/render", ChatCompletionRequest, not streamed, operations.render_chat_prompt),
        ("/v1/responses", None, streamed, create_response),
        (ANTHROPIC_PATH, None, streamed, create_message),
        (f"{ANTHROPIC_PATH}/count_tokens", None, not streamed, count_message_tokens),
        ("/v1/embeddings", EmbeddingRequest, not streamed, create_embeddings),
        ("/v1/distribution", DistributionRequest, not streamed, create_distribution),
        ("/v1/attention", AttentionRequest, not streamed, show_attention),
        ("/v1/cache/lookup", CacheLookupRequest, not streamed, look_up_cache),
        ("/tokenize", TokenizeRequest, not streamed, operations.tokenize),
        ("/detokenize", DetokenizeRequest, not streamed, operations.detokenize),
    ):
        app.post(path, openapi_extra=posting(schema, streams=streams))(endpoint)
    for path, page_endpoint in _PAGES.items():
        app.get(path, openapi_extra=page(path))(page_endpoint)
        app.head(path, include_in_schema=False)(page_endpoint)
    for path, show in ((PLAYGROUND_PATH, show_playground), (DOCS_PATH, show_docs)):
        app.add_api_route(path, show, methods=["GET", "HEAD"], include_in_schema=False)
    app.mount(STATIC_PATH, static_files())
    kept = "/v1/responses/{response_id}"
    app.delete(kept, openapi_extra=page(kept))(delete_response)
    under_way = "/v1/requests/{request_id}"
    app.delete(under_way, openapi_extra=page(under_way))(cancel_request)
    describe_with_keys(app)


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):  # of the router: no such path, or not with this method
        error = ApiError(error.status_code, _explain(request, error), headers=error.headers)
    return to_api_error(error).response(request.url.path)


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
