"""Everything that a process gives up before it decodes a stranger's file.

Every layer but the first is optional, because containers run on kernels and under profiles that
lack one or the other. What holds on a machine is tried out once, when the zygote starts.
"""

import os
import platform
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deployments.audio.sandbox import kernel, landlock, seccomp
from deployments.audio.sandbox.limits import ResourceLimits

_NOBODY = 65_534
# The kernel ends the process with the highest score first when memory runs out.
_EXPENDABLE = "1000"


@dataclass(frozen=True)
class Layers:
    """Which layers hold on this machine.

    user: an unprivileged user in place of root; None where the process is not root's
    landlock: the version of the kernel's ABI, 0 for none
    """

    user: bool | None
    landlock: int
    seccomp: bool

    def __str__(self) -> str:
        names = ["rlimits", *(["user"] if self.user else [])]
        if self.landlock:
            names.append(f"landlock{self.landlock}")
        if self.seccomp:
            names.append("seccomp")
        return ",".join(names)

    @property
    def missing(self) -> list[str]:
        found = {
            "user": self.user is not False,
            "landlock": bool(self.landlock),
            "seccomp": self.seccomp,
        }
        return [name for name, holds in found.items() if not holds]


def confine(
    limits: ResourceLimits, parent: int, layers: Layers | None = None
) -> Layers:
    """Confine this process, for good. It must have no thread but this one.

    parent: the process with which this one ends
    layers: which are known to hold; None: try each of them

    Raises OSError where a layer fails that is known to hold.
    """
    _end_with(parent)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_EXPENDABLE)
    user = _give_up_root(layers)
    if user:
        # The kernel clears that setting when a process changes its user.
        _end_with(parent)
    # No dump of the caller's recording, and no debugger.
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    abi = _restrict_by_landlock(layers)
    limits.apply()
    return Layers(user, abi, _filter_system_calls(layers))


def _end_with(parent: int) -> None:
    """Die when the parent does."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _give_up_root(layers: Layers | None) -> bool | None:
    """Root alone escapes some limits, and may raise them again."""
    if os.geteuid() != 0:
        return None
    if layers is not None and not layers.user:
        return False
    try:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    except OSError:
        if layers is not None:
            raise
        return False
    return True


def _restrict_by_landlock(layers: Layers | None) -> int:
    abi = landlock.abi() if layers is None else layers.landlock
    if abi:
        try:
            landlock.restrict(abi)
        except OSError:
            if layers is not None:
                raise
            return 0
    return abi


def _filter_system_calls(layers: Layers | None) -> bool:
    wanted = seccomp.supported() if layers is None else layers.seccomp
    if wanted:
        try:
            seccomp.install()
        except OSError:
            if layers is not None:
                raise
            return False
    return wanted


def describe_machine() -> str:
    """For the log, where a layer is missing: `6.1.0-x86_64`."""
    return f"{platform.release()}-{platform.machine()}"
