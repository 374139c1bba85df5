"""What a confined process can still do: nothing but work on what it has."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from deployments.audio.sandbox import landlock, seccomp
from deployments.audio.sandbox.confinement import Layers
from deployments.audio.sandbox.limits import Limits

ROOT = Path(__file__).parents[3]
FILES = {"read a file", "write a file", "list a folder"}
SOCKETS = {"make a socket", "make a local socket"}
OTHERS = {"signal the parent", "trace the parent"}
EVERYTHING = {
    *FILES,
    *SOCKETS,
    *OTHERS,
    "connect",
    "send a datagram",
    "fork",
    "execute",
    "limit the parent",
    "make code",
    "become root",
}


@cache
def attempts(layer: str) -> dict[str, str]:
    """What came of each attempt to get out of a process that is confined by this layer."""
    command = [sys.executable, "-m", "tests.audio.sandbox.escapes", layer]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return json.loads(done.stdout)


def refused(layer: str) -> set[str]:
    return {name for name, result in attempts(layer).items() if result != "done"}


def test_without_a_layer_the_attempts_succeed() -> None:
    # Some depend on the machine's own rules.
    assert FILES | SOCKETS | {"connect", "fork", "make code"} <= (
        EVERYTHING - refused("none")
    )


def test_resource_limits_alone_refuse_files_and_sockets() -> None:
    assert refused("rlimits") >= FILES | SOCKETS
    assert attempts("rlimits")["work"] == "done"


@pytest.mark.skipif(landlock.abi() < 4, reason="the kernel's Landlock has no TCP")
def test_landlock_alone_refuses_files_and_tcp() -> None:
    assert FILES | {"connect"} <= refused("landlock")
    assert attempts("landlock")["work"] == "done"


@pytest.mark.skipif(landlock.abi() < 6, reason="the kernel's Landlock has no scopes")
def test_a_new_landlock_refuses_signals_as_well() -> None:
    assert refused("landlock") >= OTHERS


@pytest.mark.skipif(not seccomp.supported(), reason="another architecture")
def test_the_filter_of_system_calls_alone_refuses_everything() -> None:
    assert set(attempts("seccomp").items()) == {
        *((name, "EPERM") for name in EVERYTHING),
        ("work", "done"),
    }


def test_all_layers_together_refuse_files_and_sockets_on_any_machine() -> None:
    assert refused("all") >= FILES | SOCKETS
    assert attempts("all")["work"] == "done"
    if os.geteuid() == 0:
        assert {"become root", "signal the parent", "limit the parent"} <= refused(
            "all"
        )


@pytest.mark.parametrize(
    ("layers", "text", "missing"),
    [
        (Layers(True, 7, True), "rlimits,user,landlock7,seccomp", []),
        (Layers(None, 4, True), "rlimits,landlock4,seccomp", []),
        (Layers(None, 0, False), "rlimits", ["landlock", "seccomp"]),
        (Layers(False, 1, False), "rlimits,landlock1", ["user", "seccomp"]),
    ],
)
def test_the_layers_that_hold_and_those_that_lack_have_names(
    layers: Layers, text: str, missing: list[str]
) -> None:
    assert str(layers) == text
    assert layers.missing == missing


def test_a_decoders_time_depends_on_its_file_and_its_audio() -> None:
    limits = Limits()
    assert limits.cpu_seconds(0, 0) == 20
    assert limits.cpu_seconds(100_000_000, 0) == 40
    assert limits.cpu_seconds(0, 4 * 3600) == 164
    # The clock gives it longer, because it may have to share the CPU.
    assert limits.deadline_s(0, 0) == 60
    assert limits.deadline_s(1 << 30, 4 * 3600) > 1000
