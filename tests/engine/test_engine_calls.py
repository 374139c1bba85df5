"""How calls begin, wait, report, are cancelled and end."""

import gc
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from whisper.model import Whisper

from deployments.engine import (
    Engine,
    EngineClosedError,
    EngineStats,
    TranscriptionCancelled,
)
from deployments.engine.decoding.batch import Progress
from deployments.engine.model import onednn
from tests.support.engine.calls import (
    BRIEF,
    PATIENCE_S,
    Calls,
    Gate,
    StuckEncoder,
    exact_engine,
    replace,
    succeeds,
    until,
)
from tests.support.engine.tiny_whisper import recording

one_slot = pytest.mark.parametrize("slots", [1])


@pytest.mark.parametrize("silent", [False, True])
def test_callbacks_follow_the_work_from_start_to_end(
    engine: Engine, silent: bool
) -> None:
    progress: list[tuple[float, float]] = []
    started: list[int] = []
    segments: list[dict[str, Any]] = []
    options = BRIEF
    if silent:
        options = options | {"no_speech_threshold": 0.0, "logprob_threshold": 0.0}
    result = engine.transcribe(
        recording(62.5),
        on_start=lambda: started.append(len(progress)),
        on_progress=lambda done, total: progress.append((done, total)),
        on_segments=segments.extend,
        **options,
    )
    # Once, after the beginning and before the first window's end.
    assert started == [1]
    assert progress[0] == (0, 62.5)
    assert progress[-1] == (62.5, 62.5)
    assert len(progress) >= 4
    assert progress == sorted(set(progress))
    assert segments == result["segments"]
    assert bool(segments) is not silent


@one_slot
def test_a_waiting_call_is_cancelled_without_a_trace(calls: Calls, gate: Gate) -> None:
    gone = threading.Event()
    running = calls.running()
    cancelled = calls.waiting(cancelled=gone.is_set)
    behind = calls.waiting()
    gone.set()
    with pytest.raises(TranscriptionCancelled):
        cancelled.result(PATIENCE_S)
    assert calls.engine.stats().windows_waiting == 1
    assert not running.done()
    gate.opened.set()
    assert succeeds(running)
    assert succeeds(behind)


@one_slot
def test_a_decoding_call_is_cancelled_in_the_middle_of_its_window(
    calls: Calls, gate: Gate
) -> None:
    gone = threading.Event()
    cancelled = calls.running(cancelled=gone.is_set)
    behind = calls.waiting()
    gone.set()
    with pytest.raises(TranscriptionCancelled):
        cancelled.result(PATIENCE_S)
    # The next call has taken its slot already, although the gate is shut.
    until(lambda: calls.engine.stats().windows_waiting == 0)
    assert calls.engine.stats().slots_in_use == 1
    gate.opened.set()
    assert succeeds(behind)
    assert calls.engine.stats().windows_done == 1


def test_a_call_is_cancelled_between_two_of_its_windows(engine: Engine) -> None:
    delivered: list[dict[str, Any]] = []
    with pytest.raises(TranscriptionCancelled):
        engine.transcribe(
            recording(70),
            on_segments=delivered.extend,
            cancelled=lambda: bool(delivered),
            **BRIEF,
        )
    assert engine.stats().windows_done == 1
    assert engine.stats().slots_in_use == 0


def test_a_call_is_cancelled_while_its_spectrogram_is_computed(
    calls: Calls, stuck: StuckEncoder
) -> None:
    gone = threading.Event()
    calls.start()
    assert stuck.entered.wait(PATIENCE_S)
    cancelled = calls.submitted(seconds=3000, cancelled=gone.is_set)
    gone.set()
    stuck.let_go.set()
    with pytest.raises(TranscriptionCancelled):
        cancelled.result(PATIENCE_S)
    assert stuck.windows == 1


def test_a_call_that_is_cancelled_is_not_counted_as_done(engine: Engine) -> None:
    with pytest.raises(TranscriptionCancelled):
        engine.transcribe(recording(1), cancelled=lambda: True, **BRIEF)
    assert engine.stats().slots_in_use == 0
    assert engine.stats().windows_done == 0
    assert engine.stats().audio_seconds_done == 0


@pytest.mark.parametrize("error", [LookupError("mine"), TimeoutError("mine")])
@pytest.mark.parametrize(
    "callback", ["on_progress", "on_segments", "cancelled", "on_usage"]
)
def test_an_error_in_a_callback_fails_its_call_and_no_other(
    calls: Calls, gate: Gate, callback: str, error: Exception
) -> None:
    def fail(*_: Any) -> bool:
        on_the_engines_thread = threading.current_thread().name == "engine"
        if on_the_engines_thread or callback != "cancelled":
            raise error
        return False

    running, behind = calls.running(), calls.running()
    failing = calls.start(40, **{callback: fail})
    if callback != "cancelled":
        # `cancelled` is asked several times a second; without the gate the call might end before.
        gate.opened.set()
    with pytest.raises(type(error), match="mine"):
        failing.result(PATIENCE_S)
    gate.opened.set()
    assert succeeds(running)
    assert succeeds(behind)
    assert calls.engine.alive
    until(lambda: calls.engine.stats().slots_in_use == 0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"no_such_option": 1}, TypeError, "no_such_option"),
        ({"beam_size": 11}, ValueError, "11 beams or samples"),
        ({"best_of": 11, "temperature": 1.0}, ValueError, "11 beams or samples"),
        ({"sample_len": 225}, ValueError, "225 tokens"),
        ({"beam_size": 5, "patience": -1.0}, AssertionError, "Invalid beam size"),
        ({"language": "klingon"}, ValueError, "klingon"),
        ({"clip_timestamps": "a,b"}, ValueError, "'a'"),
    ],
    ids=str,
)
def test_options_that_cannot_be_served_fail_their_call_and_no_other(
    calls: Calls,
    gate: Gate,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    running = calls.running()
    with pytest.raises(error, match=message):
        calls.start(**options).result(PATIENCE_S)
    assert calls.engine.stats().slots_in_use == 1
    gate.opened.set()
    assert succeeds(running)


@one_slot
def test_closing_answers_decoding_and_waiting_calls_at_once(
    calls: Calls, gate: Gate
) -> None:
    futures = [calls.running(), calls.waiting(), calls.waiting()]
    calls.engine.close()
    for future in futures:
        with pytest.raises(EngineClosedError):
            future.result(PATIENCE_S)
    assert not gate.opened.is_set()
    assert not calls.engine.alive


def test_closing_waits_for_nothing_that_the_device_does(
    calls: Calls, stuck: StuckEncoder
) -> None:
    futures = [calls.start()]
    assert stuck.entered.wait(PATIENCE_S)
    futures += [calls.submitted(), calls.submitted(seconds=300)]
    calls.engine.close()
    for future in futures:
        with pytest.raises(EngineClosedError):
            future.result(PATIENCE_S)
    assert not stuck.let_go.is_set()


def test_closing_ends_the_thread_after_its_window(
    calls: Calls, stuck: StuckEncoder
) -> None:
    calls.start(seconds=300)
    assert stuck.entered.wait(PATIENCE_S)
    calls.submitted()
    calls.engine.close()
    stuck.let_go.set()
    assert calls.engine.join(PATIENCE_S)
    assert stuck.windows == 1


def test_a_closed_engine_takes_no_calls(tiny_model: Whisper) -> None:
    with exact_engine(tiny_model) as engine:
        assert engine.alive
    assert not engine.alive
    engine.close()
    with pytest.raises(EngineClosedError):
        engine.transcribe(recording(1), **BRIEF)


class Death(BaseException):
    pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@one_slot
def test_when_its_thread_dies_the_engine_answers_everyone_and_says_so(
    calls: Calls, gate: Gate
) -> None:
    gate.error = Death()
    futures = [calls.running(), calls.waiting(), calls.waiting()]
    assert calls.engine.alive
    gate.opened.set()
    for future in futures:
        with pytest.raises(EngineClosedError):
            future.result(PATIENCE_S)
    assert not calls.engine.alive
    with pytest.raises(EngineClosedError):
        calls.engine.transcribe(recording(1), **BRIEF)


@pytest.mark.parametrize("slots", [2])
def test_stats_tell_what_the_engine_does_and_has_done(
    calls: Calls, gate: Gate, tiny_model: Whisper
) -> None:
    weights = sum(p.numel() * 4 for p in tiny_model.parameters())
    idle = calls.engine.stats()
    assert idle == EngineStats(
        slots=2,
        slots_in_use=0,
        windows_waiting=0,
        windows_done=0,
        audio_seconds_done=0,
        slot_bytes=idle.slot_bytes,
        bytes_held=idle.bytes_held,
    )
    assert idle.bytes_held - 2 * idle.slot_bytes >= weights
    futures = [calls.running(), calls.running(), calls.waiting(seconds=2)]
    busy = calls.engine.stats()
    assert (busy.slots_in_use, busy.windows_waiting, busy.windows_done) == (2, 1, 0)
    gate.opened.set()
    assert all(map(succeeds, futures))
    done = calls.engine.stats()
    assert (done.slots_in_use, done.windows_waiting, done.windows_done) == (0, 0, 3)
    assert done.audio_seconds_done == 4
    assert done.bytes_held == idle.bytes_held


def test_every_slot_takes_memory(tiny_model: Whisper) -> None:
    stats = []
    for slots in (1, 3):
        with exact_engine(tiny_model, slots) as engine:
            stats.append(engine.stats())
    one, three = stats
    assert one.slot_bytes == three.slot_bytes
    assert three.bytes_held - one.bytes_held == 2 * one.slot_bytes


def test_a_slot_takes_what_is_said(
    tiny_model: Whisper, monkeypatch: pytest.MonkeyPatch
) -> None:
    # PyTorch does not know the size of tensors that oneDNN has packed.
    monkeypatch.setattr(onednn, "AVAILABLE", False)
    held = []
    for slots in (1, 3):
        with exact_engine(tiny_model, slots) as engine:
            held.append(_bytes_of_tensors())
            slot_bytes = engine.stats().slot_bytes
    assert (held[1] - held[0]) / 2 == pytest.approx(slot_bytes, rel=0.01)


def _bytes_of_tensors() -> int:
    """The memory of all tensors in this process."""
    gc.collect()
    tensors = [t for t in gc.get_objects() if type(t) in (Tensor, Parameter)]
    storages = [t.untyped_storage() for t in tensors if t.layout is torch.strided]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


@one_slot
def test_one_window_at_a_time_may_be_asked_for(calls: Calls) -> None:
    together: list[int] = []

    def watched(step: Callable[[Sequence[int]], Progress]) -> Any:
        def wrapped(slots: Sequence[int]) -> Progress:
            together.append(len(slots))
            return step(slots)

        return wrapped

    replace(calls.engine.scheduler.runner.batch, "step", watched)
    assert calls.engine.stats().slots == 1
    assert all(map(succeeds, [calls.start() for _ in range(5)]))
    assert set(together) == {1}


@pytest.mark.parametrize("max_windows", [0, -1])
def test_an_engine_for_no_window_at_all_is_refused(
    tiny_model: Whisper, max_windows: int
) -> None:
    with pytest.raises(ValueError, match="max_windows"):
        exact_engine(tiny_model, max_windows)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int8])
def test_a_precision_that_whisper_does_not_have_is_refused(
    tiny_model: Whisper, dtype: torch.dtype
) -> None:
    with pytest.raises(ValueError, match="dtype: must be float32 or float16, not"):
        Engine(tiny_model, dtype=dtype)
