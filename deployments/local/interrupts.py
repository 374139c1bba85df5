"""SIGINT and SIGTERM end a command, even where a library swallows the KeyboardInterrupt."""

import signal


class Interrupts:
    """Raises KeyboardInterrupt at these signals, and again at every `check` after one.

    Python raises the exception wherever the main thread happens to be. If that is a callback or a
    finaliser during Ray's start, the exception is lost and the start goes on.
    """

    def __init__(self) -> None:
        self._received = False

    def install(self) -> None:
        # SIGINT is set as well, because a shell starts its background jobs with SIGINT ignored.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def check(self) -> None:
        if self._received:
            raise KeyboardInterrupt

    def _receive(self, *_: object) -> None:
        self._received = True
        raise KeyboardInterrupt
