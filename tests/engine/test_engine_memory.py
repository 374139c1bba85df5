"""What an engine keeps, and what it lets go."""

import contextlib
import gc
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from whisper.model import Whisper

from deployments.engine import Engine, TranscriptionCancelled, model_runner
from deployments.engine.model.decoder import Decoder
from deployments.engine.scheduler import NotANumberError
from tests.support.engine import devices
from tests.support.engine.calls import BRIEF, PATIENCE_S, exact_engine
from tests.support.engine.tiny_whisper import as_float, recording, tiny_whisper

GROWTH_BYTES = 40_000_000


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Without the collector, whatever a reference cycle holds stays in memory and is noticed."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def on_the_engines_thread() -> bool:
    return threading.current_thread().name == "engine"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"language": None, "beam_size": 2},
        {"temperature": (0.0, 0.5), "logprob_threshold": 0.0},
        {"word_timestamps": True},
    ],
    ids=str,
)
def test_an_idle_engine_holds_no_recording(
    engine: Engine, no_collector: None, options: dict[str, Any]
) -> None:
    audio = recording(35)
    held = weakref.ref(audio)
    engine.transcribe(audio, **BRIEF | options)
    del audio
    engine.transcribe(recording(1), **BRIEF)  # so that the thread has other work
    assert held() is None


@pytest.mark.parametrize(
    "options",
    [
        {"no_such_option": 1},
        {"on_segments": lambda _: [].pop()},
        {"cancelled": lambda: True},
    ],
    ids=["option", "callback", "cancelled"],
)
def test_a_call_that_fails_in_its_own_thread_leaves_no_recording(
    engine: Engine, no_collector: None, options: dict[str, Any]
) -> None:
    audio = recording(2)
    held = weakref.ref(audio)
    with contextlib.suppress(TypeError, IndexError, TranscriptionCancelled):
        engine.transcribe(audio, **BRIEF | options)
    del audio
    engine.transcribe(recording(1), **BRIEF)  # so that the thread has other work
    assert held() is None


def test_a_call_that_is_cancelled_while_it_decodes_leaves_no_recording(
    engine: Engine, no_collector: None
) -> None:
    audio = recording(2)
    held = weakref.ref(audio)
    with contextlib.suppress(TranscriptionCancelled):
        long = BRIEF | {"sample_len": 200}
        engine.transcribe(audio, cancelled=on_the_engines_thread, **long)
    del audio
    engine.transcribe(recording(1), **BRIEF)  # so that the thread has other work
    assert held() is None


def test_a_call_that_fails_while_it_decodes_leaves_no_recording(
    engine: Engine, no_collector: None
) -> None:
    audio = as_float(recording(2))
    audio[0] = np.nan
    held = weakref.ref(audio)
    with contextlib.suppress(NotANumberError):
        engine.transcribe(audio, **BRIEF)
    del audio
    engine.transcribe(recording(1), **BRIEF)  # so that the thread has other work
    assert held() is None


def test_the_model_may_be_dropped(no_collector: None) -> None:
    model = tiny_whisper()
    parts = [weakref.ref(model), weakref.ref(model.encoder), weakref.ref(model.decoder)]
    with exact_engine(model) as engine:
        before = engine.transcribe(recording(1), **BRIEF)
        del model
        gc.collect()
        assert [part() for part in parts] == [None] * 3
        assert engine.transcribe(recording(1), **BRIEF) == before


def test_a_closed_engine_leaves_nothing(tiny_model: Whisper) -> None:
    engine = exact_engine(tiny_model)
    engine.transcribe(recording(1), **BRIEF)
    scheduler = engine.scheduler
    parts: list[Any] = [engine, scheduler, scheduler.runner, scheduler.runner.batch]
    held = [weakref.ref(part) for part in parts]
    engine.close()
    assert engine.join(PATIENCE_S)
    del engine, scheduler, parts
    gc.collect()
    assert [part() for part in held] == [None] * 4


def test_an_engine_that_cannot_be_made_leaves_nothing(
    tiny_model: Whisper, no_collector: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[Any]] = []

    def out_of_memory(decoder: Decoder, *_: Any, **__: Any) -> None:
        held.append(weakref.ref(decoder))
        raise MemoryError

    monkeypatch.setattr(model_runner, "DecodingBatch", out_of_memory)
    with contextlib.suppress(MemoryError):
        exact_engine(tiny_model)
    assert [part() for part in held] == [None]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.skipif(
    not devices.on_cpu(), reason="a GPU's driver loads code when it is first used"
)
def test_memory_does_not_grow_with_the_number_of_calls(tiny_model: Whisper) -> None:
    kinds: list[dict[str, Any]] = [
        {},
        {"beam_size": 2},
        {"cancelled": on_the_engines_thread, "sample_len": 200},
        {"language": None},
    ]
    with exact_engine(tiny_model, max_windows=2) as engine:

        def calls(count: int) -> int:
            for number in range(count):
                with contextlib.suppress(TranscriptionCancelled):
                    options = BRIEF | {"sample_len": 2} | kinds[number % len(kinds)]
                    engine.transcribe(recording(1, seed=number), **options)
            gc.collect()
            return _resident_bytes()

        after_a_few = calls(12)
        # The spectrogram of one call takes a megabyte.
        assert calls(120) - after_a_few < GROWTH_BYTES
        assert engine.stats().slots_in_use == 0


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
