"""What leans on the insides of requests and urllib3: how a connection is made, and what it sends.

urllib3 gives no public way to choose the addresses that a connection dials, or to send a path as it
is. tests/audio/download/test_urllib3_adapter.py names what is relied on.
"""

import logging
import socket
from contextlib import suppress
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3 import exceptions as ux

from deployments.audio.download.url_guard import UrlGuard
from deployments.audio.download.watchdog import Watchdog

# urllib3 writes the URLs that it knows into debug lines and into its warning about malformed
# headers. Each of its loggers is silenced by itself, because RunPod's SDK sets their parent's level
# when it is imported.
for _module in ("connection", "connectionpool", "poolmanager", "util.retry"):
    logging.getLogger(f"urllib3.{_module}").setLevel(logging.ERROR)


class GuardedAdapter(HTTPAdapter):
    """Connections to judged addresses alone, which are watched, and which send `target` as it is.

    target: path and query of the request that is sent next
    """

    def __init__(self, guard: UrlGuard, watchdog: Watchdog) -> None:
        self.target = "/"
        self._guard = guard
        self._watchdog = watchdog
        super().__init__(max_retries=0)

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        pool.ConnectionCls = _connection_class(type(pool).ConnectionCls, self)
        return pool

    def connect(
        self, host: str, port: int, timeout_s: float, options: Any
    ) -> socket.socket:
        """A socket that is connected to one of the host's addresses.

        timeout_s: for each address; less where the download has less time left
        options: of the socket, as `setsockopt` takes them

        Raises OSError with what the last address gave, and what `UrlGuard.endpoints` raises.
        """
        watchdog = self._watchdog
        endpoints = self._guard.endpoints(
            host, port, watchdog.remaining_s, watchdog.sleep
        )
        failure = OSError()
        for n_left, endpoint in zip(
            range(len(endpoints), 0, -1), endpoints, strict=True
        ):
            watchdog.check()
            try:
                sock = socket.socket(endpoint.family, socket.SOCK_STREAM)
            except OSError as error:
                # This machine has no such protocol, such as IPv6.
                failure = error
                continue
            try:
                for option in options or ():
                    sock.setsockopt(*option)
                share_s = max(0.001, watchdog.remaining_s / n_left)
                sock.settimeout(min(timeout_s, share_s))
                # Watched already now, so that neither the deadline nor a caller who has left has to
                # wait for a host that does not answer.
                watchdog.watch(sock)
                sock.connect(endpoint.sockaddr)
                sock.settimeout(timeout_s)
                return sock
            except OSError as error:
                failure = error
                # The watchdog's own handle would keep the attempt alive.
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()
                watchdog.release()
        raise failure


def _connection_class(base: Any, adapter: GuardedAdapter) -> type[Any]:
    class Connection(base):
        def _new_conn(self) -> socket.socket:
            # Host header, server name and certificate stay the name: only the dialling is ours.
            try:
                return adapter.connect(
                    self._dns_host, self.port, self.timeout, self.socket_options
                )
            except (TimeoutError, socket.gaierror):
                raise
            except OSError as error:
                raise ux.NewConnectionError(self, "") from error

        def connect(self) -> None:
            try:
                super().connect()
            except TimeoutError as error:
                # urllib3 would report a TLS handshake that times out as a silent host.
                raise ux.ConnectTimeoutError() from error

        def putrequest(self, method: str, url: str, *args: Any, **kwargs: Any) -> None:
            # `url` is the origin's root: "/", or to a proxy "http://host/".
            target = url.removesuffix("/") + adapter.target
            super().putrequest(method, target, *args, **kwargs)

    return Connection
