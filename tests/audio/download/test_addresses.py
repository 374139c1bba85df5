"""The table of public addresses: the ends of each refused network, and what lies beside them."""

import ipaddress
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deployments.audio.download.addresses import OwnAddresses, is_public, plain
from tests.support.app import lan_address

ROOT = Path(__file__).parents[3]

REFUSED_V4 = """
    0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 168.63.129.16/32 169.254.0.0/16 172.16.0.0/12
    192.0.0.0/24 192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16
    192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/3
"""
REFUSED_V6 = """
    ::/3 2001::/23 2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20 4000::/2 8000::/1
"""
BESIDE_V6 = """
    2000:: 2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff 2001:200:: 2001:db7:ffff:ffff:ffff:ffff:ffff:ffff
    2001:db9:: 2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff 2003:: 2620:4f:8001::
    2620:4f:7fff:ffff:ffff:ffff:ffff:ffff 3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff 3fff:1000::
    3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff
"""


def verdicts() -> Iterator[tuple[str, bool]]:
    for text in (REFUSED_V4 + REFUSED_V6).split():
        network = ipaddress.ip_network(text)
        yield str(network[0]), False
        yield str(network[-1]), False
    for text in REFUSED_V4.split():
        network = ipaddress.ip_network(text)
        if int(network[0]) > 0:
            yield str(network[0] - 1), True
        if int(network[-1]) < 2**32 - 1:
            yield str(network[-1] + 1), True
    yield from ((address, True) for address in BESIDE_V6.split())
    for inner, public in [("1.1.1.1", True), ("10.0.0.1", False), ("127.0.0.1", False)]:
        # Mapped, NAT64, and ISATAP without and with the universal bit.
        for form in ("::ffff:", "64:ff9b::", "2600::5efe:", "2600::200:5efe:"):
            yield form + inner, public
        # Compatible, translated, and NAT64 of a network's own.
        for form in ("::", "::ffff:0:", "64:ff9b:1::"):
            yield form + inner, False


@pytest.mark.parametrize(("address", "public"), list(verdicts()))
def test_an_address_is_public_or_not(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


# The table alone, in a Python that has no packages.
READ_TABLE = """
import ipaddress, runpy, sys, types
sys.modules["psutil"] = types.ModuleType("psutil")
is_public = runpy.run_path("deployments/audio/download/addresses.py")["is_public"]
for line in sys.stdin:
    print(line.strip(), is_public(ipaddress.ip_address(line.strip())))
"""


def pythons() -> list[str]:
    """This one, and the other supported versions that are on this machine."""
    pyenv = Path("~/.pyenv/versions").expanduser()
    found = [
        *pyenv.glob("3.1[123].*/bin/python"),
        *Path("/usr/bin").glob("python3.1[123]"),
    ]
    return sorted({sys.executable, *map(str, found)})


@pytest.mark.parametrize("python", pythons())
def test_every_python_gives_the_same_verdicts(python: str) -> None:
    addresses = [address for address, _ in verdicts()]
    done = subprocess.run(
        [python, "-c", READ_TABLE],
        input="\n".join(addresses),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    expected = [f"{address} {public}" for address, public in verdicts()]
    assert done.stdout.splitlines() == expected, done.stderr


@pytest.mark.parametrize(
    ("address", "leads_to"),
    [
        ("::ffff:7f00:1", "127.0.0.1"),
        ("64:ff9b::a00:1", "10.0.0.1"),
        ("2600::1", "2600::1"),
        ("1.1.1.1", "1.1.1.1"),
    ],
)
def test_an_address_that_holds_an_ipv4_address_leads_to_it(
    address: str, leads_to: str
) -> None:
    assert str(plain(ipaddress.ip_address(address))) == leads_to


def test_the_addresses_of_this_machine_are_its_own() -> None:
    own = OwnAddresses()
    assert ipaddress.ip_address("127.0.0.1") in own
    assert ipaddress.ip_address(lan_address()) in own
    assert ipaddress.ip_address("1.1.1.1") not in own


def test_the_addresses_of_this_machine_are_read_once_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times_read: list[int] = []
    read = psutil.net_if_addrs
    now = [0.0]

    def counted() -> object:
        times_read.append(1)
        return read()

    monkeypatch.setattr(psutil, "net_if_addrs", counted)
    own = OwnAddresses(clock=lambda: now[0])
    for now[0] in (0.0, 1.0, 59.0, 60.0, 61.0):
        assert ipaddress.ip_address("127.0.0.1") in own
    assert len(times_read) == 2
