"""One recording as several transcriptions: what each gives, and how they are put together."""

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
import whisper
from hypothesis import given
from hypothesis import strategies as st

from deployments.audio import SAMPLE_RATE
from deployments.audio.speech import Span
from deployments.engine import (
    Engine,
    EngineClosedError,
    TranscriptionCancelled,
    Usage,
)
from deployments.replica.chunked import Recording, transcribe_chunks
from deployments.replica.slot_shares import SlotShares
from tests.support.engine.calls import assert_same, exact_engine, official, until
from tests.support.engine.lively_whisper import lively_whisper
from tests.support.engine.tiny_whisper import as_float, sounds

Result = dict[str, Any]
QUICK: dict[str, Any] = {"temperature": 0.0, "sample_len": 20}
SPANS = [
    Span(round(start * SAMPLE_RATE), round(end * SAMPLE_RATE))
    for start, end in [(0.37, 20.0), (20.0, 49.99), (63.2, 64.0), (70.51, 99.03)]
]


def never() -> bool:
    return False


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with exact_engine(lively_whisper(n_audio_ctx=1500), max_windows=4) as engine:
        yield engine


def transcribed(
    engine: Engine, audio: np.ndarray, spans: list[Span], **options: Any
) -> tuple[Result, Usage]:
    given: dict[str, Any] = {"language": None, "cancelled": never}
    with SlotShares().chunked(engine.stats().slots) as share:
        return transcribe_chunks(
            engine.transcribe,
            engine.detect_language,
            audio,
            spans,
            share,
            **given | options,
        )


def moved(segments: list[Result], start: int, number: int) -> list[Result]:
    """Segments of a piece that begins at this sample, as those of the whole recording."""
    seconds, found = start / SAMPLE_RATE, []
    for place, segment in enumerate(segments):
        times = {key: round(segment[key] + seconds, 2) for key in ("start", "end")}
        seek = segment["seek"] + round(seconds * 100)
        found.append(segment | times | {"id": number + place, "seek": seek})
        if "words" in segment:
            found[-1]["words"] = [
                word | {key: round(word[key] + seconds, 2) for key in ("start", "end")}
                for word in segment["words"]
            ]
    return found


@pytest.mark.parametrize("words", [False, True])
def test_each_chunk_gives_what_whisper_gives_for_that_piece_alone(
    engine: Engine, words: bool
) -> None:
    audio, model = sounds(100.3), lively_whisper(n_audio_ctx=1500)
    result, usage = transcribed(
        engine, audio, SPANS, word_timestamps=words, beam_size=3, **QUICK
    )
    expected: Result = {"text": "", "segments": [], "language": None}
    for span in SPANS:
        piece = audio[span.start : span.end]
        alone = official(
            model,
            piece,
            language=expected["language"],
            word_timestamps=words,
            beam_size=3,
            **QUICK,
        )
        segments = moved(alone["segments"], span.start, len(expected["segments"]))
        expected["text"] += alone["text"]
        expected["segments"] += segments
        expected["language"] = alone["language"]
    assert expected["segments"]
    assert_same(result, expected)
    assert [s["id"] for s in result["segments"]] == list(range(len(result["segments"])))
    assert usage.windows >= len(SPANS)
    assert usage.occupancy > 1
    assert 0 < (usage.language_probability or 0) <= 1


def test_a_language_that_is_named_is_that_of_all_chunks(engine: Engine) -> None:
    result, usage = transcribed(engine, sounds(50), SPANS[:2], language="pt", **QUICK)
    assert result["language"] == "pt"
    assert usage.language_probability is None


def test_the_detected_language_is_whispers_own_rule(engine: Engine) -> None:
    model = lively_whisper(n_audio_ctx=1500)
    for seconds in (3, 31):
        audio = sounds(seconds, seed=seconds)
        mel = whisper.log_mel_spectrogram(
            as_float(audio), padding=whisper.audio.N_SAMPLES
        )
        _, probabilities = model.detect_language(whisper.pad_or_trim(mel, 3000))
        language = max(probabilities, key=probabilities.get)
        found, probability = engine.detect_language(audio)
        assert found == language
        assert probability == pytest.approx(probabilities[language], rel=1e-3)
    assert engine.stats().slots_in_use == 0


class Scripted:
    """An engine whose chunks end when they are told to, with one segment in each."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.may_end: dict[int, threading.Event] = {}
        self.fails: dict[int, Exception] = {}
        self.first_start_s = 0.0
        self.lock = threading.Lock()

    def transcribe(self, audio: np.ndarray, **options: Any) -> Result:
        # Tests write the number of the chunk into its samples.
        number = int(audio[0])
        with self.lock:
            self.begun.append(number)
        if number == 0:
            time.sleep(self.first_start_s)
        options["on_start"]()
        seconds = len(audio) / SAMPLE_RATE
        segments = [
            {"id": 0, "seek": 0, "start": 0.0, "end": seconds, "text": f" {number}"}
        ]
        event = self.may_end.get(number)
        if event is not None:
            until(lambda: event.is_set() or options["cancelled"]())
        if number in self.fails:
            raise self.fails[number]
        if options["cancelled"]():
            raise TranscriptionCancelled
        options["on_segments"](segments)
        options["on_progress"](seconds, seconds)
        options["on_usage"](Usage(0.5, 1, 2.0 + number, busy_s=0.25, steps=number + 1))
        return {"text": f" {number}", "segments": segments, "language": "en"}

    def run(self, chunks: int, slots: int = 8, **options: Any) -> tuple[Result, Usage]:
        audio = options.pop("audio", None)
        if audio is None:
            audio = np.repeat(np.arange(chunks, dtype=np.int16), SAMPLE_RATE * 2)
        detect = options.pop("detect", _no_detection)
        spans = [
            Span(n * 2 * SAMPLE_RATE, n * 2 * SAMPLE_RATE + SAMPLE_RATE)
            for n in range(chunks)
        ]
        given: dict[str, Any] = {"language": "en", "cancelled": never}
        with SlotShares().chunked(slots) as share:
            return transcribe_chunks(
                self.transcribe,
                detect,
                audio,
                spans,
                share,
                **given | options,
            )


def _no_detection(*_: Any, **__: Any) -> tuple[str, float | None]:
    raise AssertionError("the language was named")


def test_segments_come_in_order_and_progress_never_goes_back() -> None:
    scripted, told, progress = Scripted(), list[str](), list[float]()
    scripted.may_end = {0: threading.Event()}

    def open_the_first_at_last() -> None:
        until(lambda: len(scripted.begun) == 5)
        scripted.may_end[0].set()

    opener = threading.Thread(target=open_the_first_at_last)
    opener.start()
    result, usage = scripted.run(
        5,
        on_segments=lambda segments: told.extend(s["text"] for s in segments),
        on_progress=lambda done, total: progress.append(done / total),
    )
    opener.join()
    assert told == [" 0", " 1", " 2", " 3", " 4"]
    assert [s["id"] for s in result["segments"]] == [0, 1, 2, 3, 4]
    assert [s["start"] for s in result["segments"]] == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert result["text"] == " 0 1 2 3 4"
    assert progress[-1] == 1.0
    assert all(before <= after for before, after in pairwise(progress))
    # The silence between the chunks is half of the recording.
    assert progress[0] > 0.5
    assert (usage.windows, usage.steps, usage.busy_s) == (5, 15, 1.25)
    assert usage.occupancy == pytest.approx(
        sum((2 + n) * (n + 1) for n in range(5)) / 15
    )


def test_only_the_requests_share_is_in_work_and_in_order() -> None:
    scripted = Scripted()
    scripted.may_end = {n: threading.Event() for n in range(5)}
    counts: list[list[int]] = []

    def open_one_after_another() -> None:
        for number in range(5):
            until(lambda number=number: len(scripted.begun) >= min(number + 3, 5))  # type: ignore[misc]
            counts.append(sorted(scripted.begun))
            scripted.may_end[number].set()

    opener = threading.Thread(target=open_one_after_another)
    opener.start()
    scripted.run(5, slots=4)
    opener.join()
    # Three of four slots; the next chunk begins when one has ended.
    assert counts[0] == [0, 1, 2]
    assert counts[1] == [0, 1, 2, 3]


def test_the_first_failure_is_the_requests_and_ends_all_others() -> None:
    scripted = Scripted()
    scripted.may_end = {n: threading.Event() for n in range(3)}
    scripted.may_end[1].set()
    scripted.fails = {1: ArithmeticError("chunk 1")}
    with pytest.raises(ArithmeticError, match="chunk 1"):
        scripted.run(40, slots=4)
    assert len(scripted.begun) < 40


def test_a_caller_who_leaves_ends_all_chunks() -> None:
    scripted = Scripted()
    scripted.may_end = {n: threading.Event() for n in range(40)}
    with pytest.raises(TranscriptionCancelled):
        scripted.run(40, slots=4, cancelled=lambda: len(scripted.begun) == 3)
    assert sorted(scripted.begun) == [0, 1, 2]


def test_the_wait_is_that_for_the_first_slot_and_the_start_is_told_once() -> None:
    scripted, starts = Scripted(), list[float]()
    scripted.first_start_s = 0.2
    begun = time.monotonic()
    _, usage = scripted.run(
        4, slots=1, on_start=lambda: starts.append(time.monotonic())
    )
    [start] = starts
    assert 0.2 <= usage.queue_s <= start - begun


def test_a_failure_outside_the_engine_ends_all_others_as_well() -> None:
    def fails(_: list[Result]) -> None:
        raise ArithmeticError("the first segment")

    scripted = Scripted()
    scripted.may_end = {n: threading.Event() for n in range(1, 40)}
    with pytest.raises(ArithmeticError, match="the first segment"):
        scripted.run(40, slots=4, on_segments=fails)
    assert len(scripted.begun) < 40


def test_a_caller_who_leaves_ends_the_detection_of_the_language() -> None:
    def detect(_: np.ndarray, **options: Any) -> tuple[str, float | None]:
        assert not options["cancelled"]()
        left.set()
        assert options["cancelled"]()
        raise TranscriptionCancelled

    left, scripted = threading.Event(), Scripted()
    with pytest.raises(TranscriptionCancelled):
        scripted.run(3, language=None, cancelled=left.is_set, detect=detect)
    assert scripted.begun == []


def test_an_engine_that_closes_ends_all_chunks() -> None:
    with exact_engine(lively_whisper(n_audio_ctx=1500), max_windows=4) as engine:
        closing = {"on_progress": lambda *_: engine.close()}
        with pytest.raises(EngineClosedError):
            transcribed(engine, sounds(100), SPANS * 20, language="en", **closing)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_a_recording_is_held_when_its_request_is_over(fails: bool) -> None:
    class Failure(Exception):
        pass

    def transcribe(_: np.ndarray, **options: Any) -> Result:
        if fails:
            raise Failure
        raise TranscriptionCancelled

    scripted = Scripted()
    scripted.transcribe = cast(Any, transcribe)  # type: ignore[method-assign]
    gc.disable()
    try:
        audio = sounds(8)
        held = weakref.ref(audio)
        with suppress(Failure, TranscriptionCancelled):
            scripted.run(4, audio=audio)
        del audio
        assert held() is None
    finally:
        gc.enable()


@given(
    st.lists(st.tuples(st.integers(1, 4000), st.integers(0, 4000)), min_size=1),
    st.integers(0, 159),
)
def test_the_last_progress_is_the_whole_recording(
    parts: list[tuple[int, int]], rest: int
) -> None:
    spans, place = [], 0
    for spoken, silent in parts:
        spans.append(Span(place * 160, (place + spoken) * 160))
        place += spoken + silent
    samples = place * 160 + rest
    told: list[float] = []
    recording = Recording(spans, samples, lambda done, _: told.append(done), None)
    for chunk, span in enumerate(spans):
        recording.progress(chunk, len(span) / SAMPLE_RATE)
    assert told[-1] == samples / SAMPLE_RATE
    assert told == sorted(told)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.randoms())
def test_segments_are_in_order_whatever_the_order_of_their_coming(
    counts: list[int], random: Any
) -> None:
    spans = [
        Span(n * SAMPLE_RATE, n * SAMPLE_RATE + SAMPLE_RATE) for n in range(len(counts))
    ]
    told: list[Result] = []
    recording = Recording(spans, len(counts) * SAMPLE_RATE, None, told.extend)
    steps: list[tuple[int, Callable[[], None]]] = []
    for chunk, count in enumerate(counts):
        for part in range(count):
            segment = {
                "id": part,
                "seek": 0,
                "start": part / 10,
                "end": (part + 1) / 10,
            }
            steps.append(
                (chunk, lambda c=chunk, s=segment: recording.add(c, [s]))  # type: ignore[misc]
            )
        steps.append((chunk, lambda c=chunk: recording.end(c)))  # type: ignore[misc]
    # Any order in which each chunk's own steps are in order.
    order = [chunk for chunk, _ in steps]
    random.shuffle(order)
    for chunk in order:
        place = next(i for i, (owner, _) in enumerate(steps) if owner == chunk)
        steps.pop(place)[1]()
        assert told == recording.segments
    assert [s["id"] for s in told] == list(range(sum(counts)))
    assert [s["start"] for s in told] == [
        round(chunk + part / 10, 2)
        for chunk, count in enumerate(counts)
        for part in range(count)
    ]
