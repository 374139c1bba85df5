"""One GET with its redirects, over requests, which is given no more than it has to know.

requests and urllib3 normalise the URLs that they see. They are therefore told the origin alone, and
the connection sends path and query as they were given.
"""

import ipaddress
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import HTTPBasicAuth
from requests.cookies import get_cookie_header
from requests.structures import CaseInsensitiveDict
from urllib3 import exceptions as ux

from deployments.audio.download.limits import FetchLimits
from deployments.audio.download.url import HttpUrl
from deployments.audio.download.watchdog import Watchdog
from deployments.contract.errors import AudioUrlError

# urllib3 writes the URLs that it knows into debug lines and into its warning about malformed
# headers. Each of its loggers is silenced by itself, because RunPod's SDK sets their parent's level
# when it is imported.
for _module in ("connection", "connectionpool", "poolmanager", "util.retry"):
    logging.getLogger(f"urllib3.{_module}").setLevel(logging.ERROR)

# Where this project is published. Whoever publishes it sets its address here, once; hosts that want
# to know who fetches find it in the User-Agent.
PROJECT_URL = ""
USER_AGENT = f"whisper-serve (+{PROJECT_URL})" if PROJECT_URL else "whisper-serve"

_MAX_REDIRECTS = 20
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Answer:
    """The answer at the end of all redirects, with its body unread.

    headers_withheld: whether a redirect led to another origin, which did not get the caller's
        headers or the URL's credentials
    """

    response: requests.Response
    headers_withheld: bool

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.response.close()


class Session(requests.Session):
    """The session of one try. Every connection is watched, and .netrc is never read.

    Proxies and CA bundles come from the environment as usual; this machine's own servers are
    reached without a proxy.
    """

    def __init__(self, watchdog: Watchdog, limits: FetchLimits) -> None:
        super().__init__()
        self._watchdog = watchdog
        self._limits = limits
        self._adapter = _Adapter(watchdog)
        self.mount("http://", self._adapter)
        self.mount("https://", self._adapter)
        self.headers = CaseInsensitiveDict(
            {
                "User-Agent": USER_AGENT,
                "Accept": "*/*",
                # Audio gains nothing from a second compression.
                "Accept-Encoding": "identity",
            }
        )
        # requests reads .netrc unless `auth` is set.
        self.auth = _no_auth

    def fetch(
        self, url: HttpUrl, headers: Mapping[str, str], part: Mapping[str, str]
    ) -> Answer:
        """GET `url`.

        headers: the caller's, for the first origin alone
        part: headers that ask for a part of the file, for every host on the way

        Raises AudioUrlError, and what requests and urllib3 raise.
        """
        credentials, withheld = url.credentials, False
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._get(url, {**headers, **part}, credentials)
            # The text is the header's bytes as Latin-1, in which `strip` alone would take the last
            # byte of some letters of UTF-8 for a blank.
            location = response.headers.get("Location", "").strip(" \t")
            if not (response.is_redirect and location):
                return Answer(response, withheld)
            # The body of a redirect is not read, because it may be endless.
            response.close()
            left, url = url, url.follow(location)
            if _origin(url) != _origin(left):
                withheld = withheld or bool(headers or credentials)
                headers, credentials = {}, None
            credentials = url.credentials or credentials
        raise AudioUrlError(f"more than {_MAX_REDIRECTS} redirects")

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Keeps requests from following redirects: `fetch` does."""

    def _get(
        self,
        url: HttpUrl,
        headers: Mapping[str, str],
        credentials: tuple[str, str] | None,
    ) -> requests.Response:
        """One request, without its redirects: the one place where a host is contacted."""
        self._watchdog.check()
        request = self._prepared(url, headers, credentials)
        settings = self.merge_environment_settings(
            request.url, {}, stream=True, verify=None, cert=None
        )
        if _is_loopback(url):
            settings["proxies"] = {}
        connect_s = min(self._limits.connect_timeout_s, self._watchdog.remaining_s)
        self._adapter.target = url.target
        return self.send(
            request,
            timeout=(max(0.001, connect_s), self._limits.read_timeout_s),
            allow_redirects=False,
            **settings,
        )

    def _prepared(
        self,
        url: HttpUrl,
        headers: Mapping[str, str],
        credentials: tuple[str, str] | None,
    ) -> requests.PreparedRequest:
        all_headers = CaseInsensitiveDict(headers)
        # Whether a cookie belongs to this request may depend on the whole path.
        whole = requests.Request("GET", url.origin + url.target)
        cookies: Any = get_cookie_header(self.cookies, whole)  # type: ignore[no-untyped-call]
        if cookies:
            own = all_headers.get("Cookie")
            all_headers["Cookie"] = f"{own}; {cookies}" if own else cookies
        request = self.prepare_request(
            requests.Request("GET", f"{url.origin}/", headers=all_headers)
        )
        if credentials and "Authorization" not in all_headers:
            user, password = credentials
            HTTPBasicAuth(user.encode(), password.encode())(request)
        return request


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _origin(url: HttpUrl) -> tuple[str, str, int | None]:
    """Scheme, host and port, in the form in which two of them can be compared."""
    parts = urlsplit(requests.Request("GET", url.origin).prepare().url or "")
    return parts.scheme, parts.hostname or "", parts.port or _PORTS.get(parts.scheme)


def _is_loopback(url: HttpUrl) -> bool:
    _, host, _ = _origin(url)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class _Adapter(HTTPAdapter):
    """Connections that are watched, and that send `target` as it is.

    target: path and query of the request that is sent next
    """

    def __init__(self, watchdog: Watchdog) -> None:
        self.target = "/"
        self._watchdog = watchdog
        super().__init__(max_retries=0)

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        pool.ConnectionCls = _connection_class(
            type(pool).ConnectionCls, self, self._watchdog
        )
        return pool


def _connection_class(base: Any, adapter: _Adapter, watchdog: Watchdog) -> type[Any]:
    class Connection(base):
        def connect(self) -> None:
            try:
                super().connect()
            except TimeoutError as error:
                # urllib3 would report a TLS handshake that times out as a silent host.
                raise ux.ConnectTimeoutError() from error
            watchdog.watch(self.sock)

        def putrequest(self, method: str, url: str, *args: Any, **kwargs: Any) -> None:
            # `url` is the origin's root: "/", or to a proxy "http://host/".
            target = url.removesuffix("/") + adapter.target
            super().putrequest(method, target, *args, **kwargs)

    return Connection
