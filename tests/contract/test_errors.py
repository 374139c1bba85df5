import pickle

import pytest

from deployments.contract import errors
from deployments.contract.errors import WhisperServeError


def all_kinds(base: type[WhisperServeError]) -> list[type[WhisperServeError]]:
    """`base` and its subclasses, but for those that other modules may add."""
    below = [kind for child in base.__subclasses__() for kind in all_kinds(child)]
    return [kind for kind in [base, *below] if kind.__module__ == errors.__name__]


KINDS = all_kinds(WhisperServeError)
TEXTS: dict[type[WhisperServeError], tuple[WhisperServeError, str]] = {
    errors.AudioUrlError: (
        errors.AudioUrlError("the scheme is not http"),
        "Audio download failed: the scheme is not http",
    ),
    errors.AudioHostError: (
        errors.AudioHostError("HTTP status 503"),
        "Audio download failed: HTTP status 503",
    ),
    errors.InvalidAudioError: (
        errors.InvalidAudioError("no audio stream"),
        "Audio decoding failed: no audio stream",
    ),
    errors.AudioTooComplexError: (
        errors.AudioTooComplexError("it takes too long"),
        "Audio decoding failed: it takes too long",
    ),
    errors.ModelUnavailableError: (
        errors.ModelUnavailableError("base", "out of memory"),
        "Model 'base' is not available: out of memory",
    ),
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def example(kind: type[WhisperServeError]) -> tuple[WhisperServeError, str]:
    return TEXTS.get(kind) or (kind("what to change"), "what to change")


def test_the_statuses_and_types_are_those_callers_rely_on() -> None:
    assert {kind.type: kind.status for kind in KINDS} == {
        "internal_error": 500,
        "invalid_request": 422,
        "request_too_large": 413,
        "unsupported_media_type": 415,
        "audio_url_error": 422,
        "audio_host_error": 502,
        "invalid_audio": 422,
        "audio_too_complex": 422,
        "harmful_audio": 422,
        "too_many_requests": 429,
        "model_unavailable": 503,
        "overloaded": 503,
        "service_unavailable": 503,
        "request_timeout": 504,
        "decoding_limit": 422,
        "request_cancelled": 499,
        "transcription_failed": 500,
    }


def test_no_two_errors_share_a_type() -> None:
    assert len({kind.type for kind in KINDS}) == len(KINDS)


@EVERY_KIND
def test_the_text_is_the_one_for_the_caller(kind: type[WhisperServeError]) -> None:
    error, text = example(kind)
    assert str(error) == text


@EVERY_KIND
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_the_way_between_processes(
    kind: type[WhisperServeError], protocol: int
) -> None:
    error, text = example(kind)
    copy = pickle.loads(pickle.dumps(error, protocol))
    assert type(copy) is kind
    assert (str(copy), copy.status, copy.type) == (text, kind.status, kind.type)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_when_to_try_again_survives_that_way_too(protocol: int) -> None:
    for error in (
        errors.OverloadedError("later", retry_after_s=17),
        errors.TooManyRequestsError("later", retry_after_s=17),
    ):
        copy = pickle.loads(pickle.dumps(error, protocol))
        assert (str(copy), copy.retry_after_s) == ("later", 17)
    # Of other errors of the class, nothing more is known than before.
    assert errors.OverloadedError("later").retry_after_s == 10


def test_a_fault_of_the_host_is_a_fault_of_the_download() -> None:
    assert issubclass(errors.AudioHostError, errors.AudioUrlError)
