"""A client that disconnects ends the work on its request, however far the answer has come."""

import asyncio
from typing import Any

import pytest
from starlette.types import Message

from deployments import api
from deployments.api.disconnect import cancel_on_disconnect
from deployments.contract.errors import RequestCancelledError
from tests.support.handles import FOREVER, Handle, events, transcript
from tests.support.routers import AUDIO, router


async def stays() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def leaves() -> Message:
    return {"type": "http.disconnect"}


async def test_work_of_a_client_that_stays_gives_its_result() -> None:
    assert await cancel_on_disconnect(stays, asyncio.sleep(0, "done")) == "done"


async def test_work_is_ended_before_its_cancellation_is_raised() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    with pytest.raises(RequestCancelledError):
        await cancel_on_disconnect(leaves, work())
    assert ended == [True]


@pytest.mark.parametrize("path", ["/transcribe", "/v1/audio/transcriptions"])
async def test_nothing_is_left_of_a_stream_whose_client_leaves_at_its_first_byte(
    path: str,
) -> None:
    handle = Handle(stream=[events(transcript(), delay_s=FOREVER)])
    app = api.build(router(handle, running=0))
    parts = {"file": (AUDIO / "jfk-phone.wav").read_bytes(), "stream": b"true"}
    body = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
        % (name.encode(), content)
        for name, content in parts.items()
    )
    incoming: asyncio.Queue[Message] = asyncio.Queue()
    incoming.put_nowait(
        {"type": "http.request", "body": body + b"--x--\r\n", "more_body": False}
    )

    async def send(message: Message) -> None:
        assert message["type"] == "http.response.start"
        incoming.put_nowait({"type": "http.disconnect"})
        await asyncio.Event().wait()

    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(b"content-type", b"multipart/form-data; boundary=x")],
    }
    before = asyncio.all_tasks()
    await app(scope, incoming.get, send)
    assert asyncio.all_tasks() == before
