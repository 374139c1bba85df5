"""Requests in every stage at once, for tests of what a stop does to them."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import requests

from deployments.local import loopback
from tests.support.app import AUDIO, repeated, wait_for
from tests.support.misbehaving_server import Connection, MisbehavingServer

_RECORDING = AUDIO / "gettysburg.wav"
_LIMIT_S = 900.0
# Arguments of an application that is to have requests in every stage, however slow the machine is.
ARGS = {
    "max_requests_per_model": 4,
    "allow_private_networks": True,
    "min_bytes_per_s": 0,
    "read_timeout_s": _LIMIT_S,
    "download_timeout_s": _LIMIT_S,
    "drain_timeout_s": _LIMIT_S,
}
# How a request ends that comes once the service stops.
REFUSED = "503 service_unavailable Retry-After"
# The work of one request, by how many times its first ten seconds are decoded.
REPEATS = 1


class Traffic:
    """Requests that download from a host which holds back the rest, wait, transcribe and stream.

    url: of an application with one model and `ARGS`

    let_go: set it, and the host sends the rest
    """

    DOWNLOADS, STREAMS, UPLOADS = 3, 2, 8

    def __init__(self, url: str, repeats: int = REPEATS) -> None:
        self._url = url
        self._fields = repeated(repeats)
        self.let_go = threading.Event()
        self._futures: list[Future[str]] = []

    @property
    def number(self) -> int:
        """How many requests there are. Of those that wait, some may be on their way."""
        return self.DOWNLOADS + self.STREAMS + self.UPLOADS

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within the block, some requests download, some transcribe, and the others wait."""
        with MisbehavingServer() as server, ThreadPoolExecutor(self.number) as threads:
            server.answer(self._held_back)
            try:
                for _ in range(self.DOWNLOADS):
                    self._add(threads, self._download, audio=server.url("/a.wav"))
                wait_for(lambda: len(server.requests) == self.DOWNLOADS)
                for _ in range(self.STREAMS):
                    self._add(threads, self._upload, stream="true")
                for _ in range(self.UPLOADS):
                    self._add(threads, self._upload)
                wait_for(lambda: self._slots_in_use() > 0)
                yield
            finally:
                self.let_go.set()
                for future in self._futures:
                    future.result(_LIMIT_S)

    def outcomes(self) -> Counter[str]:
        """How many requests ended how: `200 whole`, `200 result`, `cut (ConnectionError)`."""
        return Counter(future.result(0) for future in self._futures)

    def answered(self) -> int:
        """How many were answered in full. All others were refused with a 503 that says when."""
        told = self.outcomes()
        answered = told.pop("200 whole", 0) + told.pop("200 result", 0)
        assert told.keys() <= {REFUSED}, told
        return answered

    def new_request(self) -> str:
        """How a request ends that comes now."""
        return self._upload()

    def get(self, path: str) -> requests.Response:
        return loopback.session().get(f"{self._url}{path}", timeout=_LIMIT_S)

    def _add(self, threads: ThreadPoolExecutor, call: Any, **fields: Any) -> None:
        self._futures.append(threads.submit(call, **fields))

    def _download(self, audio: str) -> str:
        return self._outcome(json=self._fields | {"audio": audio})

    def _upload(self, **fields: str) -> str:
        with _RECORDING.open("rb") as file:
            return self._outcome(data=self._fields | fields, files={"file": file})

    def _outcome(self, **body: Any) -> str:
        url = f"{self._url}/transcribe"
        try:
            answer = loopback.session().post(url, timeout=_LIMIT_S, **body)
        except requests.RequestException as error:
            return f"cut ({type(error).__name__})"
        text = answer.text
        if answer.headers["content-type"].startswith("text/event-stream"):
            # The last message is followed by an empty line.
            text = text.splitlines()[-2].removeprefix("data: ")
        try:
            told = json.loads(text)
        except ValueError:
            return f"{answer.status_code} cut"
        retry = " Retry-After" if "retry-after" in answer.headers else ""
        kind = told.get("type") or told.get("event") or "whole"
        return f"{answer.status_code} {kind}{retry}"

    def _slots_in_use(self) -> int:
        models = self.get("/models").json()["data"]
        return sum(model["slots_in_use"] or 0 for model in models)

    def _held_back(self, connection: Connection) -> None:
        content = _RECORDING.read_bytes()
        connection.request()
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.send(head.encode() + content[:100_000])
        self.let_go.wait(_LIMIT_S)
        connection.send(content[100_000:])
