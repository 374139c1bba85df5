"""A file gives the same in a decoder of its own as in this process."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.audio.decode import decode_audio
from deployments.audio.sandbox.messages import Job
from deployments.contract.errors import (
    AudioUrlError,
    InvalidAudioError,
    WhisperServeError,
)
from tests.audio.test_decode import FOLDER, RECORDINGS, encode, recording
from tests.audio.test_inputs import CASES
from tests.support.sandbox import SANDBOX, page

LONGEST_S = 3600.0
FILES: list[tuple[Path, dict[str, Any]]] = [
    *((FOLDER / entry["file"], {}) for entry in RECORDINGS),
    *((FOLDER / "inputs" / name, chosen) for name, chosen, _ in CASES),
    (FOLDER / "inputs" / "chained.ogg", {}),
    (FOLDER / "inputs" / "chained_stereo.opus", {}),
    (FOLDER / "inputs" / "ch60.wav", {}),
    (FOLDER / "inputs" / "two.mkv", {"track": "Brazilian Portuguese"}),
]


@pytest.mark.parametrize(
    ("path", "chosen"),
    FILES,
    ids=lambda value: value.name if isinstance(value, Path) else str(value),
)
async def test_a_decoder_gives_what_decoding_in_this_process_gives(
    path: Path, chosen: dict[str, Any]
) -> None:
    with path.open("rb") as file:
        here = await asyncio.to_thread(decode_audio, file, LONGEST_S, **chosen)
        there = await SANDBOX.decode(file, Job(LONGEST_S, **chosen))
    assert np.array_equal(there.samples, here.samples)
    assert (there.start_s, there.warnings) == (here.start_s, here.warnings)


def test_every_recording_and_input_of_the_tests_is_compared() -> None:
    compared = {path.name for path, _ in FILES}
    folders = (FOLDER, FOLDER / "inputs")
    files = {path.name for folder in folders for path in folder.iterdir()}
    no_audio = {name for name in files if name.endswith((".md", ".json", ".npz"))}
    folders_and_tests = {name for name in files if "." not in name or ".py" in name}
    assert compared == files - no_audio - folders_and_tests - {"__pycache__"}


@pytest.mark.parametrize(
    ("data", "chosen"),
    [
        (b"", {}),
        (b"%PDF-1.7\n\0", {}),
        (encode("wav", "pcm_s16le", 440), {"channel": 1}),
        ((FOLDER / "inputs" / "two.mkv").read_bytes(), {"track": "deu"}),
        ((FOLDER / "inputs" / "two.mkv").read_bytes(), {"track": "nonsense"}),
        (recording("jfk.mp3"), {"max_seconds": 5.0}),
    ],
    ids=["empty", "PDF", "channel", "track", "no language", "too long"],
)
async def test_a_refusal_has_the_same_type_and_text(
    tmp_path: Path, data: bytes, chosen: dict[str, Any]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    options = {"max_seconds": LONGEST_S} | chosen
    with path.open("rb") as file:
        with pytest.raises(WhisperServeError) as here:
            decode_audio(file, **options)
        with pytest.raises(WhisperServeError) as there:
            await SANDBOX.decode(file, Job(**options))
    assert type(there.value) is type(here.value)
    assert str(there.value) == str(here.value)


async def test_a_text_is_told_by_its_kind_where_a_url_gave_it() -> None:
    with pytest.raises(AudioUrlError) as caught:
        await SANDBOX.decode(page(), Job(LONGEST_S, remote=True))
    assert str(caught.value).endswith("a web page (HTML), not an audio file")
    with pytest.raises(InvalidAudioError):
        await SANDBOX.decode(page(), Job(LONGEST_S))
