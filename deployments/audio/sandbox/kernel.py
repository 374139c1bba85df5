"""Calls of the Linux kernel that Python's standard library lacks (prctl(2), syscall(2))."""

import ctypes
import os

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def prctl(option: int, value: int, pointer: object = None) -> None:
    """Raises OSError."""
    _checked(
        _libc.prctl(
            option, ctypes.c_ulong(value), pointer, ctypes.c_ulong(0), ctypes.c_ulong(0)
        )
    )


def syscall(number: int, *arguments: object) -> int:
    """Numbers are passed as 64-bit integers. Raises OSError."""
    converted = (
        ctypes.c_long(value) if isinstance(value, int) else value for value in arguments
    )
    return _checked(_libc.syscall(ctypes.c_long(number), *converted))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
