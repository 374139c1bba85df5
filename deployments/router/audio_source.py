"""Where a request's audio is."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import BinaryIO, cast

from deployments.audio.disk import disk_full_reported
from deployments.audio.spool import Spool
from deployments.contract.request import TranscriptionRequest, UploadRequest
from deployments.router.request_log import caller_key


@dataclass(frozen=True, repr=False)
class RemoteAudio:
    """A file to be downloaded.

    headers: the caller's, often secret
    """

    url: str
    headers: Mapping[str, str]


# A download, or the file that came inside or beside the request.
AudioSource = RemoteAudio | BinaryIO


def source_of(
    request: UploadRequest, upload: BinaryIO | None, spool: Spool
) -> AudioSource:
    """Where a request's audio is.

    upload: the file that came beside the request; None where the request itself names its audio
    spool: where a file inside the request is written

    Raises InvalidRequestError where the request has a text in which there is no file, and
    OverloadedError where there is no room for the file.
    """
    if upload is not None:
        return upload
    assert isinstance(request, TranscriptionRequest)
    pieces = request.inline_audio()
    if pieces is None:
        return RemoteAudio((request.audio or "").strip(), request.audio_headers or {})
    with disk_full_reported(), ExitStack() as stack:
        # On disk, because many such requests may wait.
        file = stack.enter_context(spool.file(caller_key.get()))
        file.writelines(pieces)
        file.seek(0)
        # Fetcher closes the file, or it is closed when it is collected.
        stack.pop_all()
        return cast(BinaryIO, file)
