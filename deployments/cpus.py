"""How many CPUs this process may use: its affinity and its container's quota together.

A container with a quota of two CPUs on a host of 128 cores sees all 128. As many threads as cores
would use up the quota in the first part of each period, and stand still for the rest of it.
"""

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

THREADS_VARIABLE = "WHISPER_CPU_THREADS"

# OpenMP (PyTorch, oneDNN), MKL and Numba start as many threads as there are cores unless one of
# these says otherwise.
_LIBRARY_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class CpuThreadsError(Exception):
    """WHISPER_CPU_THREADS is no number of threads. The text is one line for the user."""


def cpu_threads() -> int:
    """How many threads a model computes with: WHISPER_CPU_THREADS, else `available_cpus`.

    Raises CpuThreadsError.
    """
    text = os.environ.get(THREADS_VARIABLE, "").strip()
    if not text:
        return available_cpus()
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise CpuThreadsError(
            f"{THREADS_VARIABLE} must be a whole number above 0, not '{text[:20]}'"
        )
    return int(text)


def limit_library_threads(threads: int) -> None:
    """Tell the libraries that are imported from now on how many threads to start at most."""
    for name in _LIBRARY_VARIABLES:
        # Numba refuses to compile once its variable has changed after its import.
        if name != "NUMBA_NUM_THREADS" or "numba" not in sys.modules:
            os.environ[name] = str(threads)


def available_cpus(root: Path = Path("/"), affinity: int | None = None) -> int:
    """The CPUs of this process: at most its affinity and its cgroups' quota, at least 1.

    A part of a CPU counts as a whole one. Where groups are nested, the tightest quota counts.

    root: the folder in which /proc and /sys lie
    affinity: how many CPUs the scheduler may put this process on; None: as the kernel says
    """
    cpus = len(os.sched_getaffinity(0)) if affinity is None else affinity
    quotas = [quota for folder in _cgroups(root) if (quota := _quota(folder))]
    return max(1, min(cpus, math.ceil(min(quotas, default=cpus))))


def _cgroups(root: Path) -> Iterator[Path]:
    """The folders of this process's CPU groups and of all groups above them."""
    groups = _groups_of_process(root)
    for mount_root, mount_point, hierarchy in _cgroup_mounts(root):
        group = groups.get(hierarchy)
        if group is None:
            continue
        top = root / mount_point.relative_to("/")
        folder = top
        # In a container the mount often shows its own group as the top. The process's path may then
        # be the host's, or lead out of the namespace by `..`.
        if group.is_relative_to(mount_root) and ".." not in group.parts:
            folder = top / group.relative_to(mount_root)
        yield folder
        yield from (above for above in folder.parents if above.is_relative_to(top))


def _groups_of_process(root: Path) -> dict[str, PurePosixPath]:
    """From /proc/self/cgroup: the process's path in cgroup v2, and in v1's hierarchy of `cpu`."""
    found = {}
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "cpu" in controllers.split(","):
            found["cgroup"] = PurePosixPath(path)
        elif number == "0" and not controllers:
            found["cgroup2"] = PurePosixPath(path)
    return found


def _cgroup_mounts(
    root: Path,
) -> Iterator[tuple[PurePosixPath, PurePosixPath, str]]:
    """From /proc/self/mountinfo: which group is mounted where, and in which hierarchy."""
    for line in _lines(root / "proc/self/mountinfo"):
        mount, _, filesystem = line.partition(" - ")
        fields, (kind, *rest) = mount.split(), filesystem.split() or [""]
        options = rest[-1].split(",") if rest else []
        if len(fields) >= 5 and (
            kind == "cgroup2" or (kind == "cgroup" and "cpu" in options)
        ):
            yield PurePosixPath(fields[3]), PurePosixPath(fields[4]), kind


def _quota(folder: Path) -> float | None:
    """The CPUs that a group may use at once; None where it has no limit of its own."""
    try:
        if lines := _lines(folder / "cpu.max"):
            quota, period = lines[0].split()
        else:
            [quota] = _lines(folder / "cpu.cfs_quota_us")
            [period] = _lines(folder / "cpu.cfs_period_us")
        # Without a limit the quota is `max` in v2 and -1 in v1.
        return float(quota) / float(period) if float(quota) > 0 else None
    except (ValueError, ZeroDivisionError):
        return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeError):
        return []
