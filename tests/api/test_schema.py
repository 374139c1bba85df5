"""The application keeps what its OpenAPI description says, whatever schemathesis sends to it."""

import base64
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import CheckContext, Config, Response
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from deployments import api
from deployments.replica.transcript import SlotUse
from tests.conftest import PROFILE
from tests.support import handles
from tests.support.handles import Handle, events, transcript
from tests.support.routers import router
from tests.support.security_headers import missing


def security_headers(
    context: CheckContext, response: Response, case: schemathesis.Case[Any]
) -> None:
    assert missing({name: values[0] for name, values in response.headers.items()}) == []


CHECKS = [
    security_headers,
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
# The fields that hold a recording or its address.
SOURCES = {"file", "url", "audio_url", "audio", "audio_base64"}
FILE = Path(api.__file__).with_name("example.ogg").read_bytes()
HANDLE = Handle(
    stream=[events(transcript())], slots=[handles.Response([SlotUse(8, 0, 0)])]
)
# Every value of every field by itself takes half a minute.
CONFIG = Config.from_dict({"phases": {"coverage": {"enabled": PROFILE == "slow"}}})
APP = api.build(router(HANDLE))
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", APP, config=CONFIG)


@SCHEMA.parametrize()
@settings(suppress_health_check=list(HealthCheck))
def test_an_answer_is_of_a_documented_status_type_and_schema(
    case: schemathesis.Case[Any],
) -> None:
    case.body = with_recording(case.body, case.media_type)
    case.call_and_validate(checks=CHECKS)


def with_recording(body: Any, media_type: str | None) -> Any:
    """A body with a recording in place of a random text, so that some requests succeed.

    No address is left in the body: a test downloads nothing.
    """
    if not isinstance(body, dict):
        return body
    others = {
        name: value
        for name, value in body.items()
        if name not in SOURCES or not isinstance(value, str)
    }
    if media_type != "application/json":
        return others | {"file": FILE}
    name = "audio_base64" if "audio_base64" in body else "file"
    return others | {name: base64.b64encode(FILE).decode()}
