"""Pages for people: /docs, and the files that pages need, all of them our own or vendored."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

_FOLDER = Path(__file__).parent.parent / "static"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""No script but from files of ours; Swagger UI styles its elements in place."""


async def show_docs(request: Request) -> Response:  # noqa: ARG001 - the signature of an endpoint
    """Return the page that shows /openapi.json and sends requests; with keys it asks for one."""
    headers = {"content-security-policy": _POLICY, "x-content-type-options": "nosniff"}
    return FileResponse(_FOLDER / "docs.html", headers=headers)


def static_files() -> StaticFiles:
    """Return the application that serves the pages' files."""
    return StaticFiles(directory=_FOLDER)
