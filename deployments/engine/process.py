"""Settings of a process whose main work is an engine."""

import sys

_SWITCH_INTERVAL_S = 1e-4


def own_process() -> None:
    """Shorten the time that the engine's thread waits for Python's interpreter lock.

    PyTorch releases the lock around every operation. A request's thread that takes the lock may by default keep it
    for 5 ms, in which a GPU could take several decoding steps. Call this once in a process that serves one engine.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
