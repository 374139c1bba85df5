"""The HTTP door. `build` makes one FastAPI application of the routes of every API."""

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.api import native, readiness, swagger_ui
from deployments.api.access import GuardedApp
from deployments.api.bodies import Bodies
from deployments.api.draining import CountedInFlight
from deployments.api.openai.routes import routes as openai_routes
from deployments.api.refusals import contract_response, refusal, unforeseen
from deployments.contract.errors import WhisperServeError
from deployments.http_errors import is_openai_path
from deployments.keys import Keys
from deployments.proxy_uploads import ReportedBodies
from deployments.router.router import Router


def build(router: Router, keys: Keys | None = None) -> GuardedApp:
    """The routes over a router's methods.

    keys: that callers need; None: everybody may call

    A failure outside any API's own routes, as of an unknown path, is answered in OpenAI's form
    where OpenAI's clients ask, and otherwise in the native form.
    """
    app = GuardedApp(
        keys=keys or Keys(stated=True),
        allowed_origins=router.args.allowed_origins,
        title="Whisper",
        summary="OpenAI's Whisper: audio in; segments, words, language and text out.",
        # A redirect has no body, and `curl` does not follow it.
        redirect_slashes=False,
        # FastAPI's own pages load their scripts from a public CDN.
        docs_url=None,
        redoc_url=None,
    )
    bodies = Bodies(router)
    app.include_router(native.routes(router, bodies))
    app.include_router(openai_routes(router, bodies))
    app.include_router(readiness.routes(router))
    app.include_router(swagger_ui.routes())
    app.add_middleware(_HeadAsGet)
    app.add_middleware(ReportedBodies)
    app.add_middleware(CountedInFlight, router)

    @app.exception_handler(HTTPException)
    async def answer_http_error(request: Request, error: HTTPException) -> JSONResponse:
        kind = error.detail.lower().replace(" ", "_")
        headers = dict(error.headers or {})
        text = error.detail
        if error.status_code == 404:
            prefix = request.scope.get("root_path", "")
            text = f"Not found: GET {prefix}{swagger_ui.PATH} lists the routes"
            if is_openai_path(request.scope["path"]):
                text += f"; the base URL of OpenAI's clients ends with {prefix}/v1"
        elif error.status_code == 405:
            methods = {method.strip() for method in headers["Allow"].split(",")}
            if "GET" in methods:
                methods.add("HEAD")
            headers["Allow"] = ", ".join(sorted(methods))
            text = f"Method not allowed: this route takes {headers['Allow']}"
        return refusal(request.scope, error.status_code, text, kind, headers=headers)

    @app.exception_handler(WhisperServeError)
    async def answer_failure(request: Request, error: WhisperServeError) -> Response:
        return contract_response(request.scope, error)

    @app.exception_handler(Exception)
    async def answer_unforeseen(request: Request, raised: Exception) -> JSONResponse:
        return unforeseen(request, raised)

    return app


class _HeadAsGet:
    """ASGI middleware that answers HEAD as GET is answered, without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self._app({**scope, "method": "GET"}, receive, send_without_body)
