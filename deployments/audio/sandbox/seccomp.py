"""A seccomp filter that allows what decoding needs, and nothing else. See seccomp(2).

An allow-list: memory, reading and writing what is open, time, and the end of the process. All other
system calls fail with EPERM: there is no way to open, connect, fork, execute, trace or signal.
"""

import ctypes
import os
import platform
from collections.abc import Iterator

from deployments.audio.sandbox import kernel

# Numbers on x86_64 and on aarch64, which lacks what is None there.
_ALLOWED: dict[str, tuple[int, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "readv": (19, 65),
    "writev": (20, 66),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "getpid": (39, 172),
    "exit": (60, 93),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "getrandom": (318, 278),
    "rseq": (334, 293),
}
# Allowed with one argument only: which argument, and whether it has to equal this process's number
# or 0, or must not have the bit that makes memory executable.
_OWN, _SELF, _NOT_EXECUTABLE = "own process", "self", "not executable"
_RESTRICTED: dict[str, tuple[tuple[int, int], int, str]] = {
    "mmap": ((9, 222), 2, _NOT_EXECUTABLE),
    "mprotect": ((10, 226), 2, _NOT_EXECUTABLE),
    # abort(3) signals its own thread.
    "tgkill": ((234, 131), 0, _OWN),
    # How setrlimit(2) is called. Another process of the user could be hurt by its limits.
    "prlimit64": ((302, 261), 0, _SELF),
}
_PROT_EXEC = 0x4
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

# linux/bpf_common.h, linux/seccomp.h
_LOAD, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050001  # 1 is EPERM
_MODE_FILTER = 2
# Where struct seccomp_data has the call's number, the architecture and the arguments' low halves.
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16


class _Instruction(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_uint16),
        ("jump_true", ctypes.c_uint8),
        ("jump_false", ctypes.c_uint8),
        ("value", ctypes.c_uint32),
    ]


class _Program(ctypes.Structure):
    _fields_ = [
        ("length", ctypes.c_uint16),
        ("instructions", ctypes.POINTER(_Instruction)),
    ]


def supported() -> bool:
    """Whether there is a filter for this machine's architecture."""
    return platform.machine() in _ARCHITECTURES


def install() -> None:
    """Filter the system calls of this process, for good. `no_new_privs` has to be set.

    Raises OSError where the kernel has no seccomp.
    """
    audit, column = _ARCHITECTURES[platform.machine()]
    instructions = list(_instructions(audit, column, os.getpid()))
    array = (_Instruction * len(instructions))(*instructions)
    program = _Program(len(instructions), array)
    kernel.prctl(kernel.PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program))


def _instructions(audit: int, column: int, process: int) -> Iterator[_Instruction]:
    yield _Instruction(_LOAD, 0, 0, _ARCHITECTURE)
    yield _Instruction(_JUMP_EQUAL, 1, 0, audit)
    # Another architecture has other numbers for its calls.
    yield _Instruction(_RETURN, 0, 0, _KILL)
    yield _Instruction(_LOAD, 0, 0, _NUMBER)
    for numbers in _ALLOWED.values():
        number = numbers[column]
        if number is not None:
            yield _Instruction(_JUMP_EQUAL, 0, 1, number)
            yield _Instruction(_RETURN, 0, 0, _ALLOW)
    for pair, argument, rule in _RESTRICTED.values():
        yield _Instruction(_JUMP_EQUAL, 0, 4, pair[column])
        yield _Instruction(_LOAD, 0, 0, _ARGUMENTS + 8 * argument)
        if rule == _NOT_EXECUTABLE:
            yield _Instruction(_JUMP_SET, 1, 0, _PROT_EXEC)
        else:
            yield _Instruction(_JUMP_EQUAL, 0, 1, process if rule == _OWN else 0)
        yield _Instruction(_RETURN, 0, 0, _ALLOW)
        yield _Instruction(_RETURN, 0, 0, _REFUSE)
    yield _Instruction(_RETURN, 0, 0, _REFUSE)
