"""`GET /docs`: Swagger UI over the OpenAPI description, from files of this machine alone.

Swagger UI's script and its style sheet lie in the package fastapi-offline, which is pinned and
otherwise not used: it is not imported. tests/api/test_swagger_ui.py names what is relied on.

All URLs are relative to the page's, so it works below any prefix.
"""

import importlib.util
import os
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.staticfiles import StaticFiles

PATH = "/docs"

_OWN = Path(__file__).parent
_PACKAGE = "fastapi_offline"
_PACKAGE_FILES = ("swagger-ui-bundle.js", "swagger-ui.css")

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    # Browsers ask each time whether a file has changed, and get 304 if it has not.
    "Cache-Control": "no-cache",
}


def routes() -> APIRouter:
    """Raises ModuleNotFoundError if the package is not installed."""
    folder = _package_folder()
    files = {
        PATH: _OWN / "index.html",
        f"{PATH}/init.js": _OWN / "init.js",
        **{f"{PATH}/{name}": folder / name for name in _PACKAGE_FILES},
    }
    api = APIRouter()
    for path, file in files.items():
        api.add_api_route(path, _Served(file), include_in_schema=False)
    return api


def _package_folder() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "fastapi-offline is not installed: pip install -r requirements.txt"
        )
    return Path(spec.submodule_search_locations[0], "static")


class _Served:
    """A route's function that answers with a file, or 304 where the browser has it already."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files = StaticFiles(directory=path.parent)

    async def __call__(self, request: Request) -> Response:
        response = self._files.file_response(
            self._path, os.stat(self._path), request.scope
        )
        response.headers.update(_HEADERS)
        return response
