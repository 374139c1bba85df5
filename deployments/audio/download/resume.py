"""A file that arrives over several tries (RFC 9110, section 14).

After a break the rest is asked for by Range. If-Range makes the host send the whole file instead
where the file has changed; what it sends is checked nevertheless, because some hosts ignore that.
"""

import re
from datetime import timedelta
from typing import BinaryIO

import requests

from deployments.audio.download.failures import TemporaryError, http_date

_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]*"')
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.IGNORECASE)
_ANOTHER_PART = "the host gives another part of the file than was asked for"


class PartialFile:
    """What has arrived of a file so far.

    file: where the bytes go, empty at first
    total: how many bytes the whole file has; None where the host does not tell
    content_encoding: in which the host sends it
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.restart()

    def restart(self) -> None:
        """Forget everything: the file has to be fetched from its beginning."""
        self.file.seek(0)
        self.file.truncate()
        self.total: int | None = None
        self.content_encoding = ""
        self._validators: dict[str, str] = {}
        self._strong_validator: str | None = None

    @property
    def size(self) -> int:
        return self.file.tell()

    @property
    def resumable(self) -> bool:
        return self.size > 0 and self._strong_validator is not None

    def headers(self) -> dict[str, str]:
        """The headers that ask for what is missing; none where the whole file is wanted.

        What has arrived of a file that cannot be gone on with is forgotten here.
        """
        if not self.resumable:
            self.restart()
            return {}
        return {
            "Range": f"bytes={self.size}-",
            "If-Range": self._strong_validator or "",
        }

    def begin(self, response: requests.Response) -> None:
        """Make ready for the body of a successful answer.

        Raises TemporaryError if the body does not continue what is here.
        """
        if response.status_code != 206:
            self.restart()
            self.total = response.raw.length_remaining
            self._remember(response)
            return
        part = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if part is None or not self._continues(part, response):
            self.restart()
            raise TemporaryError(_ANOTHER_PART)
        if part[3] != "*":
            self.total = int(part[3])
        if self.size == 0:
            self._remember(response)

    def end(self) -> None:
        """Raise TemporaryError if the file is not whole."""
        if self.total is None or self.size == self.total:
            return
        if self.size > self.total:
            self.restart()
            raise TemporaryError(_ANOTHER_PART)
        raise TemporaryError("connection cut")

    def _continues(self, part: re.Match[str], response: requests.Response) -> bool:
        start, last = int(part[1]), int(part[2])
        length = response.raw.length_remaining
        if start != self.size or length not in (None, last - start + 1):
            return False
        if self.size == 0:
            return True
        if self.total is not None and part[3] not in ("*", str(self.total)):
            return False
        if response.headers.get("Content-Encoding", "") != self.content_encoding:
            return False
        # What the answer says about the file must be what was said before.
        return all(
            response.headers.get(name, known) == known
            for name, known in self._validators.items()
        )

    def _remember(self, response: requests.Response) -> None:
        headers = response.headers
        self.content_encoding = headers.get("Content-Encoding", "")
        self._validators = {
            name: headers[name] for name in ("ETag", "Last-Modified") if name in headers
        }
        self._strong_validator = _strong_validator(response)


def _strong_validator(response: requests.Response) -> str | None:
    """What names this very version of the file, if the host gives parts of it at all."""
    headers = response.headers
    if headers.get("Accept-Ranges", "").strip().lower() == "none":
        return None
    if _STRONG_ETAG.fullmatch(etag := headers.get("ETag", "").strip()):
        return etag
    modified = http_date(headers.get("Last-Modified", ""))
    sent = http_date(headers.get("Date", ""))
    # A file may change twice within the second that a date can tell.
    if modified is None or (sent and sent - modified < timedelta(seconds=1)):
        return None
    return headers["Last-Modified"].strip()
