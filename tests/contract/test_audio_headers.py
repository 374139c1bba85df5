"""Headers that a caller sends along with a download."""

import logging
from typing import Any

import pytest

from deployments.contract.request import parse_request
from tests.support.contract import URL, parse, refusal, refusal_of

TOKEN = {"Authorization": "Bearer SECRET"}


def test_headers_are_taken_as_they_are() -> None:
    headers = TOKEN | {"x-api-key": "a b\tc;=,", "Cookie": "", "X_y.z": "~"}
    assert parse(audio_headers=headers).audio_headers == headers


def test_a_line_break_at_the_end_of_a_secret_is_left_out() -> None:
    request = parse(audio_headers={"X-Key": " SECRET\r\n"})
    assert request.audio_headers == {"X-Key": "SECRET"}


def test_headers_may_be_json_in_a_text_as_forms_have_them() -> None:
    request = parse(audio_headers=' {"X-Key": "SECRET"}')
    assert request.audio_headers == {"X-Key": "SECRET"}
    for text in ('{"X-Key": ', "X-Key: SECRET", '{"A": 5}', "[]"):
        rule = "must be an object of strings"
        assert refusal_of(audio_headers=text).startswith(
            f"Invalid audio_headers: {rule}"
        )


def test_no_headers_are_as_good_as_none() -> None:
    assert parse(audio_headers={}).audio_headers == {}
    assert parse(audio_headers=None).audio_headers is None
    assert parse_request({"audio_base64": "AAAA", "audio_headers": {}})


LINE = "the value of a header must be ASCII characters on one line"
NAME = "the name of a header must be letters, digits and hyphens"
SIZE = "must be at most 20 headers of 16 KiB together"


@pytest.mark.parametrize(
    ("headers", "rule"),
    [
        ({"A": "SECRET\r\nHost: evil"}, LINE),
        ({"A": "SECRET\nx"}, LINE),
        ({"A": "SECRET\0"}, LINE),
        ({"A": "SECRET\u00e9"}, LINE),
        ({"A": "SECRET\ud800"}, LINE),
        ({"": "SECRET"}, NAME),
        ({"SECRET: x": "y"}, NAME),
        ({"SECRET\r\n": "y"}, NAME),
        ({"\u00e4": "SECRET"}, NAME),
        ({"A": "SECRET", "a": "SECRET"}, "a header is named twice"),
        ({f"A{i}": "SECRET" for i in range(21)}, SIZE),
        ({"A": "SECRET".ljust(16 << 10) + "x"}, SIZE),
    ],
)
def test_headers_that_http_does_not_carry_are_refused(
    headers: dict[str, str], rule: str
) -> None:
    assert refusal_of(audio_headers=headers) == f"Invalid audio_headers: {rule}"


@pytest.mark.parametrize(
    "name",
    [
        *("Host", "range", "If-Range", "if-none-match", "Expect", "Upgrade", "TE"),
        *("Content-Length", "Transfer-Encoding", "Accept-Encoding", "Trailer"),
        *("Connection", "Keep-Alive", "Proxy-Authorization"),
    ],
)
def test_headers_that_the_download_needs_for_itself_are_refused(name: str) -> None:
    assert (
        refusal_of(audio_headers={name: "SECRET"})
        == f"Invalid audio_headers: the header '{name.lower()}' is for the download itself to set"
    )


def test_headers_without_a_download_are_refused() -> None:
    assert (
        refusal({"audio_base64": "AAAA", "audio_headers": TOKEN})
        == "Invalid audio_headers: only a download has headers, and this request holds its file"
    )


def test_headers_are_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    payload: dict[str, Any] = {"audio": URL, "audio_headers": TOKEN}
    with caplog.at_level(logging.DEBUG):
        request = parse_request(payload)
        wrong = refusal(payload | {"audio_headers": TOKEN | {"A": 5}})
    for text in (
        repr(request),
        str(request),
        repr(request.options),
        wrong,
        caplog.text,
    ):
        assert "SECRET" not in text
