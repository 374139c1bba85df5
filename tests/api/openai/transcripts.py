"""A transcript of two segments, as a replica gives it."""

import math
from typing import Any

from deployments.contract.answer import (
    Answer,
    Segment,
    SegmentEvent,
    Timings,
    segments_of,
    words_of,
)
from tests.support.handles import transcript

TEXT = "And so, my fellow Americans. Ask not."
_WORDS = [
    [
        (" And", 0.0, 0.5),
        (" so,", 0.5, 1.0),
        (" my", 1.0, 1.5),
        (" fellow", 1.5, 2.0),
        (" Americans.", 2.0, 3.0),
    ],
    [(" Ask", 7.0, 7.5), (" not.", 7.5, 8.0)],
]


def segments(words: bool = True, lines: Any = None) -> list[Segment]:
    """Segments of words, of which each is a text with its start and end in seconds."""
    return segments_of(
        [
            {
                "id": number,
                "seek": 0,
                "start": line[0][1],
                "end": line[-1][2],
                "text": "".join(word for word, *_ in line),
                "tokens": [50364, 400, 50514],
                "temperature": 0.0,
                "avg_logprob": math.nan,
                "compression_ratio": 0.75,
                "no_speech_prob": 0.125,
                "words": [
                    {"word": text, "start": start, "end": end, "probability": 0.5}
                    for text, start, end in line
                ],
            }
            for number, line in enumerate(_WORDS if lines is None else lines)
        ],
        words,
    )


def segment_events() -> list[SegmentEvent]:
    return [SegmentEvent(segment=segment) for segment in segments()]


def transcript_of(found: list[Segment], **fields: Any) -> Any:
    text = "".join(segment.unstripped_text for segment in found)
    return transcript(text, segments=found, words=words_of(found), **fields)


TRANSCRIPT = transcript_of(segments())


def answer(**fields: Any) -> Answer:
    """The contract's answer with that transcript, of 8.2 seconds."""
    given: dict[str, Any] = {
        "segments": segments(),
        "word_timestamps": words_of(segments()),
        "detected_language": "pt",
        "transcription": TEXT,
        "device": "cpu",
        "model": "base",
        "duration": 8.2,
        "timings": Timings(),
        "request_id": "mine",
    }
    return Answer(**given | fields)
