"""Settings of a process whose main work is an engine."""

import sys

_SWITCH_INTERVAL_S = 1e-4


def own_process() -> None:
    """Let the engine's thread go on soon when others run Python code.

    PyTorch releases the interpreter around every operation. A request's thread that takes it over keeps it, by
    default, for 5 ms: as long as several decoding steps of a GPU.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
