"""API keys: who may use the HTTP APIs. The service is told the hashes of the keys alone.

    python -m deployments.keys NAME

makes a key. The hash is a plain SHA-256, which is enough for keys that are random.
"""

import argparse
import asyncio
import hashlib
import hmac
import ipaddress
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

KEYS = "API_KEYS"
KEYS_FILE = "API_KEYS_FILE"
# The value of API_KEYS that says that no key is needed.
NONE = "none"
# In place of a key's name, for callers who have none: Python handles, RunPod jobs, and HTTP where
# no key is needed.
NO_KEY = "-"

_KEY_BYTES = 32
_LOOK_INTERVAL_S = 1.0
# A name goes into log lines and metrics, where "-" stands for no name.
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)
_HASH = re.compile(r"[0-9a-fA-F]{64}")
_NAME_RULE = (
    "a name must have 1 to 64 letters, digits, '.', '_' or '-', and begin with a letter"
    " or a digit"
)
_COMMAND = "python -m deployments.keys"
_HOW = f"`{_COMMAND} NAME` prints such a line"


class KeysError(Exception):
    """The keys cannot be used. The text is one line that says what to change, without a key."""


@dataclass(frozen=True)
class Entry:
    """One key. sha256: of the key, in lower-case hexadecimal digits"""

    name: str
    sha256: str


class Keys:
    """The keys of a service. `Keys()` stands for an environment that sets neither variable.

    entries: the keys; none: no request needs one
    stated: whether somebody has decided whether keys are needed
    file: where the entries were read, and are read again while the service runs
    clock: as `time.monotonic`
    """

    def __init__(
        self,
        entries: Sequence[Entry] = (),
        *,
        stated: bool = False,
        file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._entries = tuple(entries)
        self._file = file
        self._clock = clock
        self._looked_at = clock()
        self._problem = ""
        self.stated = stated or bool(entries)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Keys":
        """The keys that API_KEYS lists, or the file that API_KEYS_FILE names.

        Raises KeysError.
        """
        listed = environment.get(KEYS, "").strip()
        file = environment.get(KEYS_FILE, "").strip()
        if listed and file:
            raise KeysError(f"{KEYS} and {KEYS_FILE} are both set: unset one of them")
        if file:
            return cls(_read(Path(file)), file=Path(file))
        if listed.lower() == NONE:
            return cls(stated=True)
        return cls(_parsed(KEYS, listed)) if listed else cls()

    @property
    def required(self) -> bool:
        """Whether requests need a key."""
        return bool(self._entries)

    async def owner(self, key: bytes) -> str | None:
        """The name of the key that a caller sent; None for an unknown key.

        The time that the search takes says nothing about the keys, because the hash is always
        compared with all hashes, and with each of them in constant time.
        """
        await self._look_again()
        digest = hashlib.sha256(key).hexdigest()
        matching = [
            entry.name
            for entry in self._entries
            if hmac.compare_digest(entry.sha256, digest)
        ]
        return matching[0] if matching else None

    async def _look_again(self) -> None:
        if self._file is None or self._clock() - self._looked_at < _LOOK_INTERVAL_S:
            return
        self._looked_at = self._clock()
        # In a thread, because the file may lie on a network.
        await asyncio.to_thread(self._reread, self._file)

    def _reread(self, file: Path) -> None:
        """Take over a changed file. A broken file leaves the keys as they were."""
        entries, problem = self._entries, ""
        try:
            entries = _read(file)
        except KeysError as error:
            problem = str(error)
        if problem and problem != self._problem:
            logger.error("event=keys_refused reason=%s", problem)
        if entries != self._entries:
            names = ",".join(dict.fromkeys(entry.name for entry in entries))
            logger.warning("event=keys_changed names=%s", names)
        self._entries, self._problem = entries, problem


def check_reach(keys: Keys, host: str) -> None:
    """Refuse to serve other machines before the environment says who may use the service.

    host: the address that the service is to listen on

    Raises KeysError.
    """
    if not keys.stated and not is_loopback(host):
        raise KeysError(
            f"other machines can reach {host or 'all interfaces'}, and there are no API keys:"
            f" set {KEYS} or {KEYS_FILE} (docs/operations.md, Keys), or {KEYS}={NONE} if callers"
            " are checked elsewhere"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there. Of names, `localhost` alone counts."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def new_key(name: str) -> tuple[str, str]:
    """A new key and its line for the configuration. Raises KeysError for an unusable name."""
    if not _NAME.fullmatch(name):
        raise KeysError(f"{_NAME_RULE}, not '{name}'")
    key = secrets.token_urlsafe(_KEY_BYTES)
    return key, f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"


def _read(file: Path) -> tuple[Entry, ...]:
    try:
        text = file.read_text("utf-8-sig")
    except OSError as error:
        raise KeysError(f"{KEYS_FILE} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise KeysError(f"{KEYS_FILE} is not UTF-8") from None
    return _parsed(KEYS_FILE, text)


def _parsed(variable: str, text: str) -> tuple[Entry, ...]:
    entries: list[Entry] = []
    names: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        for item in line.partition("#")[0].split(","):
            if not item.strip():
                continue
            name, _, digest = (part.strip() for part in item.partition(":"))
            place = f"{variable}, line {number}"
            if not _HASH.fullmatch(digest):
                raise KeysError(
                    f"{place} must be name:sha256, with 64 hexadecimal digits: {_HOW}"
                )
            if not _NAME.fullmatch(name):
                raise KeysError(f"{place}: {_NAME_RULE}")
            entry = Entry(name, digest.lower())
            if names.setdefault(entry.sha256, name) != name:
                raise KeysError(f"{place} has the key of '{names[entry.sha256]}'")
            entries.append(entry)
    if not entries:
        raise KeysError(f"{variable} lists no key: {_HOW}")
    return tuple(entries)


def main() -> int:
    parser = argparse.ArgumentParser(prog=_COMMAND)
    parser.add_argument("name", help="who will use the key, for the log and metrics")
    try:
        key, line = new_key(parser.parse_args().name)
    except KeysError as error:
        parser.error(str(error))
    print(f"key, for the caller; it cannot be shown again: {key}")
    print(f"line for {KEYS} or the file of {KEYS_FILE}: {line}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
