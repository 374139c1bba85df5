"""An HTTP server on loopback that answers each connection as a test tells it, well or badly."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Connection:
    """An accepted connection, which an answer reads from and writes to."""

    def __init__(self, sock: socket.socket, server: "MisbehavingServer") -> None:
        self.sock = sock
        self.server = server

    def request(self) -> str:
        """Read the head of the request. The server records it."""
        head = b""
        while b"\r\n\r\n" not in head:
            received = self.sock.recv(65536)
            if not received:
                return ""
            head += received
        self.server.requests.append(head.decode("latin-1"))
        return head.decode("latin-1")

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def wait(self, seconds: float) -> None:
        """Sleep so long, or until the test is over."""
        self.server.closing.wait(seconds)

    @property
    def open(self) -> bool:
        return not self.server.closing.is_set()


Answer = Callable[[Connection], None]


class MisbehavingServer:
    """The n-th connection gets the n-th answer, and all further ones the last answer."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.n_connections = 0
        self.closing = threading.Event()
        self._answers: tuple[Answer, ...] = ()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def answer(self, *answers: Answer) -> None:
        self._answers = answers

    def url(self, path: str = "/speech.mp3", scheme: str = "http") -> str:
        return f"{scheme}://127.0.0.1:{self.port}{path}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()

    def _start(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self.closing.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            answer = self._answers[min(self.n_connections, len(self._answers) - 1)]
            self.n_connections += 1
            self._start(lambda s=sock, a=answer: self._serve(s, a))  # type: ignore[misc]

    def _serve(self, sock: socket.socket, answer: Answer) -> None:
        with sock:
            sock.settimeout(5)
            # Most of these answers make the client hang up.
            with contextlib.suppress(OSError):
                answer(Connection(sock, self))


def answer_with(
    status: str = "200 OK",
    body: bytes = b"",
    headers: tuple[str, ...] = (),
    length: int | None = None,
) -> Answer:
    """A whole answer; `length` is the Content-Length to claim where it is not the body's."""

    def answer(connection: Connection) -> None:
        connection.request()
        claimed = len(body) if length is None else length
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {claimed}", *headers]
        connection.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    return answer


def hosted(
    body: bytes,
    cut_after: int | None = None,
    validators: tuple[str, ...] = ('ETag: "v1"',),
    headers: tuple[str, ...] = (),
    obeys_if_range: bool = True,
) -> Answer:
    """A file of which a part can be had (RFC 9110, section 14).

    cut_after: how many bytes are sent before the connection is cut
    validators: header lines that name the version of the file
    """

    def answer(connection: Connection) -> None:
        asked = dict(
            line.split(": ", 1)
            for line in connection.request().split("\r\n")[1:]
            if line
        )
        versions = [line.split(": ", 1)[1] for line in validators]
        start = 0
        if "Range" in asked and (
            not obeys_if_range or asked.get("If-Range") in versions
        ):
            start = int(asked["Range"].removeprefix("bytes=").removesuffix("-"))
        lines = ["HTTP/1.1 200 OK"]
        if start >= len(body) > 0:
            return connection.send(b"HTTP/1.1 416 x\r\nContent-Length: 0\r\n\r\n")
        if start:
            place = f"bytes {start}-{len(body) - 1}/{len(body)}"
            lines = ["HTTP/1.1 206 Partial Content", f"Content-Range: {place}"]
        lines += [f"Content-Length: {len(body) - start}", *validators, *headers]
        connection.send("\r\n".join([*lines, "", ""]).encode("latin-1"))
        rest = body[start:]
        connection.send(rest if cut_after is None else rest[:cut_after])

    return answer


def raw(*parts: bytes, every_s: float = 0.0, then_wait_s: float = 0.0) -> Answer:
    """Bytes as they are, with a pause after each part."""

    def answer(connection: Connection) -> None:
        connection.request()
        for part in parts:
            connection.send(part)
            connection.wait(every_s)
        connection.wait(then_wait_s)

    return answer


def endless(head: bytes, part: bytes, every_s: float = 0.0) -> Answer:
    """`head`, then `part` for ever."""

    def answer(connection: Connection) -> None:
        connection.request()
        connection.send(head)
        while connection.open:
            connection.send(part)
            connection.wait(every_s)

    return answer


def redirect_to(location: str, status: str = "302 Found") -> Answer:
    return answer_with(status, headers=(f"Location: {location}",))


def reset_at_accept(connection: Connection) -> None:
    reset_on_close = struct.pack("ii", 1, 0)
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset_on_close)


def silent_at_accept(connection: Connection) -> None:
    connection.wait(5)
