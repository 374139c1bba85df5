"""Landlock: a process gives up the file system and TCP for good. See landlock(7)."""

import ctypes
import os

from deployments.audio.sandbox import kernel

# The numbers are the same on every architecture.
_CREATE_RULESET, _RESTRICT_SELF = 444, 446
_VERSION = 1
# By the ABI that brought them: how many rights to files there are; the first ABI has 13.
_RIGHTS_TO_FILES = ((1, 13), (2, 14), (3, 15), (5, 16))
_TCP, _TCP_SINCE = 0b11, 4
_SCOPES, _SCOPES_SINCE = 0b11, 6


class _Ruleset(ctypes.Structure):
    _fields_ = [
        ("files", ctypes.c_uint64),
        ("network", ctypes.c_uint64),
        ("scopes", ctypes.c_uint64),
    ]


def abi() -> int:
    """The kernel's version of Landlock; 0 where it has none or has turned it off."""
    try:
        return kernel.syscall(_CREATE_RULESET, None, 0, _VERSION)
    except OSError:
        return 0


def restrict(abi: int) -> None:
    """Deny this process to open files, to connect or listen by TCP, and to signal others.

    What is open stays open. `no_new_privs` has to be set.

    abi: the kernel's, as `abi` tells

    Raises OSError.
    """
    files = max(count for since, count in _RIGHTS_TO_FILES if since <= abi)
    ruleset = _Ruleset(
        files=(1 << files) - 1,
        network=_TCP if abi >= _TCP_SINCE else 0,
        scopes=_SCOPES if abi >= _SCOPES_SINCE else 0,
    )
    # Older kernels know the first fields only, and refuse a larger structure unless the rest is 0.
    size = ctypes.sizeof(_Ruleset)
    descriptor = kernel.syscall(_CREATE_RULESET, ctypes.byref(ruleset), size, 0)
    try:
        kernel.syscall(_RESTRICT_SELF, descriptor, 0)
    finally:
        os.close(descriptor)
