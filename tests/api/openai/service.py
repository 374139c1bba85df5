"""A service on a real port whose model answers as a test tells it."""

from typing import Any

from openai import OpenAI
from ray.exceptions import RayTaskError

from deployments.contract.errors import WhisperServeError
from deployments.contract.options import TranscriptionOptions
from tests.support.handles import Handle, Response, events


class Service:
    """url: without a slash at the end. handle: of all models."""

    def __init__(self, url: str, handle: Handle) -> None:
        self.url = url
        self._handle = handle

    def answers(self, *items: Any, delay_s: float = 0.0) -> Response:
        """From now on each request is answered by these events; returns their response."""
        response = events(*items, delay_s=delay_s)
        self.answers_in_turn(response)
        return response

    def answers_in_turn(self, *responses: Response) -> None:
        self._handle.responses["stream"] = list(responses)
        self._handle.calls.clear()
        self._handle.arguments.clear()

    @property
    def transcriptions(self) -> int:
        """How many have reached the model since `answers`."""
        return self._handle.calls.count("stream")

    @property
    def options(self) -> TranscriptionOptions:
        """The options with which the last request reached the model."""
        calls = zip(self._handle.calls, self._handle.arguments, strict=True)
        given: TranscriptionOptions = [a[1] for name, a in calls if name == "stream"][
            -1
        ]
        return given

    def client(self, path: str = "/v1", **settings: Any) -> OpenAI:
        """OpenAI's client, which refuses every answer that is not of OpenAI's schema."""
        return OpenAI(
            base_url=self.url + path,
            api_key="any",
            _strict_response_validation=True,
            **settings,
        )


def failing(error: WhisperServeError) -> Any:
    """An event that fails as a replica's error does."""
    return RayTaskError("stream", "", error).as_instanceof_cause()
