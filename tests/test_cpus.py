"""CPUs as containers are given them, on made-up /proc and /sys trees."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.cpus import (
    CpuThreadsError,
    available_cpus,
    cpu_threads,
    limit_library_threads,
)

V1 = "33 32 0:30 {root} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct"
OTHER_V1 = "34 32 0:31 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
V2 = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw,nsdelegate"


def machine(
    tmp_path: Path, group: str, mounts: list[str], files: dict[str, str]
) -> Path:
    """The root of a made-up machine. files: contents by path below /sys/fs/cgroup"""
    process = tmp_path / "proc/self"
    process.mkdir(parents=True)
    (process / "cgroup").write_text(f"{group}\n")
    (process / "mountinfo").write_text("\n".join([*mounts, ""]))
    for name, content in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return tmp_path


def v1(folder: str, quota: int, period: int = 100_000) -> dict[str, str]:
    folder = f"cpu,cpuacct/{folder}".rstrip("/")
    return {
        f"{folder}/cpu.cfs_quota_us": str(quota),
        f"{folder}/cpu.cfs_period_us": str(period),
    }


@pytest.mark.parametrize(
    ("limit", "cpus"),
    [
        ("max 100000", 64),
        ("200000 100000", 2),
        ("250000 100000", 3),
        ("50000 100000", 1),
        ("1000 100000", 1),
        ("12800000 100000", 64),
        ("40000 20000", 2),
        ("nonsense", 64),
        ("0 0", 64),
    ],
)
def test_a_quota_of_cgroup_v2_limits_the_affinity(
    tmp_path: Path, limit: str, cpus: int
) -> None:
    root = machine(
        tmp_path, "0::/", [V2.format(root="/")], {"cpu.max": limit}
    )  # as a container with a cgroup namespace sees itself
    assert available_cpus(root, affinity=64) == cpus


@pytest.mark.parametrize(
    ("quota", "cpus"), [(-1, 64), (200_000, 2), (150_000, 2), (10_000, 1)]
)
def test_a_quota_of_cgroup_v1_limits_the_affinity(
    tmp_path: Path, quota: int, cpus: int
) -> None:
    group = (
        "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc"
    )
    # Without a namespace the process's path is the host's, and the mount shows its own group alone.
    mounts = [OTHER_V1, V1.format(root="/docker/abc")]
    root = machine(tmp_path, group, mounts, v1("", quota))
    assert available_cpus(root, affinity=64) == cpus


@pytest.mark.parametrize(
    ("limits", "cpus"),
    [
        ({"a": "400000 100000", "a/b": "max 100000", "a/b/c": "800000 100000"}, 4),
        ({"a": "800000 100000", "a/b": "300000 100000", "a/b/c": "max 100000"}, 3),
        ({"a": "max 100000", "a/b": "max 100000", "a/b/c": "100000 100000"}, 1),
        ({"other": "100000 100000", "a/b/c/below": "100000 100000"}, 64),
    ],
)
def test_the_tightest_quota_of_nested_groups_counts(
    tmp_path: Path, limits: dict[str, str], cpus: int
) -> None:
    files = {f"{folder}/cpu.max": limit for folder, limit in limits.items()}
    root = machine(tmp_path, "0::/a/b/c", [V2.format(root="/")], files)
    assert available_cpus(root, affinity=64) == cpus


def test_the_tightest_quota_of_nested_groups_of_v1_counts(tmp_path: Path) -> None:
    files = v1("kubepods", 800_000) | v1("kubepods/pod", 300_000) | v1("", -1)
    root = machine(
        tmp_path, "4:cpu,cpuacct:/kubepods/pod", [V1.format(root="/")], files
    )
    assert available_cpus(root, affinity=64) == 3


def test_both_hierarchies_of_a_hybrid_machine_are_read(tmp_path: Path) -> None:
    unified = V2.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified").format(root="/")
    files = v1("", 500_000) | {"unified/cpu.max": "200000 100000"}
    root = machine(
        tmp_path,
        "4:cpu,cpuacct:/\n0::/",
        [V1.format(root="/"), unified],
        files,
    )
    assert available_cpus(root, affinity=64) == 2


def test_a_group_outside_of_the_namespace_counts_as_its_top(tmp_path: Path) -> None:
    root = machine(
        tmp_path, "0::/../other", [V2.format(root="/")], {"cpu.max": "200000 100000"}
    )
    assert available_cpus(root, affinity=64) == 2


def test_a_smaller_affinity_counts(tmp_path: Path) -> None:
    root = machine(
        tmp_path, "0::/", [V2.format(root="/")], {"cpu.max": "800000 100000"}
    )
    assert available_cpus(root, affinity=3) == 3


def test_without_cgroups_the_affinity_counts(tmp_path: Path) -> None:
    assert available_cpus(tmp_path, affinity=5) == 5


def test_this_process_may_use_no_more_than_its_affinity() -> None:
    assert 1 <= available_cpus() <= len(os.sched_getaffinity(0))


def test_the_number_of_threads_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPER_CPU_THREADS", " 7 ")
    assert cpu_threads() == 7
    for unset in ("", " "):
        monkeypatch.setenv("WHISPER_CPU_THREADS", unset)
        assert cpu_threads() == available_cpus()


@pytest.mark.parametrize("text", ["0", "-1", "2.5", "many", "²"])
def test_a_wrong_number_of_threads_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("WHISPER_CPU_THREADS", text)
    with pytest.raises(CpuThreadsError, match="must be a whole number above 0"):
        cpu_threads()


def test_libraries_that_are_imported_later_start_no_more_threads() -> None:
    code = (
        "from deployments.cpus import limit_library_threads\n"
        "limit_library_threads(1)\n"
        "import numba, torch\n"
        "print(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "1"]


def test_numba_is_left_alone_once_it_is_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import numba  # noqa: F401

    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")
    limit_library_threads(3)
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert os.environ["NUMBA_NUM_THREADS"] == "1"
