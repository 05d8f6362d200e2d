"""GET /v1/requests and DELETE /v1/requests/{id}: a key's requests that are under way."""

import time

from starlette.requests import Request
from starlette.responses import Response

from server.api.encoding import json_response
from server.api.errors import ApiError, describe
from server.api.requests import server_state
from server.middleware import request_context
from server.open_requests import OpenRequest, Progress


def register(request: Request, progress: Progress) -> None:
    """Let the caller see and end a request until it is answered."""
    context = request_context(request)
    remove = server_state(request).open_requests.add(
        OpenRequest(
            id=context.request_id,
            endpoint=request.scope["path"],
            tenant=context.tenant,
            progress=progress,
            created=time.time(),
        )
    )
    context.on_end.append(remove)


async def list_requests(request: Request) -> Response:
    """List the requests of this key that are under way."""
    found = server_state(request).open_requests.describe(request_context(request).tenant)
    return json_response({"object": "list", "data": found})


async def cancel_request(request: Request) -> Response:
    """End a request of this key, whose answer ends with an error."""
    request_id = request.path_params["request_id"]
    if not server_state(request).open_requests.cancel(request_id, request_context(request).tenant):
        message = f"no request {describe(request_id)} of this key is under way; its id is x-request-id"
        raise ApiError(404, message, code="request_not_found")
    return json_response({"id": request_id, "object": "request", "cancelled": True})
