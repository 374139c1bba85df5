"""The download of an official checkpoint: verified while it comes, in place only when it is whole."""

import errno
import hashlib
import logging
import os
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import requests
from tqdm import tqdm  # type: ignore[import-untyped]

from deployments.catalog import OfficialModel
from deployments.contract.errors import CheckpointError

logger = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 30
_RETRY_AFTER_S = 0.5
_LOG_PROGRESS_EVERY_S = 10
_CHUNK_BYTES = 1 << 20
# A download in work writes at least every `_READ_TIMEOUT_S`, so an older temporary file has lost its process.
_ABANDONED_AFTER_S = 3600


class UnreachableError(CheckpointError):
    """The network failed, not the answer."""


def download(model: OfficialModel, target: Path, progress: bool) -> None:
    """Download a model's official file and put it in place, verified; blocking.

    progress: a bar on stderr when that is a terminal, else a line in the log now and then

    Raises CheckpointError, UnreachableError among it.
    """
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
        raise UnreachableError(
            f"the weights of '{model.name}' are not on this machine and OpenAI's server cannot be reached: "
            f"give it a way there, or {_by_hand(model)}"
        ) from None
    except requests.RequestException as error:
        raise CheckpointError(
            f"the download of '{model.name}' failed ({type(error).__name__}): check this machine's proxy settings"
        ) from None
    logger.info("%s: downloaded in %.0f s", model.name, time.monotonic() - start)


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
        with stored(target) as file:
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


@contextmanager
def stored(target: Path) -> Iterator[IO[bytes]]:
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
        raise storage_error(error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _remove_abandoned(target: Path) -> None:
    """A killed process leaves gigabytes behind, and nobody else would look for them under a hidden name."""
    with suppress(OSError):
        for part in target.parent.glob(f".{target.name}.*.part"):
            if time.time() - part.stat().st_mtime > _ABANDONED_AFTER_S:
                part.unlink(missing_ok=True)


def storage_error(error: OSError) -> CheckpointError:
    advice = "set WHISPER_CHECKPOINT_DIR to another folder"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CheckpointError(f"no space left for the weights: free some, or {advice}")
    reason = os.strerror(error.errno or errno.EIO)
    return CheckpointError(f"the weights cannot be stored ({reason}): {advice}")


def _by_hand(model: OfficialModel) -> str:
    return f"put {model.filename} into the folder that WHISPER_CHECKPOINT_DIR names"
