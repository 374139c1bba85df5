import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest

from deployments.local.interrupts import Interrupts

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interrupt_that_was_swallowed_is_raised_at_the_next_check(
    number: signal.Signals,
) -> None:
    interrupts = Interrupts()
    interrupts.install()
    interrupts.check()
    with suppress(KeyboardInterrupt):
        signal.raise_signal(number)
    with pytest.raises(KeyboardInterrupt):
        interrupts.check()


def test_an_interrupt_is_raised_where_it_comes() -> None:
    Interrupts().install()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
