"""The heartbeat's process: the SDK's own loop, which ends with the worker, however that ends, and logs little.

Importing this module is cheap: the process imports it before it can do anything else.
"""

import logging
import multiprocessing
import os
import sys
import threading
from typing import Any


def send_heartbeats(mirror: Any, test: bool = False) -> None:
    """The target of the SDK's heartbeat process. mirror: where the worker writes the ids of its jobs"""
    # Its imports are not to slow the first job down.
    os.nice(10)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from deployments import runpod_environment

    runpod_environment.prepare()
    from runpod.serverless.modules import rp_ping

    logging.basicConfig(format="%(message)s", stream=sys.stderr)
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
        from deployments.runpod_job_api import Line

        self._line = Line("ping")

    def debug(self, message: str) -> None:
        if message.startswith("Heartbeat Sent"):
            self._line.answered()

    def error(self, message: str) -> None:
        self._line.failed(message.partition(":")[0])
