"""Where speech is in a recording, and where the silences between allow to cut it.

Speech is found by Silero VAD, through its model of whole sequences in ONNX Runtime: about five
seconds of one core for an hour of audio, outside Python's interpreter lock.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from deployments.audio import SAMPLE_RATE

# The frame of Silero VAD, and what it hears of the frame before.
_FRAME, _CONTEXT = 512, 64
# Frames between two questions whether the work is to end: 32 s of audio.
_FRAMES_AT_ONCE = 1000
_INT16 = np.float32(1 / 32768)
# Silero VAD's default: shorter sounds are clicks and coughs.
_SHORTEST_SPEECH_MS = 250

# Whisper's window. A chunk that fills it wastes nothing of the encoder's work.
LONGEST_CHUNK = 30 * SAMPLE_RATE
# The frames in which Whisper counts time, 10 ms. Chunks begin and end on them.
STEP = SAMPLE_RATE // 100
# Speech without a pause is cut in the middle of the quietest fifth of a second.
_QUIET_STEPS = 20

Cancelled = Callable[[], bool]


class SpeechCancelled(Exception):
    """`cancelled()` returned true."""


@dataclass(frozen=True)
class Span:
    """A part of a recording, in samples; `end` is the first after it."""

    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Chunks:
    """The pieces in which a recording is transcribed.

    spans: in order, without overlap, `LONGEST_CHUNK` at most
    cuts: the samples at which a cut was made within speech
    """

    spans: list[Span]
    cuts: list[int]


def chunks_of(
    audio: np.ndarray,
    *,
    threshold: float,
    padding_ms: int,
    silence_ms: int,
    cancelled: Cancelled,
) -> Chunks:
    """Find the speech in a recording, and cut the recording where there is none.

    A chunk holds as much speech, with the silence in between, as fits into `LONGEST_CHUNK`.
    Silence before and after a chunk is left out. Only speech that goes on for longer than a chunk
    is cut, at its quietest place.

    audio: int16 waveform at 16 kHz, shape (samples,)
    threshold: probability from which a frame counts as speech
    padding_ms: audio that is kept before and after speech
    silence_ms: silence that ends speech
    cancelled(): called for each half minute of audio

    Raises SpeechCancelled.
    """
    speech = _speech(
        _probabilities(audio, cancelled), len(audio), threshold, padding_ms, silence_ms
    )
    return _packed(audio, speech)


def _packed(audio: np.ndarray, speech: list[Span]) -> Chunks:
    spans: list[Span] = []
    cuts: list[int] = []
    for whole in speech:
        parts = [*_in_parts(audio, whole)]
        cuts += [part.end for part in parts[:-1]]
        for span in parts:
            if spans and span.end - spans[-1].start <= LONGEST_CHUNK:
                spans[-1] = Span(spans[-1].start, span.end)
            else:
                spans.append(span)
    return Chunks(spans, cuts)


def _probabilities(audio: np.ndarray, cancelled: Cancelled) -> list[float]:
    """How probable speech is in each frame of 32 ms."""
    # First: it keeps the import of Silero VAD's package from taking PyTorch's threads.
    session = _model().session
    from silero_vad.sequence_vad import frame_blocks

    hidden = cell = np.zeros((1, 1, 128), dtype=np.float32)
    found: list[float] = []
    # The blocks are made of 32 bit floats, so that only a block at a time needs memory.
    for block in frame_blocks(audio, _FRAME, _CONTEXT, _FRAMES_AT_ONCE):
        if cancelled():
            raise SpeechCancelled
        block *= _INT16
        # One recording after the other, block by block: many at once would take memory and cores
        # from the engine.
        with _turn:
            values, hidden, cell = session.run(
                ["speech_probs", "hn", "cn"], {"input": block, "h": hidden, "c": cell}
            )
        found += values.reshape(-1).tolist()
    return found


def _speech(
    probabilities: list[float],
    samples: int,
    threshold: float,
    padding_ms: int,
    silence_ms: int,
) -> list[Span]:
    """Silero VAD's own rules, on steps of 10 ms. Two paddings that meet share the silence."""
    from silero_vad import get_speech_timestamps_from_probs

    found: list[dict[str, int]] = get_speech_timestamps_from_probs(
        probabilities,
        threshold=threshold,
        min_speech_duration_ms=_SHORTEST_SPEECH_MS,
        min_silence_duration_ms=silence_ms,
        speech_pad_ms=padding_ms,
        audio_length_samples=samples,
    )
    spans: list[Span] = []
    for one in reversed(found):
        after = spans[-1].start if spans else samples
        end = min(-(-one["end"] // STEP) * STEP, after)
        spans.append(Span(one["start"] // STEP * STEP, end))
    return spans[::-1]


def _in_parts(audio: np.ndarray, span: Span) -> Iterator[Span]:
    """Speech without a pause, in parts that fit into a chunk."""
    while len(span) > LONGEST_CHUNK:
        longest = span.start + LONGEST_CHUNK
        cut = _quietest(audio, Span(longest - LONGEST_CHUNK // 2, longest))
        yield Span(span.start, cut)
        span = Span(cut, span.end)
    yield span


def _quietest(audio: np.ndarray, span: Span) -> int:
    steps = audio[span.start : span.end].reshape(-1, STEP).astype(np.float32)
    power = np.convolve(np.square(steps).sum(1), np.ones(_QUIET_STEPS), "valid")
    # The last of equally quiet places, for the longest chunk.
    last = len(power) - 1 - int(np.argmin(power[::-1]))
    return span.start + (last + _QUIET_STEPS // 2) * STEP


_turn = threading.Lock()
_loading = threading.Lock()
_loaded: list[Any] = []


def _model() -> Any:
    """Loaded at the first use. Threads may share it."""
    with _loading:
        if not _loaded:
            import torch

            # Silero VAD's package gives PyTorch a single thread when it is imported.
            threads = torch.get_num_threads()
            from silero_vad import load_silero_vad

            torch.set_num_threads(threads)
            _loaded.append(load_silero_vad(sequence=True))
        return _loaded[0]
