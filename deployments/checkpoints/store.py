"""The folders in which weights are found, verified and stored. No torch: the router looks here too.

Folders, in the order in which they are searched: WHISPER_CHECKPOINT_DIR, the RunPod network
volume, Whisper's own cache.
"""

import errno
import fcntl
import hashlib
import logging
import os
import tempfile
import time
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import requests

from deployments import catalog
from deployments.catalog import OfficialModel
from deployments.contract.errors import CheckpointError

logger = logging.getLogger(__name__)

RUNPOD_VOLUME = Path("/runpod-volume")

# Whoever writes a file here writes at least every 30 s, so an older temporary file has lost its
# process.
_ABANDONED_AFTER_S = 3600


def find(name: str, checkpoint: str | None = None) -> Path | None:
    """Look for the weights of a model on this machine; None where there are none.

    No file is read: `verify` tells whether the file is OpenAI's.

    name: canonical name or alias
    checkpoint: the model's own file; where it is given, no other place is searched
    """
    if checkpoint:
        return _existing(Path(checkpoint).expanduser())
    model = catalog.find(name)
    if model is None:
        return None
    candidates = (_existing(folder / model.filename) for folder in _search_folders())
    return next(filter(None, candidates), None)


def verify(name: str, path: Path) -> None:
    """Raise CheckpointError unless `path` holds exactly the file that OpenAI published as `name`.

    Hashing reads the whole file (3 GB for the largest). A file that has passed is therefore
    remembered by path, size, time of change and inode, and is not read again. Damage that leaves
    all four alone goes unnoticed until the file is touched. Whoever can write to the file on
    purpose could change this process too.
    """
    model = catalog.find(name)
    if model is None:
        raise CheckpointError(f"'{name}' is not an official model: it has no SHA-256")
    try:
        marker = _passed_marker(model, path)
        if marker.exists():
            return
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(
            f"{path.name} cannot be read: {os.strerror(error.errno or errno.EIO)}"
        ) from error
    if sha256 != model.sha256:
        raise CheckpointError(
            f"{path.name} is corrupt (its SHA-256 is not the official one): "
            f"delete it and fetch '{model.name}' again"
        )
    _touch(marker)


def remember_verified(model: OfficialModel, path: Path) -> None:
    """Spare `verify` the reading of a file whose SHA-256 is known to be right."""
    with suppress(OSError):
        _touch(_passed_marker(model, path))


def looks_like_weights(path: Path) -> bool:
    """Whether `torch.load` could read the file: a whole zip archive, or a pickle.

    Half a download is neither.
    """
    with open(path, "rb") as file:
        return file.read(2) == b"\x80\x02" or zipfile.is_zipfile(file)


def writable_folder() -> Path:
    """The first of the folders that takes a file. Raises CheckpointError where none does."""
    for folder in _search_folders():
        if folder.parent == RUNPOD_VOLUME and not RUNPOD_VOLUME.is_dir():
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Permission bits tell too little: root, read-only mounts and full quotas need a trial.
            tempfile.TemporaryFile(dir=folder).close()
            return folder
        except OSError as error:
            logger.warning(
                "event=folder_not_writable path=%s error=%s", folder, error.strerror
            )
    raise CheckpointError(
        "no folder for weights is writable: set WHISPER_CHECKPOINT_DIR to one that is"
    )


def cache_home() -> Path:
    """The user's folder for caches, as the XDG base directory specification names it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))


@contextmanager
def locked(target: Path, name: str) -> Iterator[None]:
    """Let one thread or process at a time write `target`; a process that dies releases its lock.

    name: the model, for the log
    """
    try:
        # flock needs no more than read access, and the file may belong to another user.
        flags = os.O_RDONLY | os.O_CREAT
        lock = os.open(target.with_name(f".{target.name}.lock"), flags, 0o666)
    except OSError as error:
        raise _storage_error(error) from error
    try:
        # Some network volumes have no locks. There, two processes both download, and each puts the
        # same file in place.
        with suppress(OSError):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("event=weights_wait model=%s reason=another_process", name)
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextmanager
def stored(target: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which appears as `target` when the block ends without an error.

    Otherwise it disappears.

    Raises CheckpointError where the file cannot be written.
    """
    _remove_abandoned(target)
    # `tempfile` would make a file that only its owner may read.
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        with open(part, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except requests.RequestException:
        # It inherits from OSError, but comes from the network.
        raise
    except OSError as error:
        raise _storage_error(error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _existing(path: Path) -> Path | None:
    # Path.is_file raises for a folder that may not be entered; os.path counts such a folder as
    # empty.
    return path if os.path.isfile(path) else None


def _search_folders() -> list[Path]:
    configured = os.environ.get("WHISPER_CHECKPOINT_DIR")
    folders = [Path(configured).expanduser()] if configured else []
    return [*folders, RUNPOD_VOLUME / "whisper", cache_home() / "whisper"]


def _passed_marker(model: OfficialModel, path: Path) -> Path:
    """An empty file whose existence says that this very file has passed.

    Each file has a marker of its own, so there is no list to parse and processes cannot overwrite
    each other's entries.
    """
    stat = os.stat(path)
    version = (stat.st_size, stat.st_mtime_ns, stat.st_ino, model.sha256)
    key = hashlib.sha256(f"{os.path.abspath(path)} {version}".encode()).hexdigest()
    return cache_home() / "whisper-serve" / "verified" / key


def _touch(marker: Path) -> None:
    # Where the cache cannot be written, the next start hashes again.
    with suppress(OSError):
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()


def _remove_abandoned(target: Path) -> None:
    """Remove the temporary files of killed processes: gigabytes under hidden names."""
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
