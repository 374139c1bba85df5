"""Ends every process that was started for a command, so that none outlives the command."""

import ctypes
import os
import time
from contextlib import suppress

import psutil

_PR_SET_CHILD_SUBREAPER = 36
_ENDS_BY_ITSELF_S = 1.0
_POLL_S = 0.1


def adopt_orphans() -> None:
    """Make every process below this one its child when its own parent ends (prctl(2)).

    Where Ray's start is interrupted, Ray's agents outlive its main processes by about a minute. As
    orphans they would belong to PID 1, and `end_children` could not find them.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def end_children() -> None:
    """End every process below this one, and wait until all have ended."""
    patience_ends = time.monotonic() + _ENDS_BY_ITSELF_S
    while running := _running_children():
        if time.monotonic() > patience_ends:
            for process in running:
                with suppress(psutil.Error):
                    process.kill()
        time.sleep(_POLL_S)


def _running_children() -> list[psutil.Process]:
    running = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                running.append(process)
    return running
