"""Answers and events as a Router gives them."""

from deployments.contract.answer import (
    Answer,
    Progress,
    Result,
    Segment,
    SegmentEvent,
    Timings,
)


def a_segment(number: int, tokens: int = 100, text: str = "ß" * 50) -> Segment:
    return Segment(
        id=number,
        seek=0,
        start=0.0,
        end=1.0,
        text=text,
        tokens=[50000] * tokens,
        temperature=0.0,
        avg_logprob=-0.5,
        compression_ratio=1.0,
        no_speech_prob=0.1,
    )


def answer_with(segments: int, tokens: int = 100) -> Answer:
    return Answer(
        segments=[a_segment(number, tokens) for number in range(segments)],
        detected_language="de",
        transcription="short",
        device="cpu",
        model="base",
        duration=1.0,
        timings=Timings(),
        request_id="job",
    )


def progress(done: float) -> Progress:
    return Progress(done=done, total=200.0)


def segment(number: int, text: str = "x") -> SegmentEvent:
    return SegmentEvent(segment=a_segment(number, 1, text))


DONE = Result(result=answer_with(1))
