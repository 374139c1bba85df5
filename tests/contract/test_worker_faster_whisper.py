"""What docs/clients.md says of jobs that were written for RunPod's worker-faster_whisper."""

import pytest

from deployments.contract.errors import InvalidRequestError
from deployments.contract.options import TranscriptionOptions
from deployments.contract.request import parse_request

# The worker's fields with its defaults, in its code of May 2025.
DEFAULTS = {
    "model": "base",
    "language": None,
    "temperature": 0,
    "best_of": 5,
    "beam_size": 5,
    "patience": 1.0,
    "length_penalty": 0,
    "suppress_tokens": "-1",
    "initial_prompt": None,
    "condition_on_previous_text": True,
    "temperature_increment_on_fallback": 0.2,
    "compression_ratio_threshold": 2.4,
    "logprob_threshold": -1.0,
    "no_speech_threshold": 0.6,
    "word_timestamps": False,
}
NOT_HERE = {
    "transcription": "srt",
    "translate": True,
    "translation": "vtt",
    "enable_vad": True,
}


def test_its_fields_are_taken_under_the_same_names_with_nearly_the_same_defaults() -> (
    None
):
    request = parse_request({"input": {"audio": "https://example.com/a"} | DEFAULTS})
    options = request.options.model_dump()
    ours = TranscriptionOptions().model_dump()
    differing = {name for name in options if options[name] != ours[name]}
    assert differing == {"patience", "length_penalty"}


@pytest.mark.parametrize("name", NOT_HERE)
def test_the_fields_that_have_to_be_left_out_are_refused_by_name(name: str) -> None:
    job = {"audio": "https://example.com/a", name: NOT_HERE[name]}
    with pytest.raises(
        InvalidRequestError, match=f"^Unknown parameter: '{name}'. Valid"
    ):
        parse_request(job)
