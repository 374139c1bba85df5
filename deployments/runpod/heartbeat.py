"""The heartbeat's process: the SDK's own loop, which ends with the worker, however that ends, and logs little.

Importing this module is cheap.
"""

import logging
import multiprocessing
import os
import sys
import threading
from multiprocessing import forkserver
from typing import Any

_PRELOAD = "deployments.runpod.preload"


def prepare() -> None:
    """Start the server that the heartbeat's process will be forked from: called early, before there is a Ray, whose
    threads and handlers a fork of this process would inherit; its imports go on meanwhile.
    """
    multiprocessing.set_start_method("forkserver", force=True)
    multiprocessing.set_forkserver_preload([_PRELOAD])
    forkserver.ensure_running()


def send_heartbeats(mirror: Any, test: bool = False) -> None:
    """The target of the SDK's heartbeat process. mirror: where the worker writes the ids of its jobs"""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from runpod.serverless.modules import rp_ping

    # The SDK has set up a format of its own.
    logging.basicConfig(format="%(message)s", stream=sys.stderr, force=True)
    # It tells each of its tries, with the address.
    logging.getLogger("urllib3").setLevel(logging.CRITICAL)
    rp_ping.log = _HeartbeatLog()
    rp_ping.Heartbeat.process_loop(mirror, test)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)


class _HeartbeatLog:
    """In place of the SDK's logger, which would tell every failure, with the address."""

    def __init__(self) -> None:
        from deployments.runpod.job_api import Line

        self._line = Line("ping")

    def debug(self, message: str) -> None:
        if message.startswith("Heartbeat Sent"):
            self._line.answered()

    def error(self, message: str) -> None:
        self._line.failed(message.partition(":")[0].replace(" ", "_"))
