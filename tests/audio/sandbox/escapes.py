"""Attempts to get out of a confined process.

python -m tests.audio.sandbox.escapes LAYER: confines this process by one layer, or by all of them,
tries everything, and prints as JSON what came of each attempt: "done", or the name of the error.
"""

import ctypes
import errno
import json
import mmap
import os
import resource
import socket
import sys
from collections.abc import Callable

from deployments.audio.sandbox import kernel, landlock, seccomp
from deployments.audio.sandbox.confinement import confine
from deployments.audio.sandbox.limits import Limits, ResourceLimits

# Which, unlike PTRACE_ATTACH, does not stop the process.
PTRACE_SEIZE = 0x4206
libc = ctypes.CDLL(None, use_errno=True)


def confine_by(layer: str) -> None:
    if layer == "all":
        confine(ResourceLimits(Limits(), 0, 3600), os.getppid())
        return
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    if layer == "rlimits":
        ResourceLimits(Limits(), 0, 3600).apply()
    elif layer == "landlock":
        landlock.restrict(landlock.abi())
    elif layer == "seccomp":
        seccomp.install()


def fork() -> None:
    process = os.fork()
    if process == 0:
        os._exit(0)
    os.waitpid(process, 0)


def trace() -> None:
    if libc.ptrace(PTRACE_SEIZE, os.getppid(), None, None) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def execute() -> None:
    # A file that is no program, so that what is allowed ends in ENOEXEC and not in another program.
    os.execv("/dev/null", ["x"])


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    pages = mmap.mmap(-1, mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))

    def make_executable() -> None:
        if libc.mprotect(ctypes.c_void_p(address), mmap.PAGESIZE, 5) < 0:
            raise OSError(ctypes.get_errno(), "mprotect")

    attempts: dict[str, Callable[[], object]] = {
        "read a file": lambda: os.open("/proc/self/status", os.O_RDONLY),
        "write a file": lambda: os.open("/dev/shm", os.O_WRONLY | os.O_TMPFILE),
        "list a folder": lambda: os.listdir("/"),
        "make a socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
        "make a local socket": socket.socketpair,
        "connect": lambda: stream.connect(listener.getsockname()),
        "send a datagram": lambda: datagrams.sendto(b"x", listener.getsockname()),
        "fork": fork,
        "execute": execute,
        "signal the parent": lambda: os.kill(os.getppid(), 0),
        "trace the parent": trace,
        # To ask for a limit and to set one is the same call.
        "limit the parent": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_AS),
        "make code": make_executable,
        "become root": lambda: os.setuid(0),
        "work": lambda: sum(bytearray(1 << 20)),
    }
    confine_by(sys.argv[1])
    found = {}
    for name, attempt in attempts.items():
        try:
            attempt()
            found[name] = "done"
        except OSError as error:
            found[name] = errno.errorcode[error.errno or 0]
    os.write(1, json.dumps(found).encode())


if __name__ == "__main__":
    main()
