"""Texts that come where a file was meant, told apart by their first bytes."""

import io
from pathlib import Path

import pytest

from deployments.audio.not_audio import kind_of_text

RECORDINGS = [
    path
    for path in Path(__file__).parent.iterdir()
    if path.suffix in (".flac", ".mp3", ".mp4", ".ogg", ".wav", ".webm", ".m4a", ".aac")
]
HTML, XML, JSON = "a web page (HTML)", "an XML document", "a JSON document"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("<!DOCTYPE html><html><head><title>Google Drive - Virus scan", HTML),
        ("\n\n  <!doctype HTML PUBLIC '-//W3C//DTD HTML 4.01//EN'>", HTML),
        ("<HTML><BODY>Sign in</BODY></HTML>", HTML),
        ("<!-- saved from -->\n<html lang=en>", HTML),
        ("<?xml version='1.0'?>\n<!DOCTYPE html>\n<html xmlns='x'>", HTML),
        ("<script>location = '/login'</script>", HTML),
        ("<h1>502 Bad Gateway</h1>", HTML),
        ("<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", XML),
        ("<Error><Code>NoSuchKey</Code></Error>", XML),
        ("<ListBucketResult xmlns='http://s3.amazonaws.com/'>", XML),
        ("<!-- a comment -->\n<rss version='2.0'><channel><title>Podcast</title>", XML),
        ("<?xml version='1.0'?><svg><style>a {}</style><title>x</title></svg>", XML),
        ("<??>" * 1000 + "<x>", XML),
        ('{"error": {"code": 404}}', JSON),
        ('{ "items": [' + '"x", ' * 10_000, JSON),
        ("[]", JSON),
        ('[{"a": 1}]', JSON),
        ("{}", JSON),
        ("#EXTM3U\n#EXT-X-VERSION:3", "a playlist"),
        ("[playlist]\nFile1=http://x", "a playlist"),
        ("Not found", "text"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1", "text"),
        ("\u00e9" * 5000, "text"),
        ("{not json", "text"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_text_is_told_by_its_beginning(text: str, kind: str, encoding: str) -> None:
    assert kind_of_text(io.BytesIO(text.encode(encoding))) == kind


def test_a_page_in_an_old_encoding_is_a_page() -> None:
    page = "<html><title>P\u00e1gina n\u00e3o encontrada".encode("latin-1")
    assert kind_of_text(io.BytesIO(page)) == HTML


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.name)
def test_a_recording_is_no_text(path: Path) -> None:
    with path.open("rb") as file:
        assert kind_of_text(file) is None


@pytest.mark.parametrize(
    "data", [b"", b" \n", b"<html>\0", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", b"\xff\xfb\x90d"]
)
def test_what_is_neither_text_nor_audio_is_not_named(data: bytes) -> None:
    assert kind_of_text(io.BytesIO(data)) is None
