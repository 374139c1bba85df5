"""Which POST requests came from another site's page."""

import pytest
from starlette.datastructures import Headers

from deployments.api.origins import may_post

LOCAL = "127.0.0.1:8000"


def allowed(
    *headers: tuple[str, str],
    origins: tuple[str, ...] = (),
    any_host: bool = False,
    host: str = LOCAL,
) -> bool:
    raw = [(name.encode(), value.encode()) for name, value in headers]
    return may_post(
        Headers(raw=[(b"host", host.encode()), *raw]), origins, any_host=any_host
    )


def from_page(origin: str) -> tuple[str, str]:
    return ("origin", origin)


def site(value: str) -> tuple[str, str]:
    return ("sec-fetch-site", value)


@pytest.mark.parametrize("host", [LOCAL, "speech.example.com", ""])
def test_a_client_that_is_no_browser_passes(host: str) -> None:
    assert allowed(host=host)


@pytest.mark.parametrize(
    ("value", "passes"),
    [
        ("same-origin", True),
        ("none", True),
        ("Same-Origin", True),
        ("same-site", False),
        ("cross-site", False),
        ("something-new", False),
        ("same-origin, cross-site", False),
    ],
)
def test_a_browser_says_how_the_page_relates_to_the_service(
    value: str, passes: bool
) -> None:
    assert allowed(site(value)) is passes
    assert allowed(site(value), from_page(f"http://{LOCAL}")) is passes


def test_a_header_that_comes_twice_fits_nothing() -> None:
    assert not allowed(site("same-origin"), site("cross-site"))
    own = from_page(f"http://{LOCAL}")
    assert not allowed(own, from_page("https://evil.example"))
    assert not allowed(own, own)


@pytest.mark.parametrize(
    ("origin", "host", "own"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000", True),
        ("http://127.0.0.1", "127.0.0.1:80", True),
        ("http://127.0.0.1:80", "127.0.0.1", True),
        ("https://127.0.0.1", "127.0.0.1", True),
        ("https://127.0.0.1:443", "127.0.0.1", True),
        ("http://[::1]:8000", "[::1]:8000", True),
        ("HTTP://LOCALHOST:8000", "localhost:8000", True),
        ("http://127.0.0.1:8001", "127.0.0.1:8000", False),
        ("http://127.0.0.1", "127.0.0.1:8000", False),
        ("https://127.0.0.1", "127.0.0.1:80", False),
        ("http://localhost:8000", "127.0.0.1:8000", False),
        ("http://evil.example:8000", "127.0.0.1:8000", False),
        ("http://127.0.0.1:8000@evil.example", "127.0.0.1:8000", False),
        ("http://evil.example@127.0.0.1:8000", "127.0.0.1:8000", False),
        ("http://127.0.0.1:8000/", "127.0.0.1:8000", False),
        ("http://127.0.0.1:99999", "127.0.0.1:8000", False),
        ("null", "127.0.0.1:8000", False),
        ("null", "null", False),
        ("file://", "", False),
        ("nonsense", "nonsense", False),
        ("http://[", "[", False),
    ],
)
def test_without_that_header_the_origin_has_to_be_the_services_own(
    origin: str, host: str, own: bool
) -> None:
    assert allowed(from_page(origin), host=host) is own


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("localhost:8000", True),
        ("localhost.:8000", True),
        ("whisper.localhost", True),
        ("127.0.0.1:8000", True),
        ("192.168.1.5", True),
        ("[fd00::2]:8000", True),
        ("page.example:9000", True),
        ("rebound.example:8000", False),
        ("localhost.rebound.example", False),
        ("127.0.0.1.rebound.example", False),
        ("2130706433.", False),
        ("", False),
    ],
)
def test_a_name_that_nobody_gave_the_service_is_a_rebound_one(
    host: str, known: bool
) -> None:
    origins = ("https://page.example",)
    own = from_page(f"http://{host}")
    assert allowed(own, origins=origins, host=host) is known
    assert allowed(own, site("same-origin"), origins=origins, host=host) is known


def test_keys_protect_a_service_of_any_name() -> None:
    host = "speech.example.com"
    own = from_page(f"https://{host}")
    assert allowed(own, host=host, any_host=True)
    assert not allowed(from_page("https://evil.example"), host=host, any_host=True)


@pytest.mark.parametrize("value", ["cross-site", "same-site", ""])
def test_an_allowed_page_passes_and_no_other(value: str) -> None:
    origins = ("https://page.example", "app://obsidian.md")
    fetch = [site(value)] if value else []
    for origin in origins:
        assert allowed(from_page(origin), *fetch, origins=origins)
        assert allowed(from_page(origin), *fetch, origins=origins, host="any.example")
    for origin in ("https://page.example.evil", "http://page.example", "null"):
        assert not allowed(from_page(origin), *fetch, origins=origins)
        assert allowed(from_page(origin), *fetch, origins=("*",))
