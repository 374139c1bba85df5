"""Windows for every option of `Whisper.decode`, and when two results count as the same."""

from collections.abc import Sequence
from typing import Any

import pytest
from whisper.decoding import DecodingResult
from whisper.model import Whisper

from tests.support.engine.lively_whisper import Job, job

TOLERANCE = 1e-4
EOT = 50257
WORDS = [2425, 30166, 1770, 13, 440, 3931, 295, 264, 2808, 5359]
FULL_PROMPT = (WORDS * 23)[:223]

OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "five beams": {"beam_size": 5},
    "one beam": {"beam_size": 1},
    "ten beams": {"beam_size": 10, "sample_len": 10},
    "patience": {"beam_size": 3, "patience": 2.4, "sample_len": 24},
    "impatience": {"beam_size": 4, "patience": 0.5},
    "length penalty": {"beam_size": 5, "length_penalty": 0.8, "patience": 2.0},
    "no length penalty": {"beam_size": 5, "length_penalty": 0.0, "patience": 2.0},
    "one word before": {"prompt": WORDS[:1]},
    "a text before": {"prompt": WORDS * 4, "beam_size": 2},
    "as much before as there may be": {"prompt": FULL_PROMPT, "beam_size": 5},
    "more before than there may be": {"prompt": WORDS * 40},
    "prefix": {"prefix": WORDS[:4], "beam_size": 3},
    "prefix and prompt": {"prefix": WORDS[:2], "prompt": WORDS, "sample_len": 9},
    "no timestamps": {"without_timestamps": True},
    "beams without timestamps": {"without_timestamps": True, "beam_size": 5},
    "one token": {"sample_len": 1},
    "one token of beams": {"sample_len": 1, "beam_size": 5},
    "two tokens of beams": {"sample_len": 2, "beam_size": 4},
    "nothing suppressed": {"suppress_tokens": None, "suppress_blank": False},
    "nothing asked to be suppressed": {"suppress_tokens": "", "beam_size": 2},
    "words suppressed": {"suppress_tokens": [34308, 36224, 47172, 661, 1788]},
    "words of beams suppressed": {"suppress_tokens": "-1,34308,51571", "beam_size": 5},
    "any first timestamp": {"max_initial_timestamp": None, "beam_size": 5},
    "a late first timestamp": {"max_initial_timestamp": 9.0},
    "fewer first timestamps than beams": {"max_initial_timestamp": 0.3, "beam_size": 5},
    "blanks": {"suppress_blank": False, "beam_size": 3},
    "translation": {"language": "de", "task": "translate", "beam_size": 2},
    "long": {"sample_len": 50, "suppress_tokens": [EOT]},
}


def case(model: Whisper, name: str, **options: Any) -> Job:
    """A job with these options, and with audio of its own."""
    return job(model, list(OPTIONS).index(name), **OPTIONS[name] | options)


def assert_same(ours: DecodingResult, expected: DecodingResult) -> None:
    assert ours.tokens == expected.tokens
    assert ours.text == expected.text
    assert ours.avg_logprob == pytest.approx(expected.avg_logprob, abs=TOLERANCE)
    assert ours.no_speech_prob == pytest.approx(expected.no_speech_prob, rel=TOLERANCE)
    assert ours.compression_ratio == expected.compression_ratio
    assert ours.temperature == expected.temperature
    assert ours.language == expected.language


def assert_all_same(
    ours: Sequence[DecodingResult], expected: Sequence[DecodingResult]
) -> None:
    for one, other in zip(ours, expected, strict=True):
        assert_same(one, other)
