"""What belongs to each HTTP request from its beginning: its id, and the statuses of its errors."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.api.openai import errors
from deployments.http_errors import REQUEST_ID_HEADER, is_openai_path
from deployments.router.request_log import native_status, status_of, valid_request_id


class RequestContext:
    """ASGI middleware that gives each request a valid id, in its header `x-request-id`.

    An id that is made here is repeated in the answer. Serve's proxy repeats all others.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status_of.set(
            errors.status_of if is_openai_path(scope["path"]) else native_status
        )
        scope = {**scope, "headers": list(scope["headers"])}
        headers = MutableHeaders(scope=scope)
        given = headers.get(REQUEST_ID_HEADER)
        request_id = valid_request_id(given)
        headers[REQUEST_ID_HEADER] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": list(message.get("headers", []))}
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        await self._app(scope, receive, send if given is not None else send_with_id)
