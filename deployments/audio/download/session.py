"""One GET with its redirects, over requests, which is given no more than it has to know.

requests and urllib3 normalise the URLs that they see. They are therefore told the origin alone, and
the connection sends path and query as they were given.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import requests
from requests.auth import HTTPBasicAuth
from requests.cookies import get_cookie_header
from requests.structures import CaseInsensitiveDict

from deployments.audio.download.limits import FetchLimits
from deployments.audio.download.url import DEFAULT_PORTS, HttpUrl
from deployments.audio.download.url_guard import UrlGuard
from deployments.audio.download.urllib3_adapter import GuardedAdapter
from deployments.audio.download.watchdog import Watchdog
from deployments.contract.errors import AudioUrlError

# Where this project is published. Whoever publishes it sets its address here, once; hosts that want
# to know who fetches find it in the User-Agent.
PROJECT_URL = ""
USER_AGENT = f"whisper-serve (+{PROJECT_URL})" if PROJECT_URL else "whisper-serve"

_MAX_REDIRECTS = 20


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
    """The session of one try. Every connection is judged and watched, and .netrc is never read.

    CA bundles come from the environment as usual. Proxies that the environment names are ignored,
    because a proxy connects to what no guard has seen; `egress_proxy` names one that may.
    """

    def __init__(
        self, watchdog: Watchdog, limits: FetchLimits, guard: UrlGuard
    ) -> None:
        super().__init__()
        self._watchdog = watchdog
        self._limits = limits
        self._guard = guard
        self._adapter = GuardedAdapter(guard, watchdog)
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

        Raises AudioUrlError, OverloadedError, and what requests and urllib3 raise.
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
            left, url = url, self._guard.follow(url, location)
            if url.origin != left.origin:
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
        proxy = self._guard.egress_proxy
        settings["proxies"] = {scheme: proxy for scheme in DEFAULT_PORTS if proxy}
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
        told = urlsplit(str(request.url))
        port = told.port or DEFAULT_PORTS.get(told.scheme)
        if (told.hostname, port) != (url.host, url.port):
            raise AudioUrlError("malformed URL: the host is in doubt")
        if credentials and "Authorization" not in all_headers:
            user, password = credentials
            HTTPBasicAuth(user.encode(), password.encode())(request)
        return request


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request
