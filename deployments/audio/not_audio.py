"""What a file is that is no audio: hosts give a page or an error where a file was meant.

This is asked only about files that could not be decoded, so it never refuses a recording.
"""

import re
from typing import BinaryIO

_HEAD_BYTES = 4096
_ENCODING_OF_MARK = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_NOT_IN_TEXT = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
# What may stand before the first element: a prolog and comments.
_BEFORE = r"(?>\s+|<\?.*?\?>|<!--.*?-->)*+"
_ELEMENTS_OF_HTML = (
    "html|head|title|meta|link|style|script|body|div|p|a|h1|h2|center|table|iframe|form"
)
# The first pattern that matches decides.
_KINDS = (
    (
        re.compile(
            rf"{_BEFORE}<(!doctype\s+html|({_ELEMENTS_OF_HTML})[\s/>])",
            re.IGNORECASE | re.DOTALL,
        ),
        "a web page (HTML)",
    ),
    (re.compile(r"<[?!a-z_]", re.IGNORECASE), "an XML document"),
    (
        re.compile(r'\{\s*["}]|\[\s*(["{\[\]\d-]|true|false|null)'),
        "a JSON document",
    ),
    (re.compile(r"#EXTM3U|\[playlist\]"), "a playlist"),
)


def kind_of_text(file: BinaryIO) -> str | None:
    """What a text is, in words such as "a web page (HTML)"; None for anything but text.

    file: seekable
    """
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    marks = [
        encoding
        for mark, encoding in _ENCODING_OF_MARK.items()
        if head.startswith(mark)
    ]
    text = head.decode(marks[0] if marks else "utf-8", "replace").strip()
    if not text or _NOT_IN_TEXT.search(text):
        return None
    for pattern, kind in _KINDS:
        if pattern.match(text):
            return kind
    # A character may be cut at the end of the head; old pages are not in UTF-8, but have tags.
    return None if "\ufffd" in text[:-1] else "text"
