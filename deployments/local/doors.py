"""The HTTP doors through which a recording is given to the application, and what each prints."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import requests

from deployments.config import AppArgs, ModelArgs
from deployments.contract.request import parse_request
from deployments.local import loopback
from deployments.local.console import readable_json

_CHUNK_BYTES = 1 << 20


class Refused(Exception):
    """The application's error. `str(error)` is its text."""


class Door(Protocol):
    """One request to one door."""

    def model(self, args: AppArgs) -> ModelArgs:
        """The model that the request names. Raises WhisperServeError for a wrong request."""

    def ask(self, base_url: str) -> str:
        """The answer, as it is printed. Raises Refused and requests.RequestException."""


class NativeDoor:
    """`POST /transcribe` with a URL; a file is offered to the application by loopback HTTP."""

    def __init__(self, audio: str, fields: dict[str, Any]) -> None:
        self._audio = audio
        self._fields = fields

    def model(self, args: AppArgs) -> ModelArgs:
        request = parse_request(self._fields | {"audio": self._audio})
        model = args.model(request.model or args.default_model)
        args.check_fits(request, model)
        return model

    def ask(self, base_url: str) -> str:
        with _url_of(self._audio) as url:
            request = self._fields | {"audio": url}
            response = _session().post(
                f"{base_url}/transcribe", json=request, timeout=None
            )
        result = response.json()
        if not response.ok:
            raise Refused(result["error"])
        return readable_json(result) + "\n"


class OpenAIDoor:
    """`POST /v1/audio/transcriptions` with the file itself, as OpenAI's clients upload it."""

    def __init__(self, audio: str, fields: dict[str, Any]) -> None:
        self._file = None if _is_url(audio) else Path(audio)
        self._fields = fields if self._file else fields | {"url": audio}

    def model(self, args: AppArgs) -> ModelArgs:
        # Imported here, because it imports Ray, which first needs its environment.
        from deployments.api.openai.request import parse

        fields = dict(self._fields)
        parsed = parse(fields, "transcribe", args, has_file=self._file is not None)
        return args.model(parsed.request["model"])

    def ask(self, base_url: str) -> str:
        url = f"{base_url}/v1/audio/transcriptions"
        if self._file is None:
            response = _session().post(url, json=self._fields, timeout=None)
        else:
            boundary = secrets.token_hex(16)
            response = _session().post(
                url,
                data=_form(self._fields, self._file, boundary),
                headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
                timeout=None,
            )
        if not response.ok:
            raise Refused(response.json()["error"]["message"])
        if response.headers["content-type"].startswith("application/json"):
            return readable_json(response.json()) + "\n"
        return response.content.decode()


DOORS: dict[str, type[NativeDoor] | type[OpenAIDoor]] = {
    "native": NativeDoor,
    "openai": OpenAIDoor,
}


def _session() -> requests.Session:
    """A session with the user's API key, for an application that needs one."""
    session = loopback.session()
    if key := os.environ.get("WHISPER_API_KEY", "").strip():
        session.headers["Authorization"] = f"Bearer {key}"
    return session


def _is_url(audio: str) -> bool:
    return "://" in audio


@contextlib.contextmanager
def _url_of(audio: str) -> Iterator[str]:
    with ExitStack() as stack:
        yield (
            audio
            if _is_url(audio)
            else stack.enter_context(loopback.served(Path(audio)))
        )


def _form(fields: dict[str, Any], file: Path, boundary: str) -> Iterator[bytes]:
    """A form in pieces, because `requests` would hold the whole file in memory."""
    head = f"--{boundary}\r\nContent-Disposition: form-data; name="
    for name, value in fields.items():
        for item in value if isinstance(value, list) else [value]:
            text = str(item).lower() if isinstance(item, bool) else str(item)
            yield f'{head}"{name}"\r\n\r\n{text}\r\n'.encode()
    name = file.name.replace('"', "%22")
    yield f'{head}"file"; filename="{name}"\r\n\r\n'.encode()
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            yield chunk
    yield f"\r\n--{boundary}--\r\n".encode()
