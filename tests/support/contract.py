"""What the tests of the contract share."""

import math
from typing import Any

import pytest
from hypothesis import strategies as st

from deployments.contract.errors import InvalidRequestError
from deployments.contract.request import (
    TranscriptionRequest,
    parse_request,
)

URL = "https://example.com/speech.mp3"


FIELDS = list(TranscriptionRequest.model_fields)


def parse(**fields: Any) -> TranscriptionRequest:
    return parse_request({"audio": URL} | fields)


def refusal(payload: Any) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        parse_request(payload)
    return str(caught.value)


def refusal_of(**fields: Any) -> str:
    return refusal({"audio": URL} | fields)


NAN, INF = math.nan, math.inf


FINITE = st.floats(allow_nan=False, allow_infinity=False)


PLAIN_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
