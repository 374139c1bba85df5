"""The application keeps what its OpenAPI description says, whatever schemathesis sends to it."""

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import CHECKS

from deployments import api
from deployments.replica.transcript import SlotUse
from tests.support.handles import Handle, Response, events, transcript
from tests.support.routers import router

HANDLE = Handle(stream=[events(transcript())], slots=[Response([SlotUse(8, 0, 0)])])
APP = api.build(router(HANDLE))
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", APP)


@SCHEMA.parametrize()
@settings(suppress_health_check=list(HealthCheck))
def test_an_answer_is_of_a_documented_status_type_and_schema(
    case: schemathesis.Case,
) -> None:
    case.call_and_validate(
        checks=CHECKS.get_by_names(
            [
                "not_a_server_error",
                "status_code_conformance",
                "content_type_conformance",
                "response_headers_conformance",
                "response_schema_conformance",
            ]
        )
    )
