"""Replaces Numba where it cannot be imported: Python runs what Numba would compile."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

__version__ = "missing"

float64 = None
types = SimpleNamespace(Array=lambda *_: None)


class _Interpreted:
    def __init__(self, function: Callable[..., Any]) -> None:
        self.py_func = function
        self.signatures: list[Any] = []

    def __call__(self, *args: Any) -> Any:
        return self.py_func(*args)

    def compile(self, signature: Any) -> None:
        self.signatures.append(signature)

    def enable_caching(self) -> None:
        raise RuntimeError("there is nothing to cache")


def jit(*given: Any, **_: Any) -> Any:
    if given and callable(given[0]):
        return _Interpreted(given[0])
    return _Interpreted


njit = jit


def get_num_threads() -> int:
    return 1


def set_num_threads(_: int) -> None:
    pass
