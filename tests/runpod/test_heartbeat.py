import asyncio
import multiprocessing
import socket
import threading
from collections.abc import Iterator

import pytest

from deployments.runpod.heartbeat import Heartbeat, JobIds, Ping, ping_of
from tests.support.job_api import LIMIT_S

RUNPOD = {
    "RUNPOD_WEBHOOK_PING": "https://example.com/ping/$RUNPOD_POD_ID?gpu=G",
    "RUNPOD_AI_API_KEY": "key",
}


def test_the_ping_is_what_runpods_container_says() -> None:
    url = "https://example.com/ping/pod?gpu=G"
    assert ping_of(RUNPOD, "pod", "1.12.0") == Ping(url, "key", 10.0, "1.12.0")
    often = RUNPOD | {"RUNPOD_PING_INTERVAL": "2500"}
    assert ping_of(often, "pod", "1.12.0") == Ping(url, "key", 2.5, "1.12.0")


def test_outside_of_runpod_there_is_no_ping() -> None:
    for name in RUNPOD:
        assert ping_of(RUNPOD | {name: ""}, "pod", "1.12.0") is None


def test_the_ids_of_the_jobs_in_work_are_shared() -> None:
    ids = JobIds()
    assert ids.get() is None
    ids.set("first,second")
    assert ids.get() == "first,second"
    ids.set("x")
    assert ids.get() == "x"
    ids.set(None)
    assert ids.get() is None


def test_more_ids_than_there_is_room_for_are_cut_between_two_of_them() -> None:
    ids = JobIds()
    ids.set(",".join(f"job-{number:05}" for number in range(10_000)))
    known = (ids.get() or "").split(",")
    assert known == [f"job-{number:05}" for number in range(len(known))]
    assert 6000 < len(known) < 10_000


@pytest.fixture
def pings() -> Iterator[tuple[str, list[bytes]]]:
    """The URL of a server whose answers have a malformed header, and the requests that came."""
    requests: list[bytes] = []

    def serve(server: socket.socket) -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client:
                requests.append(client.recv(1 << 16))
                answer = b"HTTP/1.1 200 OK\r\nmalformed\r\nContent-Length: 0\r\n\r\n"
                client.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/ping/pod", requests
        server.shutdown(socket.SHUT_RDWR)


async def test_a_malformed_answer_puts_no_address_into_the_log(
    pings: tuple[str, list[bytes]], capfd: pytest.CaptureFixture[str]
) -> None:
    url, requests = pings
    shown: list[JobIds] = []
    Heartbeat(Ping(url, "secret-key", 0.05, "1.12.0"), shown.append)
    [ids] = shown
    ids.set("in-work")
    async with asyncio.timeout(LIMIT_S):
        # The third request follows two answers that have been read.
        while sum(b"job_id=in-work" in request for request in requests) < 3:
            await asyncio.sleep(0.05)
    for process in multiprocessing.active_children():
        process.kill()
        process.join()
    printed = "".join(capfd.readouterr())
    assert "127.0.0.1" not in printed
    assert "secret-key" not in printed


def test_a_lock_that_a_dead_heartbeat_holds_does_not_stop_the_worker() -> None:
    ids = JobIds()
    ids.set("before")
    with_lock, release = threading.Event(), threading.Event()

    def hold() -> None:
        with ids.lock:
            with_lock.set()
            release.wait(LIMIT_S)

    holding = threading.Thread(target=hold)
    holding.start()
    with_lock.wait(LIMIT_S)
    ids.set("after")
    release.set()
    holding.join()
    assert ids.get() == "before"
