"""Are the chunks of a recording what `whisper.transcribe` gives for each of these pieces alone?

    python -m tools.chunk_equality FOLDER [--model NAME] [--words] [--limit-minutes M]
        [--joined N] [--joined-minutes M] [--silence-ms MS]

Every recording below the folder, and recordings of 2 to 10 minutes that are joined from the speech
of its manifest.json with pauses, music, noise and silence, are transcribed with
`chunking_strategy` "auto" as the service does it, eight requests at a time in shuffled order. Then
each chunk goes through `whisper.transcribe` alone, in the language of the recording. The language
is compared with the one that official Whisper detects in the first chunk. With a `--silence-ms` of
some seconds, speech goes on for so long that chunks are also cut within it.

Each recording's line goes to stdout, with the places that differ below it; the exit status is 1 if
anything differs before the first window that sampled (see `tools.equality`).
"""

import argparse
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import whisper

from deployments.audio import SAMPLE_RATE
from deployments.catalog import LANGUAGES
from deployments.contract.answer import Chunk, Segment
from deployments.contract.chunking import ServerVad
from deployments.contract.options import TranscriptionOptions
from deployments.engine import Engine
from deployments.replica.slot_shares import SlotShares
from deployments.replica.transcribing import LimitedEngine, transcribe
from deployments.replica.transcript import Transcript
from tools import joined
from tools.equality import CONCURRENCY, PARTED, compared, recordings_in
from tools.official import as_official, official, official_model

_SHORTEST_MIN, _LONGEST_MIN = 2.0, 10.0
# Of a joined recording. Music and noise are where decoding falls back to other temperatures.
_SPEECHLESS = 0.1
# Speech that a joined recording of one language has at least before it repeats itself.
_ENOUGH_S = 15
_FRAMES_PER_SECOND = 100

Result = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.chunk_equality")
    add = parser.add_argument
    add("folder", type=Path)
    add("--model", default="base")
    add("--words", action="store_true", help="with word timestamps")
    add("--limit-minutes", type=float, default=math.inf, help="of the folder to take")
    add("--joined", type=int, default=20, help="how many recordings to join")
    add("--joined-minutes", type=float, default=math.inf, help="of them all together")
    add("--silence-ms", type=int, default=200, help="silence that ends speech")
    arguments = parser.parse_args()
    if arguments.joined_minutes < _SHORTEST_MIN * arguments.joined:
        parser.error(f"a joined recording takes at least {_SHORTEST_MIN:g} minutes")
    options = TranscriptionOptions(
        word_timestamps=arguments.words,
        chunking_strategy=ServerVad(silence_duration_ms=arguments.silence_ms),
    )
    recordings = _limited(recordings_in(arguments.folder), arguments.limit_minutes)
    if arguments.joined:
        recordings |= _joined(
            arguments.folder, arguments.joined, arguments.joined_minutes
        )
    ours = _by_the_engine(arguments.model, recordings, options)
    equal = chunks = sampled = 0
    whole = True
    for name, audio in recordings.items():
        transcript = ours[name]
        expected = _official(arguments.model, audio, transcript, options)
        found = [*compared_chunks(transcript, expected)]
        differences = differences_of_the_whole(
            transcript, [*with_our_draws(transcript, expected, found)]
        )
        good = [one["outcome"].startswith("equal") for one in found]
        whole = whole and not differences
        equal, chunks = equal + sum(good), chunks + len(good)
        sampled += sum(one["sampled_segments"] > 0 for one in found)
        print(f"{name:<60} {_line(transcript, found)}", flush=True)
        for index in range(len(good)):
            if not good[index]:
                differences += _told(transcript, index, expected[index])
        for difference in differences:
            print(f"    {difference}", flush=True)
    minutes = sum(map(len, recordings.values())) / SAMPLE_RATE / 60
    print(
        f"{equal} of {chunks} chunks equal (of {len(recordings)} recordings,"
        f" {minutes:.1f} minutes); {sampled} of them had sampled windows"
    )
    return 0 if equal == chunks and whole else 1


def compared_chunks(transcript: Transcript, expected: list[Result]) -> Iterator[Result]:
    """How each chunk compares with its official result: see `tools.equality.compared`.

    expected: what `whisper.transcribe` gives for each chunk alone, with the times of the chunk
    """
    chunks = transcript.chunks or []
    for chunk, result in zip(chunks, expected, strict=True):
        yield compared(part_of(transcript, chunk), placed(result, chunk))


def with_our_draws(
    transcript: Transcript, expected: list[Result], found: list[Result]
) -> Iterator[Result]:
    """The official results, but our own of the chunks that differ after a sampled window only.

    found: how the chunks compare
    """
    chunks = transcript.chunks or []
    for chunk, result, one in zip(chunks, expected, found, strict=True):
        parted = one["outcome"] == PARTED
        yield part_of(transcript, chunk) if parted else result


def differences_of_the_whole(
    transcript: Transcript, expected: list[Result]
) -> list[str]:
    """What is wrong although every chunk may be right: text, numbers, or segments of no chunk."""
    found = []
    if transcript.text != "".join(result["text"] for result in expected):
        found.append("the text is not that of the chunks in their order")
    if [segment.id for segment in transcript.segments] != list(
        range(len(transcript.segments))
    ):
        found.append("the segments are not numbered in their order")
    within = [
        segment
        for chunk in transcript.chunks or []
        for segment in transcript.segments
        if _begins_in(segment, chunk)
    ]
    if within != transcript.segments:
        found.append("the segments do not lie in the chunks in their order")
    if transcript.words is not None:
        words = [
            word for s in expected for seg in s["segments"] for word in seg["words"]
        ]
        if [word.word for word in transcript.words] != [
            word["word"].strip() for word in words
        ]:
            found.append("the words are not those of the chunks in their order")
    return found


def part_of(transcript: Transcript, chunk: Chunk) -> Result:
    """One chunk's part of a result, in the form of `whisper.transcribe`."""
    segments = [
        _as_whisper(segment)
        for segment in transcript.segments
        if _begins_in(segment, chunk)
    ]
    return _result(segments, transcript.language)


def placed(result: Result, chunk: Chunk) -> Result:
    """A chunk's own result with its times in the recording, which are multiples of 0.01 s."""

    def moved(part: dict[str, Any]) -> dict[str, Any]:
        return part | {
            key: round(part[key] + chunk.start, 2) for key in ("start", "end")
        }

    segments = []
    for segment in result["segments"]:
        seek = segment["seek"] + round(chunk.start * _FRAMES_PER_SECOND)
        words = [moved(word) for word in segment.get("words", [])]
        segments.append(moved(segment) | {"seek": seek, "words": words})
    return _result(segments, result["language"])


def _result(segments: list[dict[str, Any]], language: str | None) -> Result:
    text = "".join(segment["text"] for segment in segments)
    return {"segments": segments, "text": text, "language": language}


def _begins_in(segment: Segment, chunk: Chunk) -> bool:
    # Multiplied, a time in seconds may exceed its frame by a rounding error.
    start, end = (
        round(time * _FRAMES_PER_SECOND, 3) for time in (chunk.start, chunk.end)
    )
    return start <= segment.seek < end


def _as_whisper(segment: Segment) -> dict[str, Any]:
    """The contract has null for NaN."""
    numbers = {
        key: math.nan if value is None else value
        for key, value in segment.model_dump().items()
    }
    return numbers | {"text": segment.unstripped_text}


def _limited(
    recordings: dict[str, np.ndarray], minutes: float
) -> dict[str, np.ndarray]:
    """The first recordings, until one more would exceed the time."""
    taken = {}
    left = minutes * 60 * SAMPLE_RATE
    for name, audio in recordings.items():
        left -= len(audio)
        if left < 0:
            break
        taken[name] = audio
    return taken


def _joined(folder: Path, count: int, minutes: float) -> dict[str, np.ndarray]:
    """Recordings of one language each in turn, and of all speech mixed."""
    entries = joined.entries_of(folder)
    sounds = joined.sounds_of(entries)
    utterances = joined.utterances_of([e for e in entries if joined.is_speech(e)])
    spoken: Counter[str] = Counter()
    for utterance in utterances:
        spoken[utterance.language] += len(utterance.pcm)
    languages: list[str | None] = [
        language
        for language, samples in spoken.most_common()
        if samples >= _ENOUGH_S * SAMPLE_RATE and language in LANGUAGES
    ]
    languages.append(None)
    recordings = {}
    for number, length in enumerate(lengths(count, minutes)):
        language = languages[number % len(languages)]
        speakers = [one for one in utterances if language in (None, one.language)]
        recording = joined.join(
            speakers, sounds, 60 * length, speechless=_SPEECHLESS, seed=number
        )
        name = f"joined {number + 1}: {language or 'mixed'}, {recording.seconds:.0f} s"
        recordings[name] = recording.pcm
    return recordings


def lengths(count: int, most: float) -> list[float]:
    """Minutes of each joined recording, shortened alike where they exceed `most` together."""
    lots = random.Random(0)
    drawn = [lots.uniform(0, _LONGEST_MIN - _SHORTEST_MIN) for _ in range(count)]
    left = most - _SHORTEST_MIN * count
    factor = min(1.0, left / sum(drawn)) if drawn else 1.0
    return [_SHORTEST_MIN + factor * one for one in drawn]


def _by_the_engine(
    model: str, recordings: dict[str, np.ndarray], options: TranscriptionOptions
) -> dict[str, Transcript]:
    shares = SlotShares()
    shuffled = random.Random(0).sample(list(recordings), len(recordings))
    started = time.monotonic()

    with (
        Engine(official_model(model)) as engine,
        ThreadPoolExecutor(CONCURRENCY) as pool,
    ):

        def run(name: str) -> Transcript:
            transcript, _ = transcribe(
                LimitedEngine(engine, math.inf),
                shares,
                recordings[name],
                options,
                "cpu",
                cancelled=lambda: False,
            )
            return transcript

        results = dict(zip(shuffled, pool.map(run, shuffled), strict=True))
    seconds = time.monotonic() - started
    print(f"{len(results)} by the engine in {seconds:.0f} s", file=sys.stderr)
    return results


def _official(
    model: str,
    audio: np.ndarray,
    transcript: Transcript,
    options: TranscriptionOptions,
) -> list[Result]:
    results: list[Result] = []
    for chunk in transcript.chunks or []:
        start, end = (round(time * SAMPLE_RATE) for time in (chunk.start, chunk.end))
        piece = as_official(audio[start:end])
        asked = options.whisper_options() | {"language": transcript.language}
        result = official(model, piece, **asked)
        if not results:
            result["language"] = _detected(model, piece)
        results.append(result)
    return results


def _detected(model: str, piece: np.ndarray) -> str:
    """The language by the rule of `whisper.transcribe`."""
    reference = official_model(model)
    if not reference.is_multilingual:
        return "en"
    mel = whisper.log_mel_spectrogram(
        piece, reference.dims.n_mels, padding=whisper.audio.N_SAMPLES
    )
    window = whisper.pad_or_trim(mel, whisper.audio.N_FRAMES)
    _, probabilities = reference.detect_language(window)
    return max(probabilities, key=probabilities.__getitem__)


def _line(transcript: Transcript, found: list[Result]) -> str:
    outcomes = Counter(one["outcome"] for one in found)
    told = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    return f"{transcript.language}: {told or 'no speech'}"


def _told(transcript: Transcript, index: int, expected: Result) -> list[str]:
    """The first segment that differs in a chunk, ours and the official one."""
    assert transcript.chunks is not None
    chunk = transcript.chunks[index]
    mine, theirs = part_of(transcript, chunk), placed(expected, chunk)
    where = f"chunk {index}, {chunk.start:.2f} to {chunk.end:.2f} s:"
    if mine["language"] != theirs["language"]:
        return [f"{where} {mine['language']}, officially {theirs['language']}"]
    none: dict[str, Any] = {"segments": [], "text": "", "language": None}
    longest = max(len(mine["segments"]), len(theirs["segments"]))
    for number in range(longest):
        pair = [one["segments"][number : number + 1] for one in (mine, theirs)]
        one, other = (none | {"segments": segments} for segments in pair)
        if not compared(one, other)["outcome"].startswith("equal"):
            return [f"{where} {pair[0]}", f"{where} officially {pair[1]}"]
    return [f"{where} the texts differ"]


if __name__ == "__main__":
    sys.exit(main())
