"""Official decoding, and its results for the recordings of tests/audio.

    python -m tools.official                               computes every case of official.json anew
    python -m tools.official --add MODEL FILE [OPTIONS]    adds a case; OPTIONS: arguments of
    whisper.transcribe, JSON

`whisper.transcribe` is called directly, with the contract's defaults, in fp32 on the CPU. Its
results for the cases that tests ask for are kept in tests/audio/official.json, so that a test run
need not decode everything twice. They belong to certain weights: for others `official` decodes here
and now.

At temperature > 0 official decoding gets the engine's random draws: samples come from a generator
of their own for each window, by inversion, so that windows that were sampled can be compared as
well.
"""

import argparse
import contextlib
import functools
import hashlib
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import whisper
from torch import Tensor
from whisper.model import Whisper

from deployments.audio.decode import decode_audio
from deployments.engine.decoding.plan import SEED
from tools.weights import weights

AUDIO = Path(__file__).parents[1] / "tests" / "audio"
RESULTS = AUDIO / "official.json"

DEFAULTS: dict[str, Any] = {
    "temperature": (0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0),
    "beam_size": 5,
    "best_of": 5,
}
# Probabilities in fp32 differ by this much at most.
ROUNDING = 1e-4

SEGMENT_FIELDS = (
    "id",
    "seek",
    "start",
    "end",
    "text",
    "tokens",
    "temperature",
    "avg_logprob",
    "compression_ratio",
    "no_speech_prob",
)
LONGEST_S = 4 * 3600
_OTHER_FILES = {".json", ".md", ".npz", ".py", ".pyc", ".txt"}


class MissingCaseError(LookupError):
    """official.json has no result of this case. The text says how to add it."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.official")
    parser.add_argument("--add", nargs="+", metavar="MODEL FILE [OPTIONS]")
    arguments = parser.parse_args()
    cases = [(c["model"], c["file"], c["options"]) for c in recorded_cases()]
    if arguments.add:
        model, file, *options = arguments.add
        added = (model, file, json.loads(options[0]) if options else {})
        record([case for case in recorded_cases() if _case(case) != added], [added])
    else:
        record([], cases)
    return 0


def record(
    kept: list[dict[str, Any]], cases: list[tuple[str, str, dict[str, Any]]]
) -> None:
    """Write official.json: the cases that it has, and these, computed now."""
    computed = []
    for number, (model, file, options) in enumerate(cases, 1):
        print(f"{number} of {len(cases)}: {model} {file} {options}", file=sys.stderr)
        result = transcribe(model, waveform(file), **options)
        computed.append(
            {
                "model": model,
                "weights": weights_digest(model),
                "file": file,
                "options": options,
                "result": _kept_of(result),
            }
        )
    entries = sorted(kept + computed, key=lambda case: json.dumps(_case(case)))
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    RESULTS.write_text(f"[\n{lines}\n]\n")


def recorded_cases() -> list[dict[str, Any]]:
    """What official.json holds: `model`, `weights`, `file`, `options` and `result` of each case."""
    if not RESULTS.exists():
        return []
    cases: list[dict[str, Any]] = json.loads(RESULTS.read_text())
    return cases


def official(model: str, audio: str | np.ndarray, **options: Any) -> dict[str, Any]:
    """What `whisper.transcribe` gives with the contract's defaults.

    For a file of tests/audio the result comes from official.json, if it knows these weights.

    audio: a file of tests/audio, or a float32 waveform at 16 kHz

    Raises MissingCaseError.
    """
    if not isinstance(audio, str):
        return transcribe(model, audio, **options)
    return _official_of_file(model, audio, json.dumps(options, sort_keys=True))


def transcribe(model: str, samples: np.ndarray, **options: Any) -> dict[str, Any]:
    """`whisper.transcribe` itself, here and now.

    samples: float32 at 16 kHz, shape (samples,)
    """
    reference = official_model(model)
    with _draws_of_the_engine(reference):
        return whisper.transcribe(
            reference, samples, fp16=False, **{**DEFAULTS, **options}
        )


def assert_equals_official(answer: dict[str, Any], expected: dict[str, Any]) -> None:
    """Check that an answer is what `whisper.transcribe` gives.

    Segments, tokens, times, words, text and language must be the same, and probabilities equal up
    to rounding.

    Raises AssertionError with the first difference.
    """
    _same("transcription", answer["transcription"], expected["text"].strip())
    _same("detected_language", answer["detected_language"], expected["language"])
    _same("segments", len(answer["segments"]), len(expected["segments"]))
    for mine, theirs in zip(answer["segments"], expected["segments"], strict=True):
        _same("fields of a segment", set(mine) - {"words"}, set(SEGMENT_FIELDS))
        # Whisper also gives an empty list for a segment that it has cleared.
        words = theirs.get("words", []) if "word_timestamps" in answer else []
        _same("words of a segment", len(mine.get("words", [])), len(words))
        for word, other in zip(mine.get("words", []), words, strict=True):
            _same("word of a segment", word, other)
        for field in SEGMENT_FIELDS:
            value = theirs["text"].strip() if field == "text" else theirs[field]
            _same(f"segment {theirs['id']} {field}", mine[field], value)
    words = [
        word for segment in expected["segments"] for word in segment.get("words", [])
    ]
    answered = answer.get("word_timestamps") or []
    _same("words", len(answered), len(words))
    for mine, theirs in zip(answered, words, strict=True):
        _same("word", mine, theirs | {"word": theirs["word"].strip()})


def assert_official(
    answer: dict[str, Any], model: str, file: str, **options: Any
) -> None:
    """The answer is what official decoding gives for a file of tests/audio.

    Where two tokens are almost equally probable, the kind of CPU decides. An answer that differs
    from the kept result is therefore compared with one that is computed here.
    """
    try:
        assert_equals_official(answer, official(model, file, **options))
    except AssertionError:
        here = _transcribed_file(model, file, json.dumps(options, sort_keys=True))
        assert_equals_official(answer, here)


def _same(what: str, mine: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        _same(f"fields of a {what}", set(mine), set(theirs))
        for field, value in theirs.items():
            _same(f"{what} {field}", mine[field], value)
    elif what.endswith(("avg_logprob", "no_speech_prob", "probability")):
        assert abs(mine - theirs) < ROUNDING, f"{what}: {mine} instead of {theirs}"
    else:
        assert mine == theirs, f"{what}: {mine!r} instead of {theirs!r}"


def files_in(folder: Path) -> list[Path]:
    """The files below a folder, without those that are no recordings by their names."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in _OTHER_FILES
    )


def waveform(name: str) -> np.ndarray:
    """A file of tests/audio as float32 at 16 kHz, shape (samples,)."""
    with (AUDIO / name).open("rb") as file:
        return as_official(decode_audio(file, LONGEST_S).samples)


def as_official(samples: np.ndarray) -> np.ndarray:
    """int16 to float32 as `whisper.load_audio` does it."""
    return samples.astype(np.float32) / 32768.0


@functools.cache
def official_model(name: str) -> Whisper:
    """OpenAI's model of this name, on the CPU; weights that are missing are downloaded."""
    model = whisper.load_model(str(weights(name)), device="cpu")
    model.set_alignment_heads(whisper._ALIGNMENT_HEADS[name])
    return model


@functools.cache
def weights_digest(name: str) -> str:
    """SHA-256 of the model's tensors in fp32, whatever the layout of the file that held them."""
    digest = hashlib.sha256()
    for key, tensor in sorted(official_model(name).state_dict().items()):
        if tensor.is_sparse:
            continue
        digest.update(f"{key} {tuple(tensor.shape)}".encode())
        digest.update(tensor.float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _official_of_file(model: str, name: str, options: str) -> dict[str, Any]:
    known = [
        case
        for case in recorded_cases()
        if case["model"] == model and case["weights"] == weights_digest(model)
    ]
    if not known:
        return _transcribed_file(model, name, options)
    wanted = (model, name, json.loads(options))
    for case in known:
        if _case(case) == wanted:
            result: dict[str, Any] = case["result"]
            return result
    raise MissingCaseError(
        f"not in {RESULTS.name}:"
        f" python -m tools.official --add {model} {name} '{options}'"
    )


@functools.cache
def _transcribed_file(model: str, name: str, options: str) -> dict[str, Any]:
    return transcribe(model, waveform(name), **json.loads(options))


def _case(entry: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    return entry["model"], entry["file"], entry["options"]


def _kept_of(result: dict[str, Any]) -> dict[str, Any]:
    """The result without what no comparison looks at, as JSON holds it."""
    segments = [
        {field: segment[field] for field in SEGMENT_FIELDS}
        | ({"words": segment["words"]} if "words" in segment else {})
        for segment in result["segments"]
    ]
    kept = {"text": result["text"], "language": result["language"]}
    plain: dict[str, Any] = json.loads(
        json.dumps(kept | {"segments": segments}, default=float)
    )
    return plain


@contextlib.contextmanager
def _draws_of_the_engine(model: Whisper) -> Iterator[None]:
    generator = torch.Generator()
    numbers = itertools.count(SEED)
    decode = model.decode

    def reseeding(*args: Any) -> Any:
        generator.manual_seed(next(numbers))
        return decode(*args)

    class Draws:
        def __init__(self, logits: Tensor) -> None:
            self._cumulated = logits.softmax(-1).double().cumsum(-1)

        def sample(self) -> Tensor:
            rows = len(self._cumulated)
            uniform = torch.rand(rows, generator=generator, dtype=torch.float64)
            drawn = (uniform * self._cumulated[:, -1])[:, None]
            return torch.searchsorted(self._cumulated, drawn, right=True)[:, 0]

    with (
        mock.patch.object(model, "decode", reseeding),
        mock.patch.object(whisper.decoding, "Categorical", Draws),
    ):
        yield


if __name__ == "__main__":
    sys.exit(main())
