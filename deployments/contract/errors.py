"""Every failure that a caller can meet.

    WhisperServeError              500  internal_error
    ├── InvalidRequestError        422  invalid_request
    ├── RequestTooLargeError       413  request_too_large
    ├── UnsupportedMediaTypeError  415  unsupported_media_type
    ├── AudioUrlError              422  audio_url_error
    │   └── AudioHostError         502  audio_host_error
    ├── InvalidAudioError          422  invalid_audio
    │   └── AudioTooComplexError   422  audio_too_complex
    ├── HarmfulAudioError          422  harmful_audio
    ├── TooManyRequestsError       429  too_many_requests
    ├── ModelUnavailableError      503  model_unavailable
    ├── OverloadedError            503  overloaded
    ├── ServiceUnavailableError    503  service_unavailable
    ├── RequestTimeoutError        504  request_timeout
    ├── DecodingLimitError         422  decoding_limit
    ├── RequestCancelledError      499  request_cancelled
    └── TranscriptionError         500  transcription_failed

Each error knows its HTTP status, its machine-readable type and its short text, and an error that
passes knows after how many seconds a caller may try again. The text is written for the caller: it
says what to change and holds no traceback, host name or URL query string. All errors pickle,
because Ray carries them between processes.

CheckpointError and DeviceError are not in the tree: a replica turns them into a
ModelUnavailableError.
"""

import re

# How the texts begin that name a field of the request.
_FIELD = re.compile(
    r"(?:Invalid|Unknown parameter:|Missing required parameter:) '?(\w+)'?"
)


class WhisperServeError(Exception):
    """Base of all errors of the contract. `str(error)` is the text that reaches the caller.

    retry_after_s: seconds after which another try may succeed, where more is known of them than
        what holds for every error of the class; None: what holds for the class
    """

    status = 500
    type = "internal_error"
    prefix = ""
    retry_after_s: int | None = None

    def __init__(self, *args: object, retry_after_s: int | None = None) -> None:
        super().__init__(*args)
        if retry_after_s is not None:
            # Pickling keeps an error's attributes beside its arguments.
            self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.prefix + super().__str__()


class InvalidRequestError(WhisperServeError):
    """The request breaks the contract, or names a track or channel that its file lacks."""

    status = 422
    type = "invalid_request"

    @property
    def field(self) -> str | None:
        """The field of the request that the text names first, if it names one."""
        found = _FIELD.match(str(self))
        return found[1] if found else None


class RequestTooLargeError(WhisperServeError):
    """The HTTP body, or the file in it, is larger than its limit."""

    status = 413
    type = "request_too_large"


class UnsupportedMediaTypeError(WhisperServeError):
    """The HTTP body is neither JSON nor a file, and says so itself: an image, compressed bytes."""

    status = 415
    type = "unsupported_media_type"


class AudioUrlError(WhisperServeError):
    """The download failed because of the URL: its scheme, its target, the size of its file."""

    status = 422
    type = "audio_url_error"
    prefix = "Audio download failed: "


class AudioHostError(AudioUrlError):
    """The download failed because of the host: unreachable, overloaded, broken, too slow."""

    status = 502
    type = "audio_host_error"


class InvalidAudioError(WhisperServeError):
    """The file holds nothing that can be decoded, or more than is allowed."""

    status = 422
    type = "invalid_audio"
    prefix = "Audio decoding failed: "


class AudioTooComplexError(InvalidAudioError):
    """Decoding the file takes more time or memory than a recording of its length can need."""

    type = "audio_too_complex"


class HarmfulAudioError(WhisperServeError):
    """The same recording has ended replicas some minutes ago, so it is refused for a while."""

    status = 422
    type = "harmful_audio"


class TooManyRequestsError(WhisperServeError):
    """The caller's API key has as many requests waiting or in work as one key may have."""

    status = 429
    type = "too_many_requests"
    retry_after_s = 10


class ModelUnavailableError(WhisperServeError):
    """The model cannot start, or its replica is gone. A later request may find it well again."""

    status = 503
    type = "model_unavailable"
    retry_after_s = 30

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(model, reason)

    def __str__(self) -> str:
        model, reason = self.args
        return f"Model '{model}' is not available: {reason}"


class OverloadedError(WhisperServeError):
    """More is asked of the service at the moment than its configuration or its machine allows.

    Too many requests wait, or hold too many bytes; too many host names wait to be resolved; or the
    machine runs short of disk, memory or CPU time.
    """

    status = 503
    type = "overloaded"
    retry_after_s = 10


class ServiceUnavailableError(WhisperServeError):
    """The service cannot do the request's work at the moment, but soon can, or another instance.

    The Router has died or does not run yet; the service stops, or was deployed anew without the
    request's model; or no process to decode files can be started.
    """

    status = 503
    type = "service_unavailable"
    retry_after_s = 5


class RequestTimeoutError(WhisperServeError):
    """The request or its body took longer than `request_timeout_s`, or the body came slowly."""

    status = 504
    type = "request_timeout"


class DecodingLimitError(WhisperServeError):
    """The request asks for more decoding than `max_decode_s_per_audio_s` allows for its audio.

    It is the request's fault and not a lack of time: sent again, it would end in the same way.
    """

    status = 422
    type = "decoding_limit"


class RequestCancelledError(WhisperServeError):
    """The caller went away. The status is nginx's 499; nobody is left to read it."""

    status = 499
    type = "request_cancelled"


class TranscriptionError(WhisperServeError):
    """The model failed on this request."""

    status = 500
    type = "transcription_failed"


class CheckpointError(Exception):
    """No usable weights.

    The text becomes the reason of a ModelUnavailableError: what is wrong and what to do, without
    host name, URL or folder.
    """


class DeviceError(Exception):
    """No usable GPU where one is to be used.

    The text becomes the reason of a ModelUnavailableError, or tells why the application does not
    start: what is wrong with card, driver or build.
    """
