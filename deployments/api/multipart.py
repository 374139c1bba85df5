"""Forms with a file: multipart/form-data (RFC 7578), whose file goes to disk while it arrives."""

import logging
import re
from collections.abc import Callable
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from deployments.audio.sizes import size_text
from deployments.contract.errors import InvalidRequestError, RequestTooLargeError
from deployments.contract.request import short

# Of all fields but the file. The longest that a field takes is a list of a million characters.
MAX_FIELDS_BYTES = 4 << 20
_MAX_PARTS = 1000
# The values of Content-Transfer-Encoding for bytes that are sent as they are.
_UNCHANGED = (b"", b"binary", b"7bit", b"8bit")
_FILENAME = re.compile(rb";\s*filename\*?\s*=", re.IGNORECASE)

# The parser would log pieces of the body. What is wrong with it reaches the caller as an error.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


class Form:
    """Reads a form piece by piece.

    The file is the part `file`, whatever its file name and its content type, or the part `audio`
    where that has a file name. Every other part is text in UTF-8.

    content_type: of the body; names the boundary between the parts
    new_file: gives the file to write to, when the part begins
    max_file_bytes: the largest file that is taken

    fields: the text of each part by its name; a list of texts where a name is repeated
    file: None as long as no file has begun

    Raises InvalidRequestError where there is no boundary.
    """

    def __init__(
        self, content_type: str, new_file: Callable[[], BinaryIO], max_file_bytes: int
    ) -> None:
        self.fields: dict[str, str | list[str]] = {}
        self.file: BinaryIO | None = None
        self._new_file = new_file
        self._max_file_bytes = max_file_bytes
        self._file_bytes = self._fields_bytes = self._parts = 0
        self._complete = False
        self._header_name, self._header_value = bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        # The part's text so far; None in the file.
        self._text: bytearray | None = None
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise InvalidRequestError(
                "The form's Content-Type names no boundary: do not set this header yourself,"
                " since your HTTP client adds the boundary to it"
            )
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._read_header_name,
                    "on_header_value": self._read_header_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._open_part,
                    "on_part_data": self._read_part,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except FormParserError:
            raise InvalidRequestError("The form's boundary is too long") from None

    def feed(self, data: bytes) -> None:
        """Read the next piece of the body, of any length. Blocks while the file is written.

        Raises InvalidRequestError, RequestTooLargeError, and OSError where the disk takes no more.
        """
        try:
            self._parser.write(data)
        except FormParserError:
            # Without the cause, whose traceback holds pieces of the body.
            raise InvalidRequestError(
                "The form is not valid multipart/form-data: a boundary or the header of a part is"
                " wrong"
            ) from None

    def finish(self) -> None:
        """The body has ended. Raises InvalidRequestError, and OSError as `feed` does."""
        if not self._complete:
            raise InvalidRequestError(
                "The form breaks off: the boundary after its last part is missing"
            )
        if self.file is not None:
            if not self._file_bytes:
                raise InvalidRequestError("Invalid file: the form's file is empty")
            self.file.seek(0)

    def _begin_part(self) -> None:
        self._headers = {}
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise InvalidRequestError(f"The form has more than {_MAX_PARTS} fields")

    def _read_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _read_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        name, value = bytes(self._header_name).lower(), bytes(self._header_value)
        self._headers[name] = value.strip()
        self._header_name.clear()
        self._header_value.clear()

    def _open_part(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"")
        name = parse_options_header(disposition)[1].get(b"name")
        if name is None:
            raise InvalidRequestError(
                "A part of the form has no name (Content-Disposition: form-data; name=...)"
            )
        encoding = self._headers.get(b"content-transfer-encoding", b"").lower()
        if encoding not in _UNCHANGED:
            raise InvalidRequestError(
                "A part of the form has a Content-Transfer-Encoding: send its bytes as they are"
            )
        self._name = name.decode(errors="replace")
        is_file = self._name == "file" or (
            self._name == "audio" and _FILENAME.search(disposition) is not None
        )
        if not is_file:
            self._text = bytearray()
            return
        if self.file is not None:
            raise InvalidRequestError(
                "The form has two files: send one in each request"
            )
        self._text = None
        self.file = self._new_file()

    def _read_part(self, data: bytes, start: int, end: int) -> None:
        if self._text is not None:
            self._fields_bytes += end - start
            if self._fields_bytes > MAX_FIELDS_BYTES:
                raise RequestTooLargeError(
                    f"The form's fields are larger than {MAX_FIELDS_BYTES >> 20} MiB:"
                    " a file goes into the field 'file'"
                )
            self._text += data[start:end]
            return
        self._file_bytes += end - start
        if self._file_bytes > self._max_file_bytes:
            raise file_too_large(self._max_file_bytes)
        assert self.file is not None
        self.file.write(memoryview(data)[start:end])

    def _end_part(self) -> None:
        if self._text is None:
            return
        try:
            text = self._text.decode()
        except UnicodeDecodeError:
            raise InvalidRequestError(
                f"The form's field '{short(self._name)}' is no text in UTF-8:"
                " a file goes into the field 'file'"
            ) from None
        known = self.fields.get(self._name)
        if known is None:
            self.fields[self._name] = text
        elif isinstance(known, list):
            known.append(text)
        else:
            self.fields[self._name] = [known, text]

    def _end(self) -> None:
        self._complete = True


def file_too_large(max_bytes: int) -> RequestTooLargeError:
    return RequestTooLargeError(
        f"The file is larger than the limit of {size_text(max_bytes)} (max_download_bytes)"
    )
