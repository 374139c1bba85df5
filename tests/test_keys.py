"""API keys: what is configured, which key is whose, and a file that changes."""

import asyncio
import hashlib
import hmac
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from deployments import keys
from deployments.keys import Keys, KeysError, check_reach, is_loopback, new_key


def line(name: str, key: str) -> str:
    return f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"


def owner(keys: Keys, key: str) -> str | None:
    return asyncio.run(keys.owner(key.encode()))


def listed(text: str) -> Keys:
    return Keys.from_environment({"API_KEYS": text})


@pytest.mark.parametrize("separator", [",", " , ", "\n", "\r\n", "\n\n# a remark\n"])
def test_each_listed_key_has_its_name(separator: str) -> None:
    found = listed(separator.join([line("alice", "a"), line("bob.2", "b")]))
    assert found.required
    assert owner(found, "a") == "alice"
    assert owner(found, "b") == "bob.2"
    assert owner(found, "c") is None
    assert owner(found, "") is None


def test_the_hash_itself_is_no_key() -> None:
    found = listed(line("alice", "a"))
    assert owner(found, line("alice", "a").partition(":")[2]) is None


def test_an_old_and_a_new_key_of_one_name_are_valid_together() -> None:
    found = listed(f"{line('alice', 'old')},{line('alice', 'new')}")
    assert owner(found, "old") == owner(found, "new") == "alice"


def test_a_hash_may_be_written_in_capitals() -> None:
    name, _, digest = line("alice", "a").partition(":")
    assert owner(listed(f" {name} : {digest.upper()} # since May"), "a") == "alice"


def test_all_keys_are_compared_whichever_matches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[str] = []

    def compare(one: str, other: str) -> bool:
        compared.append(one)
        return one == other

    found = listed(",".join(line(name, name) for name in "abc"))
    monkeypatch.setattr(hmac, "compare_digest", compare)
    for key in ("a", "b", "c", "d"):
        compared.clear()
        owner(found, key)
        assert len(compared) == 3


@pytest.mark.parametrize(
    ("environment", "stated"),
    [
        ({}, False),
        ({"API_KEYS": ""}, False),
        ({"API_KEYS": " ", "API_KEYS_FILE": " "}, False),
        ({"API_KEYS": "none"}, True),
        ({"API_KEYS": " None "}, True),
    ],
)
def test_without_keys_it_counts_whether_somebody_has_said_so(
    environment: dict[str, str], stated: bool
) -> None:
    found = Keys.from_environment(environment)
    assert not found.required
    assert found.stated is stated


GOOD = line("alice", "a")
HOW = "`python -m deployments.keys NAME` prints such a line"
BROKEN = [
    (
        "secret",
        f", line 1 must be name:sha256, with 64 hexadecimal digits: {HOW}",
    ),
    (
        f"{GOOD}\nbob:secret",
        f", line 2 must be name:sha256, with 64 hexadecimal digits: {HOW}",
    ),
    (
        f"none,{GOOD}",
        f", line 1 must be name:sha256, with 64 hexadecimal digits: {HOW}",
    ),
    (f"-:{'0' * 64}", f", line 1: {keys._NAME_RULE}"),
    (f"a b:{'0' * 64}", f", line 1: {keys._NAME_RULE}"),
    (f"{GOOD},bob:{GOOD[6:]}", ", line 1 has the key of 'alice'"),
    ("# nobody yet", f" lists no key: {HOW}"),
]


@pytest.mark.parametrize(("text", "told"), BROKEN)
def test_a_broken_entry_is_told_by_its_place_and_not_quoted(
    text: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(KeysError) as caught:
        listed(text)
    assert str(caught.value) == f"API_KEYS{told}"
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(KeysError) as caught:
        Keys.from_environment({"API_KEYS_FILE": str(file)})
    assert str(caught.value) == f"API_KEYS_FILE{told}"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "API_KEYS_FILE cannot be read: No such file or directory"),
        (b"\xff\xfe", "API_KEYS_FILE is not UTF-8"),
        (b"", f"API_KEYS_FILE lists no key: {HOW}"),
    ],
)
def test_a_file_that_cannot_be_used_ends_the_start(
    content: bytes | None, told: str, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(KeysError) as caught:
        Keys.from_environment({"API_KEYS_FILE": str(file)})
    assert str(caught.value) == told


def test_keys_are_in_one_place() -> None:
    with pytest.raises(KeysError, match="are both set: unset one of them$"):
        Keys.from_environment({"API_KEYS": "none", "API_KEYS_FILE": "/etc/keys"})


class Changing:
    """Keys of a file, and the time by which they are read again."""

    def __init__(self, file: Path, text: str) -> None:
        self.file = file
        self.now = 0.0
        file.write_text(text)
        self.keys = Keys(keys._read(file), file=file, clock=lambda: self.now)

    def owner(self, key: str) -> str | None:
        return owner(self.keys, key)


@pytest.fixture
def changing(tmp_path: Path) -> Changing:
    return Changing(tmp_path / "keys", line("alice", "a"))


def test_a_changed_file_is_read_again_after_a_second(
    changing: Changing, caplog: pytest.LogCaptureFixture
) -> None:
    changing.file.write_text(line("bob", "b"))
    changing.now = 0.9
    assert changing.owner("a") == "alice"
    changing.now = 1.0
    assert changing.owner("a") is None
    assert changing.owner("b") == "bob"
    assert [r.getMessage() for r in caplog.records] == ["event=keys_changed names=bob"]


def test_a_file_that_is_replaced_is_read_again(changing: Changing) -> None:
    other = changing.file.with_name("other")
    other.write_text(line("bob", "b"))
    other.replace(changing.file)
    changing.now = 1
    assert changing.owner("b") == "bob"


@pytest.mark.parametrize("content", ["", "alice:half", None])
def test_a_file_that_breaks_leaves_the_keys_as_they_are(
    changing: Changing, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    if content is None:
        changing.file.unlink()
    else:
        changing.file.write_text(content)
    for changing.now in (1, 2, 3):
        assert changing.owner("a") == "alice"
    [told] = [r.getMessage() for r in caplog.records]
    assert told.startswith("event=keys_refused reason=API_KEYS_FILE")
    assert caplog.records[0].levelno == logging.ERROR
    changing.file.write_text(line("bob", "b"))
    changing.now = 4
    assert changing.owner("b") == "bob"


def test_a_key_that_is_made_is_let_in_by_its_line() -> None:
    key, made = new_key("alice")
    assert owner(listed(made), key) == "alice"
    assert len(key) == 43
    assert new_key("alice")[0] != key


@pytest.mark.parametrize("name", ["", "-", "a b", "a:b", "ä", "x" * 65, "a\n"])
def test_a_name_that_no_log_line_can_hold_gets_no_key(name: str) -> None:
    with pytest.raises(KeysError, match=r"^a name must have 1 to 64 letters"):
        new_key(name)


def test_the_command_prints_a_key_and_its_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deployments.keys", "alice"],
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = done.stdout.splitlines()
    key, made = first.split()[-1], second.split()[-1]
    assert owner(listed(made), key) == "alice"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("LOCALHOST", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("192.0.2.2", False),
        ("::ffff:192.0.2.2", False),
        ("fe80::1%eth0", False),
        ("localhost.example.com", False),
        ("speech", False),
    ],
)
def test_other_machines_are_served_only_after_a_decision_about_keys(
    host: str, loopback: bool
) -> None:
    assert is_loopback(host) is loopback
    check_reach(Keys(stated=True), host)
    check_reach(listed(GOOD), host)
    if loopback:
        check_reach(Keys(), host)
        return
    with pytest.raises(KeysError) as caught:
        check_reach(Keys(), host)
    assert str(caught.value) == (
        f"other machines can reach {host or 'all interfaces'}, and there are no API keys: set"
        " API_KEYS or API_KEYS_FILE (docs/operations.md, Keys), or API_KEYS=none if callers are"
        " checked elsewhere"
    )
