"""The heartbeat: it tells RunPod that the worker lives, and which jobs the worker has in work.

The heartbeat is a process of its own, because a busy event loop would delay it, and RunPod takes a
silent worker for dead. The process is spawned: a fork would inherit Ray's threads and handlers. It
ends with the worker, however the worker ends.
"""

import asyncio
import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess

import requests

from deployments.runpod.outage_log import OutageLog

logger = logging.getLogger(__name__)

_CONTEXT = multiprocessing.get_context("spawn")
# Room for more than a thousand job ids.
_IDS_BYTES = 1 << 16
_LOCK_S = 1.0


class JobIds:
    """The ids of the jobs in work, in memory that the worker and the heartbeat share.

    The SDK has the same (`PingJobMirror`), but the heartbeat's process would need a second to
    import the SDK.

    lock: held by whoever reads or writes
    """

    def __init__(self) -> None:
        self._ids = _CONTEXT.Array(ctypes.c_char, _IDS_BYTES)
        self.lock = self._ids.get_lock()

    def set(self, ids: str | None) -> None:
        """Called by the SDK's record of jobs whenever it changes. ids: separated by commas"""
        text = (ids or "").encode()
        if len(text) >= _IDS_BYTES:
            text = text[: _IDS_BYTES - 1].rpartition(b",")[0]
        # A heartbeat that was killed may hold the lock for ever.
        if self.lock.acquire(timeout=_LOCK_S):
            try:
                self._ids.value = text
            finally:
                self.lock.release()

    def get(self) -> str | None:
        return self._ids.value.decode() or None


@dataclass(frozen=True)
class Ping:
    """Where a heartbeat goes, and what it says besides the jobs."""

    url: str
    key: str
    interval_s: float
    sdk_version: str


def ping_of(
    environment: Mapping[str, str], worker_id: str, sdk_version: str
) -> Ping | None:
    """The heartbeat that RunPod's container asks for in its environment; None outside of one."""
    url = environment.get("RUNPOD_WEBHOOK_PING", "")
    key = environment.get("RUNPOD_AI_API_KEY", "")
    if not url or not key:
        return None
    interval_s = int(environment.get("RUNPOD_PING_INTERVAL") or 10_000) / 1000
    return Ping(url.replace("$RUNPOD_POD_ID", worker_id), key, interval_s, sdk_version)


class Heartbeat:
    """The heartbeat's process, and a new one where it has died.

    show: called with the memory in which a new process looks for the ids of the jobs in work
    """

    def __init__(self, ping: Ping, show: Callable[[JobIds], object]) -> None:
        self._ping = ping
        self._show = show
        self._process = self._start()

    async def keep_alive(self, interval_s: float = 5.0) -> None:
        """Look after the process every `interval_s` seconds, until cancelled."""
        while True:
            await asyncio.sleep(interval_s)
            if not self._process.is_alive():
                logger.warning(
                    "event=heartbeat_restarted status=%s", self._process.exitcode
                )
                self._process = self._start()

    def _start(self) -> BaseProcess:
        # The process gets memory of its own, because a dead one may hold the lock of the memory.
        job_ids = JobIds()
        self._show(job_ids)
        process = _CONTEXT.Process(target=_run, args=(self._ping, job_ids), daemon=True)
        process.start()
        return process


def _run(ping: Ping, job_ids: JobIds) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Ctrl-C reaches every process of a terminal, but jobs in work are still finished.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    # Its warning about malformed headers holds the whole URL.
    logging.getLogger("urllib3").setLevel(logging.CRITICAL)
    outage = OutageLog("ping")
    with requests.Session() as session:
        session.headers["Authorization"] = ping.key
        while True:
            time.sleep(min(ping.interval_s, _send(session, ping, job_ids, outage)))


def _send(
    session: requests.Session, ping: Ping, job_ids: JobIds, outage: OutageLog
) -> float:
    """Send one heartbeat; gives the seconds until the next one."""
    params = {"job_id": job_ids.get(), "runpod_version": ping.sdk_version}
    try:
        answer = session.get(ping.url, params=params, timeout=2 * ping.interval_s)
        answer.raise_for_status()
    except requests.HTTPError as error:
        return outage.failed(f"HTTP_{error.response.status_code}")
    except requests.RequestException as error:
        # The error's text holds the URL.
        return outage.failed(type(error).__name__)
    outage.answered()
    return ping.interval_s


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)
