"""What a caller is answered where too many requests come, or harmful ones. No Ray, no port."""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from deployments import api
from deployments.api.access import GuardedApp
from deployments.keys import Keys
from tests.support.asgi import Answer, post
from tests.support.handles import FOREVER, Handle, Response, events, transcript
from tests.support.routers import AUDIO, RECORDING, router

KEYS = Keys.from_environment(
    {
        "API_KEYS": ",".join(
            f"{name}:{hashlib.sha256(name.encode()).hexdigest()}"
            for name in ("alice", "bob")
        )
    }
)
OPENAI = {"file": RECORDING["audio_base64"], "model": "base"}
PATHS = pytest.mark.parametrize(
    ("path", "body"),
    [("/transcribe", RECORDING), ("/v1/audio/transcriptions", OPENAI)],
)


async def sent(app: GuardedApp, path: str, body: dict[str, Any], key: str) -> Answer:
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    return await post(app, path, headers, [json.dumps(body).encode()])


@asynccontextmanager
async def busy(*keys: str, **limits: Any) -> AsyncIterator[GuardedApp]:
    """A service on which requests of these keys wait, behind one that is in work for ever."""
    work: list[Response] = [events(transcript(), delay_s=FOREVER)]
    handle = Handle(stream=work)
    app = api.build(router(handle, max_requests_per_model=1, **limits), KEYS)
    waiting = []
    for key in keys:
        waiting.append(asyncio.ensure_future(sent(app, "/transcribe", RECORDING, key)))
        while "stream" not in handle.calls:
            await asyncio.sleep(0.01)
    try:
        yield app
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


@PATHS
async def test_a_keys_own_limit_is_429_and_the_services_is_503(
    path: str, body: dict[str, Any]
) -> None:
    async with busy("alice", max_requests_per_key=1, max_waiting_requests=0) as app:
        answer = await sent(app, path, body, "alice")
    assert answer.status == 503
    async with busy("alice", max_requests_per_key=1, max_waiting_requests=5) as app:
        own = await sent(app, path, body, "alice")
    assert own.status == 429
    for refused in (answer, own):
        assert refused.headers["retry-after"] == "10"
    if path == "/transcribe":
        assert own.json() == {
            "error": "Too many requests of this API key wait for model 'base':"
            " let some of them end first",
            "type": "too_many_requests",
        }
    else:
        assert own.headers["x-should-retry"] == "true"
        error = own.json()["error"]
        assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
        assert error["param"] is None


@PATHS
async def test_a_recording_that_ends_replicas_is_not_to_be_sent_again(
    path: str, body: dict[str, Any]
) -> None:
    handle = Handle(stream=[events(ActorDiedError())])
    app = api.build(router(handle), KEYS)
    for calls in (2, 2):
        answer = await sent(app, path, body, "alice")
        assert handle.calls.count("stream") == calls
        assert "retry-after" not in answer.headers
        if path == "/transcribe":
            assert (answer.status, answer.json()["type"]) == (422, "harmful_audio")
        else:
            assert answer.headers["x-should-retry"] == "false"
            code = answer.json()["error"]["code"]
            assert (answer.status, code) == (400, "harmful_audio")
    handle.responses["stream"] = [events(transcript())]
    other = RECORDING | {"audio_base64": _base64("jfk.mp3")}
    assert (await sent(app, "/transcribe", other, "bob")).status == 200


async def test_the_description_tells_of_429_where_it_can_come() -> None:
    paths = api.build(router(Handle())).openapi()["paths"]
    for path in ("/transcribe", "/v1/audio/transcriptions", "/v1/audio/translations"):
        assert "429" in paths[path]["post"]["responses"]
    assert "429" not in paths["/v1/models"]["get"]["responses"]


def _base64(name: str) -> str:
    return base64.b64encode((AUDIO / name).read_bytes()).decode()
