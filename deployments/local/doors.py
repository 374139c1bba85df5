"""The HTTP APIs to which `transcribe` can send a recording, and how it prints their answers."""

import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import requests

from deployments.config import AppArgs, ModelArgs
from deployments.contract.options import Null
from deployments.contract.request import UploadRequest, parse_request, parse_upload
from deployments.local import loopback
from deployments.local.console import readable_json

_CHUNK_BYTES = 1 << 20
_KEY = "WHISPER_API_KEY"
# The fields in which a form's text `null` means null.
_READ_NULL = {
    name for name, field in UploadRequest.model_fields.items() if Null in field.metadata
}


class RequestFailed(Exception):
    """The application's error. `str(error)` is its text."""


class Door(Protocol):
    """One request to one of the service's HTTP APIs."""

    def model(self, args: AppArgs) -> ModelArgs:
        """The model that the request names. Raises WhisperServeError for a wrong request."""

    def ask(self, base_url: str) -> str:
        """The answer, as it is printed. Raises RequestFailed and requests.RequestException."""


class NativeDoor:
    """`POST /transcribe` with a URL, or with the file itself."""

    def __init__(self, audio: str, fields: dict[str, Any]) -> None:
        self._file = None if is_url(audio) else Path(audio)
        self._fields = fields | ({} if self._file else {"audio": audio})

    def model(self, args: AppArgs) -> ModelArgs:
        parse = parse_upload if self._file else parse_request
        request = parse(self._fields)
        model = args.model(request.model or args.default_model)
        args.check_fits(request, model)
        return model

    def ask(self, base_url: str) -> str:
        response = _post(f"{base_url}/transcribe", self._fields, self._file)
        result = response.json()
        if not response.ok:
            raise _failed(response, result["error"])
        return readable_json(result) + "\n"


class OpenAIDoor:
    """`POST /v1/audio/transcriptions` with the file itself, as OpenAI's clients upload it."""

    def __init__(self, audio: str, fields: dict[str, Any]) -> None:
        self._file = None if is_url(audio) else Path(audio)
        # JSON gets the fields as texts too: there, null itself would count as absent.
        self._fields: dict[str, Any] = _texts(fields)
        self._fields |= {} if self._file else {"url": audio}

    def model(self, args: AppArgs) -> ModelArgs:
        # Imported here, because it imports Ray, which first needs its environment.
        from deployments.api.openai.request import parse

        has_file = self._file is not None
        parsed = parse(self._fields, "transcribe", args, has_file)
        return args.model(parsed.request["model"])

    def ask(self, base_url: str) -> str:
        url = f"{base_url}/v1/audio/transcriptions"
        response = _post(url, self._fields, self._file)
        if not response.ok:
            raise _failed(response, response.json()["error"]["message"])
        if response.headers["content-type"].startswith("application/json"):
            return readable_json(response.json()) + "\n"
        return response.content.decode()


DOORS: dict[str, Callable[[str, dict[str, Any]], Door]] = {
    "native": NativeDoor,
    "openai": OpenAIDoor,
}


def _failed(response: requests.Response, text: str) -> RequestFailed:
    if response.status_code == requests.codes.unauthorized:
        text = f"the application needs an API key: set {_KEY} to a key that it knows"
    return RequestFailed(text)


def is_url(audio: str) -> bool:
    return "://" in audio


def _session() -> requests.Session:
    """A session with the user's API key, for an application that needs one."""
    session = loopback.session()
    if key := os.environ.get(_KEY, "").strip():
        session.headers["Authorization"] = f"Bearer {key}"
    return session


def _post(url: str, fields: dict[str, Any], file: Path | None) -> requests.Response:
    """A request as JSON, or as a form with the file."""
    if file is None:
        return _session().post(url, json=fields, timeout=None)
    boundary = secrets.token_hex(16)
    return _session().post(
        url,
        data=_form(_texts(fields), file, boundary),
        headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
        timeout=None,
    )


def _texts(fields: dict[str, Any]) -> dict[str, str | list[str]]:
    """The fields as a form holds them. Null is left out where a form cannot say null."""
    return {
        # An empty list is sent as JSON, because a form has no other way to write one.
        name: [_text(item) for item in value]
        if isinstance(value, list) and value
        else _text(value)
        for name, value in fields.items()
        if value is not None or name in _READ_NULL
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _form(
    fields: dict[str, str | list[str]], file: Path, boundary: str
) -> Iterator[bytes]:
    """A form in pieces, because `requests` would hold the whole file in memory."""
    head = f"--{boundary}\r\nContent-Disposition: form-data; name="
    for name, value in fields.items():
        for text in value if isinstance(value, list) else [value]:
            part = f'{head}"{_quoted(name)}"\r\n\r\n{text}\r\n'
            yield part.encode("utf-8", "replace")
    part = f'{head}"file"; filename="{_quoted(file.name)}"\r\n\r\n'
    yield part.encode("utf-8", "replace")
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            yield chunk
    yield f"\r\n--{boundary}--\r\n".encode()


def _quoted(name: str) -> str:
    """A name as browsers write it into a form's header."""
    return name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
