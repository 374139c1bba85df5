"""The worker's end, where nothing is left that could end by itself."""

import os
import sys
from contextlib import suppress
from typing import NoReturn

import psutil


def end_all_processes(status: int) -> NoReturn:
    """End every process below this one, and this one with the status.

    Nothing is shut down: where Ray has died or is only starting, its own shutdown could wait for
    processes that are gone or are not there yet.
    """
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            process.kill()
    sys.stderr.flush()
    os._exit(status)
