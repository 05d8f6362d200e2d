"""Pages for people: the playground and /docs, and the files that they need, our own or vendored."""

import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

_FOLDER = Path(__file__).parent.parent / "static"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'{styles}; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'{more}"
)
"""No script but from files of ours, nothing from another host."""

_PLAYGROUND_POLICY = _POLICY.format(
    styles="", more="; require-trusted-types-for 'script'; trusted-types dompurify"
)
_DOCS_POLICY = _POLICY.format(styles=" 'unsafe-inline'", more="")
"""Swagger UI styles its elements in place."""


async def show_playground(request: Request) -> Response:  # noqa: ARG001 - the signature of an endpoint
    """Return the page on which people try the model; with keys it asks for one."""
    return _page("index.html", _PLAYGROUND_POLICY)


async def show_docs(request: Request) -> Response:  # noqa: ARG001 - the signature of an endpoint
    """Return the page that shows /openapi.json and sends requests; with keys it asks for one."""
    return _page("docs.html", _DOCS_POLICY)


def _page(name: str, policy: str) -> Response:
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return FileResponse(_FOLDER / name, headers=headers)


class _PageFiles(StaticFiles):
    """Files that browsers ask about before they use a copy, so that no page mixes two versions."""

    def file_response(
        self,
        full_path: "str | os.PathLike[str]",
        stat_result: os.stat_result,
        scope: MutableMapping[str, Any],
        status_code: int = 200,
    ) -> Response:
        """Return the file, or 304 where the browser has it."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["cache-control"] = "no-cache"
        response.headers["x-content-type-options"] = "nosniff"
        return response


def static_files() -> StaticFiles:
    """Return the application that serves the pages' files."""
    return _PageFiles(directory=_FOLDER)
