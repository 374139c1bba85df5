"""A client that disconnects ends the work on its request, however far the answer has come."""

import asyncio

import pytest

from deployments import api
from deployments.api.disconnect import cancel_on_disconnect
from deployments.contract.errors import RequestCancelledError
from tests.support.asgi import (
    LEAVES,
    Connection,
    LeavingConnection,
    body_message,
    http_scope,
)
from tests.support.handles import FOREVER, Handle, events, transcript
from tests.support.routers import AUDIO, router


async def test_work_of_a_client_that_stays_gives_its_result() -> None:
    assert (
        await cancel_on_disconnect(Connection().receive, asyncio.sleep(0, "done"))
        == "done"
    )


async def test_work_is_ended_before_its_cancellation_is_raised() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    with pytest.raises(RequestCancelledError):
        await cancel_on_disconnect(Connection(LEAVES).receive, work())
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
    connection = LeavingConnection(body_message(body + b"--x--\r\n"))
    content_type = ("content-type", "multipart/form-data; boundary=x")
    scope = http_scope("POST", path, [content_type])
    before = asyncio.all_tasks()
    await app(scope, connection.receive, connection.send)
    # The decoder of a request that has been left is killed, and its end is waited for.
    async with asyncio.timeout(30):
        while asyncio.all_tasks() != before:
            await asyncio.sleep(0.01)
