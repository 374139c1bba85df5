"""Damaged recordings, read by the service's own decoder.

    python -m tests.fuzz.recordings [--seconds 600] [--seed 0] [--case NUMBER]

Each case is one recording with some of its bytes changed; which, follows from the seed and the
case's number alone. The decoder may refuse a file, and its process may die of it. Nothing else may
happen. Prints how many cases ended in which way; `--case` writes the file of one case to stdout.
"""

import argparse
import asyncio
import io
import logging
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av

from deployments.config import AppArgs
from deployments.contract.errors import (
    AudioTooComplexError,
    AudioUrlError,
    InvalidAudioError,
)
from deployments.logs import error_location
from deployments.router.decoding import Decoder
from deployments.router.fetching import FetchedFile

AUDIO = Path(__file__).parents[1] / "audio"
_SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".mp4", ".mkv", ".webm"}
_SUFFIXES |= {".aac", ".dss"}
# Formats of which there is no recording, and an encoder for each.
_WRITTEN = (
    *(
        ("aiff", "pcm_s16be"),
        ("caf", "alac"),
        ("au", "pcm_mulaw"),
        ("w64", "pcm_f32le"),
    ),
    *(("asf", "wmav2"), ("avi", "adpcm_ms"), ("mpegts", "mp2"), ("flv", "aac")),
    *(("ac3", "ac3"), ("eac3", "eac3"), ("tta", "tta"), ("wv", "wavpack")),
    *(
        ("nut", "pcm_s16le"),
        ("wav", "adpcm_ima_wav"),
        ("mov", "pcm_s24le"),
    ),
    *(("sox", "pcm_s32le"), ("voc", "pcm_u8"), ("rm", "ac3"), ("mpeg", "mp2")),
    *(("matroska", "opus"), ("ogg", "flac"), ("mp4", "alac")),
)
_INTERESTING = (b"\x00", b"\x01", b"\x7f", b"\x80", b"\xff")
_HEAD_BYTES = 4096
_ARGS = AppArgs(max_audio_s=600)


def recordings() -> list[bytes]:
    """Recordings of every container that is here or can be written."""
    files = sorted(AUDIO.glob("*.*")) + sorted((AUDIO / "inputs").glob("*.*"))
    found = [path.read_bytes() for path in files if path.suffix in _SUFFIXES]
    return found + [_written(*kind) for kind in _WRITTEN]


def damaged(recording: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """The recording with one to eight changes, half of them near its beginning."""
    data = bytearray(recording[: 1 << chance.randint(12, 20)])
    for _ in range(chance.randint(1, 8)):
        end = len(data) if chance.random() < 0.5 else min(_HEAD_BYTES, len(data))
        place, size = chance.randrange(end + 1), 1 << chance.randint(0, 10)
        change = chance.randrange(6)
        if change == 0:
            data[place : place + 1] = bytes([chance.randrange(256)])
        elif change == 1:
            width = chance.choice((1, 2, 4, 8))
            data[place : place + width] = chance.choice(_INTERESTING) * width
        elif change == 2:
            data[place : place + size] = chance.randbytes(size)
        elif change == 3:
            del data[place : place + size]
        elif change == 4:
            data[place:place] = data[place : place + size]
        else:
            other = chance.choice(others)
            start = chance.randrange(len(other))
            data[place : place + size] = other[start : start + size]
    return bytes(data)


class Campaign:
    """Cases in order of their numbers.

    ends: how many cases ended in which way
    findings: by what went wrong, the first cases in which it did
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._recordings = recordings()
        self._decoder = Decoder(_ARGS)
        self.ends: Counter[str] = Counter()
        self.findings: dict[str, list[int]] = {}
        deaths = _Deaths(self.ends)
        log = logging.getLogger("deployments")
        log.addHandler(deaths)
        log.propagate = False

    def file(self, case: int) -> bytes:
        chance = random.Random(f"{self._seed} {case}")
        return damaged(chance.choice(self._recordings), self._recordings, chance)

    async def run(self, case: int) -> None:
        try:
            end = await self._end(case)
        except Exception as error:  # noqa: BLE001 - what is no right answer is a finding
            end = f"finding: {error!r} at {error_location(error)}"
            self.findings.setdefault(end, []).append(case)
        self.ends[end] += 1

    async def _end(self, case: int) -> str:
        with tempfile.TemporaryFile() as file:
            file.write(self.file(case))
            file.seek(0)
            try:
                waveform = await self._decoder.decode(FetchedFile(file, 0.0, False))
            except (InvalidAudioError, AudioTooComplexError, AudioUrlError) as error:
                return type(error).__name__
            assert 0 < waveform.duration_s <= _ARGS.max_audio_s
            # Reads every sample from where the decoder has put it.
            assert abs(int(waveform.samples.min())) <= 1 << 15
            return "decoded"


async def run(seed: int, goes_on: Callable[[int], bool]) -> Campaign:
    """Cases from 0 on, two at a time; goes_on: whether a case of this number is begun"""
    campaign = Campaign(seed)
    case = 0
    while goes_on(case):
        await asyncio.gather(campaign.run(case), campaign.run(case + 1))
        case += 2
    return campaign


class _Deaths(logging.Handler):
    """Counts the decoders that died, by signal, from the log line of each."""

    def __init__(self, ends: Counter[str]) -> None:
        super().__init__()
        self._ends = ends

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        event = re.search(r"event=(\w+)(?: signal=(\w+)| error=(\S+))?", line)
        assert event is not None, line
        self._ends[" ".join(filter(None, event.groups()))] += 1


def _written(container: str, codec: str) -> bytes:
    """Two seconds of speech in a container."""
    target = io.BytesIO()
    with (
        av.open(str(AUDIO / "jfk.flac")) as source,
        av.open(target, "w", format=container) as output,
    ):
        stream: Any = output.add_stream(
            codec, rate=48_000 if codec == "opus" else 44_100
        )
        stream.bit_rate = 64_000
        resampler = av.AudioResampler(stream.format, stream.layout, stream.rate)
        done = 0.0
        for frame in source.decode(audio=0):
            for resampled in resampler.resample(frame):
                output.mux(stream.encode(resampled))
            done += frame.samples / frame.sample_rate
            if done > 2:
                break
        output.mux(stream.encode(None))
    return target.getvalue()


def main() -> bool:
    """Whether anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.recordings")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int)
    arguments = parser.parse_args()
    if arguments.case is not None:
        sys.stdout.buffer.write(Campaign(arguments.seed).file(arguments.case))
        return False
    end = time.monotonic() + arguments.seconds
    campaign = asyncio.run(run(arguments.seed, lambda _: time.monotonic() < end))
    for name, count in campaign.ends.most_common():
        print(f"{count:8} {name}", *campaign.findings.get(name, [])[:3])
    return bool(campaign.findings)


if __name__ == "__main__":
    sys.exit(main())
