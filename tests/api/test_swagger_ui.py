"""`GET /docs` with no other host than this one.

The package fastapi-offline is relied on for two files of Swagger UI in its folder `static`, and for
the version of these files, which shows descriptions of OpenAPI 3.1.
"""

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
from starlette.testclient import TestClient

from deployments import api
from tests.support.handles import Handle
from tests.support.routers import router

PACKAGE_FILES = ["swagger-ui-bundle.js", "swagger-ui.css"]


def client(prefix: str = "") -> TestClient:
    return TestClient(api.build(router(Handle())), root_path=prefix)


def package_file(name: str) -> Path:
    spec = importlib.util.find_spec("fastapi_offline")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name("static") / name


def linked_files(page: str) -> list[str]:
    return re.findall(r'(?:src|href)="([^"]*)"', page)


@pytest.mark.parametrize("prefix", ["", "/speech", "/a/b"])
def test_below_any_prefix_the_page_finds_its_files_and_the_description(
    prefix: str,
) -> None:
    served = client(prefix)
    page = served.get(f"{prefix}/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    icon, *files = linked_files(page.text)
    assert icon == "data:,"
    assert len(files) == 3
    for file in files:
        # As a browser resolves it.
        address = urlsplit(urljoin(f"http://host{prefix}/docs", file))
        assert address.netloc == "host"
        assert served.get(address.path).status_code == 200
    start = served.get(f"{prefix}/docs/init.js").text
    [description] = re.findall(r'url: "([^"]*)"', start)
    address = urlsplit(urljoin(f"http://host{prefix}/docs", description))
    assert served.get(address.path).json()["openapi"].startswith("3.1")


def test_nothing_is_loaded_from_elsewhere_and_no_script_is_inline() -> None:
    served = client()
    page = served.get("/docs")
    texts = [page.text, served.get("/docs/init.js").text]
    for text in texts:
        assert not re.search(r"https?:|//[a-z]", re.sub(r"(?m)^// .*", "", text))
    assert re.findall(r"<script[^>]*>[^<]", page.text) == []
    assert "style=" not in page.text
    # Swagger UI would otherwise ask a validator on the internet.
    assert "validatorUrl: null" in texts[1]
    policy = page.headers["content-security-policy"].split("; ")
    assert policy[:5] == [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
    ]


@pytest.mark.parametrize("name", PACKAGE_FILES)
def test_the_packages_files_are_served_as_they_are(name: str) -> None:
    assert client().get(f"/docs/{name}").content == package_file(name).read_bytes()


def test_the_package_holds_the_swagger_ui_that_was_tried() -> None:
    assert importlib.metadata.version("fastapi-offline") == "1.7.7"
    bundle = package_file(PACKAGE_FILES[0]).read_text()
    assert "SwaggerUIBundle" in bundle
    assert "5.32.6" in bundle


def test_the_package_is_not_imported() -> None:
    check = (
        "import sys; from deployments.api import swagger_ui; swagger_ui.routes();"
        "sys.exit('fastapi_offline' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.mark.parametrize("path", ["/docs", "/docs/init.js", "/docs/swagger-ui.css"])
def test_a_browser_that_has_a_file_is_told_so(path: str) -> None:
    served = client()
    first = served.get(path)
    assert first.headers["cache-control"] == "no-cache"
    again = served.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    head = served.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(first.content))


@pytest.mark.parametrize(
    "path", ["/redoc", "/docs/redoc.standalone.js", "/docs/../docs/init.py"]
)
def test_nothing_else_of_the_package_is_served(path: str) -> None:
    assert client().get(path).status_code == 404
