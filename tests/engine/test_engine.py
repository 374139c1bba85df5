import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
import whisper
from torch import Tensor
from whisper.decoding import DecodingOptions, DecodingResult
from whisper.model import Whisper

from deployments.engine import (
    Engine,
    EngineClosedError,
    EngineStats,
    TranscriptionCancelled,
)
from deployments.engine.engine import SEED
from deployments.schema import parse_request
from tests.engine.tiny_whisper import as_float, recording, tiny_whisper, window

BRIEF: dict[str, Any] = {"language": "en", "temperature": 0.0, "sample_len": 4}
PATIENCE_S = 20


@pytest.fixture
def model() -> Whisper:
    return tiny_whisper()


@pytest.fixture
def engine(model: Whisper) -> Iterator[Engine]:
    with Engine(model) as engine:
        yield engine
    # Its draws would mix with those of the next test.
    engine._worker.join(PATIENCE_S)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as threads:
        yield threads


class Gate:
    """A stand-in for `Whisper.decode` in which a window stays until the gate is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.windows = 0
        self.error: BaseException | None = None

    def decode(self, _: Tensor, __: DecodingOptions) -> DecodingResult:
        self.windows += 1
        self.entered.set()
        assert self.opened.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        return window((0, 1))


@pytest.fixture
def gate(model: Whisper) -> Iterator[Gate]:
    gate = Gate()
    vars(model)["decode"] = gate.decode
    yield gate
    gate.opened.set()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


class Calls:
    """Calls that arrive at the engine one after the other, each in a thread of its own."""

    def __init__(self, engine: Engine, threads: ThreadPoolExecutor, gate: Gate) -> None:
        self.engine = engine
        self.threads = threads
        self.gate = gate

    def running(self, seconds: float = 1, **options: Any) -> Future[dict[str, Any]]:
        future = self._call(seconds, options)
        assert self.gate.entered.wait(PATIENCE_S)
        return future

    def waiting(self, seconds: float = 1, **options: Any) -> Future[dict[str, Any]]:
        before = self.engine.stats().windows_waiting
        future = self._call(seconds, options)
        until(lambda: self.engine.stats().windows_waiting == before + 1)
        return future

    def _call(self, seconds: float, options: dict[str, Any]) -> Future[dict[str, Any]]:
        return self.threads.submit(
            self.engine.transcribe, recording(seconds), **BRIEF | options
        )


@pytest.fixture
def calls(engine: Engine, threads: ThreadPoolExecutor, gate: Gate) -> Calls:
    return Calls(engine, threads, gate)


def succeeds(future: Future[dict[str, Any]]) -> bool:
    return len(future.result(PATIENCE_S)["segments"]) > 0


def official(model: Whisper, seconds: float, **options: Any) -> dict[str, Any]:
    torch.manual_seed(SEED)
    result: dict[str, Any] = whisper.transcribe(
        model, as_float(recording(seconds)), fp16=False, **options
    )
    return result


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 0.0, "beam_size": 3, "patience": 2.0, "length_penalty": 0.5},
        {"temperature": 0.0, "language": None},
        {"temperature": 0.0, "language": "pt", "task": "translate"},
        {"temperature": 0.7},
        {"temperature": (0.0, 0.4, 0.8), "best_of": 2, "beam_size": 2},
        {"temperature": 0.0, "word_timestamps": True},
        {
            "temperature": 0.0,
            "word_timestamps": True,
            "hallucination_silence_threshold": 0.5,
            "prepend_punctuations": "(",
            "append_punctuations": ")",
        },
        {"temperature": 0.0, "clip_timestamps": "5,12.5,20,31"},
        {"temperature": 0.0, "clip_timestamps": [31.0]},
        {"temperature": 0.0, "initial_prompt": "Names: Ada, Grace."},
        {
            "temperature": 0.0,
            "initial_prompt": "Names: Ada.",
            "carry_initial_prompt": True,
        },
        {"temperature": (0.0, 0.6), "condition_on_previous_text": False},
        {
            "temperature": 0.0,
            "suppress_tokens": "",
            "compression_ratio_threshold": None,
            "logprob_threshold": None,
            "no_speech_threshold": None,
        },
        {"temperature": 0.0, "no_speech_threshold": 0.0, "logprob_threshold": 0.0},
    ],
    ids=str,
)
def test_the_result_is_that_of_whisper_transcribe(
    engine: Engine, model: Whisper, options: dict[str, Any]
) -> None:
    options = BRIEF | {"sample_len": 6} | options
    ours = engine.transcribe(recording(32.005), **options)
    assert ours == official(model, 32.005, **options)
    all_is_silence = options.get("no_speech_threshold") == 0.0
    assert bool(ours["segments"]) is not all_is_silence


def test_a_request_without_options_gives_the_result_of_whisper_transcribe(
    engine: Engine, model: Whisper
) -> None:
    options = parse_request({"audio": "https://example.com/a"}).whisper_options()
    options["sample_len"] = 3
    ours = engine.transcribe(recording(3), **options)
    assert ours == official(model, 3, **options)


def test_float_and_int16_samples_give_the_same_result(engine: Engine) -> None:
    audio = recording(3)
    assert engine.transcribe(audio, **BRIEF) == engine.transcribe(
        as_float(audio), **BRIEF
    )


def test_nothing_is_said_of_precision_on_a_cpu(
    engine: Engine, recwarn: pytest.WarningsRecorder
) -> None:
    engine.transcribe(recording(1), **BRIEF)
    assert [str(warning.message) for warning in recwarn if "FP16" in str(warning)] == []


def test_samples_depend_on_nothing_that_ran_before(
    engine: Engine, model: Whisper
) -> None:
    options = BRIEF | {"temperature": 1.0}
    first = engine.transcribe(recording(1), **options)
    engine.transcribe(recording(1, seed=7), **options)
    torch.rand(1000)
    assert engine.transcribe(recording(1), **options) == first
    torch.manual_seed(SEED + 1)
    audio = as_float(recording(1))
    assert whisper.transcribe(model, audio, fp16=False, **options) != first


@pytest.mark.parametrize("silent", [False, True])
def test_callbacks_follow_the_work_from_start_to_end(
    engine: Engine, silent: bool
) -> None:
    progress: list[tuple[float, float]] = []
    segments: list[dict[str, Any]] = []
    options = BRIEF
    if silent:
        options = options | {"no_speech_threshold": 0.0, "logprob_threshold": 0.0}
    result = engine.transcribe(
        recording(62.5),
        on_progress=lambda done, total: progress.append((done, total)),
        on_segments=segments.extend,
        **options,
    )
    assert progress[0] == (0, 62.5)
    assert progress[-1] == (62.5, 62.5)
    assert len(progress) >= 4
    assert progress == sorted(set(progress))
    assert segments == result["segments"]
    assert bool(segments) is not silent


def test_calls_are_answered_in_order_of_arrival(calls: Calls) -> None:
    begun: list[int] = []

    def note(number: int) -> Callable[[float, float], None]:
        return lambda done, _: begun.append(number) if done == 0 else None

    futures = [calls.running(on_progress=note(0))]
    futures += [calls.waiting(on_progress=note(number)) for number in range(1, 6)]
    assert begun == [0]
    calls.gate.opened.set()
    assert all(map(succeeds, futures))
    assert begun == [0, 1, 2, 3, 4, 5]


def test_a_waiting_call_is_cancelled_without_a_trace(calls: Calls) -> None:
    gone = threading.Event()
    running = calls.running()
    cancelled = calls.waiting(cancelled=gone.is_set)
    behind = calls.waiting()
    gone.set()
    with pytest.raises(TranscriptionCancelled):
        cancelled.result(PATIENCE_S)
    assert calls.engine.stats().windows_waiting == 1
    assert not running.done()
    calls.gate.opened.set()
    assert succeeds(running)
    assert succeeds(behind)


def test_a_running_call_is_cancelled_before_its_next_window(calls: Calls) -> None:
    gone = threading.Event()
    cancelled = calls.running(seconds=70, cancelled=gone.is_set)
    behind = calls.waiting()
    gone.set()
    calls.gate.opened.set()
    with pytest.raises(TranscriptionCancelled):
        cancelled.result(PATIENCE_S)
    assert succeeds(behind)
    assert calls.engine.stats().windows_done == 1


def test_an_error_in_decoding_fails_its_call_and_no_other(calls: Calls) -> None:
    calls.gate.error = RuntimeError("a bad window")
    failing = calls.running()
    behind = calls.waiting(on_progress=lambda *_: setattr(calls.gate, "error", None))
    calls.gate.opened.set()
    with pytest.raises(RuntimeError, match="a bad window"):
        failing.result(PATIENCE_S)
    assert succeeds(behind)
    assert calls.engine.alive


@pytest.mark.parametrize("error", [LookupError("mine"), TimeoutError("mine")])
@pytest.mark.parametrize("callback", ["on_progress", "on_segments", "cancelled"])
def test_an_error_in_a_callback_fails_its_call_and_no_other(
    calls: Calls, callback: str, error: Exception
) -> None:
    def fail(*_: Any) -> bool:
        raise error

    running = calls.running()
    failing = calls.waiting(1, **{callback: fail})
    behind = calls.waiting()
    calls.gate.opened.set()
    with pytest.raises(type(error), match="mine"):
        failing.result(PATIENCE_S)
    assert succeeds(running)
    assert succeeds(behind)
    assert calls.engine.alive


def test_options_that_whisper_refuses_fail_their_call_and_no_other(
    engine: Engine,
) -> None:
    with pytest.raises(TypeError, match="no_such_option"):
        engine.transcribe(recording(1), **BRIEF, no_such_option=1)
    assert engine.transcribe(recording(1), **BRIEF)["language"] == "en"


def test_closing_answers_running_and_waiting_calls_at_once(calls: Calls) -> None:
    futures = [calls.running(), calls.waiting(), calls.waiting()]
    started = time.monotonic()
    calls.engine.close()
    for future in futures:
        with pytest.raises(EngineClosedError):
            future.result(PATIENCE_S)
    assert time.monotonic() - started < 2
    assert not calls.gate.opened.is_set()
    assert not calls.engine.alive


def test_a_closed_engine_takes_no_calls(model: Whisper) -> None:
    with Engine(model) as engine:
        assert engine.alive
    assert not engine.alive
    engine.close()
    with pytest.raises(EngineClosedError):
        engine.transcribe(recording(1), **BRIEF)


def test_closing_ends_the_thread_after_its_window(calls: Calls) -> None:
    calls.running(seconds=300)
    calls.engine.close()
    calls.gate.opened.set()
    until(lambda: not calls.engine._worker.is_alive())
    assert calls.gate.windows == 1


class Death(BaseException):
    pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_its_thread_dies_the_engine_answers_everyone_and_says_so(
    calls: Calls,
) -> None:
    calls.gate.error = Death()
    futures = [calls.running(), calls.waiting(), calls.waiting()]
    assert calls.engine.alive
    calls.gate.opened.set()
    for future in futures:
        with pytest.raises(EngineClosedError):
            future.result(PATIENCE_S)
    assert not calls.engine.alive
    with pytest.raises(EngineClosedError):
        calls.engine.transcribe(recording(1), **BRIEF)


def test_calls_from_many_threads_get_the_results_of_calls_one_by_one(
    engine: Engine, threads: ThreadPoolExecutor
) -> None:
    options = BRIEF | {"temperature": 1.0}
    recordings = [recording(1 + number / 8, seed=number) for number in range(16)]

    def transcribe(number: int) -> dict[str, Any]:
        return engine.transcribe(recordings[number], **options)

    together = list(threads.map(transcribe, range(16)))
    assert together == [transcribe(number) for number in range(16)]
    assert len({str(result) for result in together}) == 16


def test_stats_tell_what_the_engine_does_and_has_done(
    calls: Calls, model: Whisper
) -> None:
    weights = sum(p.numel() * 4 for p in model.parameters())
    idle = EngineStats(
        slots=1,
        slots_in_use=0,
        windows_waiting=0,
        windows_done=0,
        audio_seconds_done=0.0,
        bytes_held=weights,
    )
    assert calls.engine.stats() == idle
    futures = [calls.running(seconds=2), calls.waiting(seconds=3.5)]
    busy = calls.engine.stats()
    assert (busy.slots_in_use, busy.windows_waiting) == (1, 1)
    calls.gate.opened.set()
    assert all(map(succeeds, futures))
    until(lambda: calls.engine.stats().slots_in_use == 0)
    done = calls.engine.stats()
    assert (done.windows_done, done.audio_seconds_done) == (2, 5.5)
    assert (done.windows_waiting, done.bytes_held) == (0, weights)


def test_a_call_that_fails_is_not_counted_as_done(engine: Engine) -> None:
    with pytest.raises(TranscriptionCancelled):
        engine.transcribe(recording(1), cancelled=lambda: True, **BRIEF)
    until(lambda: engine.stats().slots_in_use == 0)
    assert engine.stats().windows_done == 0
    assert engine.stats().audio_seconds_done == 0


@pytest.mark.parametrize("max_windows", [0, 2, 32])
def test_more_windows_than_official_decoding_can_do_are_refused(
    model: Whisper, max_windows: int
) -> None:
    with pytest.raises(ValueError, match="max_windows"):
        Engine(model, max_windows)


def test_one_window_at_a_time_may_be_asked_for(model: Whisper) -> None:
    with Engine(model, max_windows=1) as engine:
        assert engine.stats().slots == 1


def test_an_idle_engine_holds_no_recording(engine: Engine) -> None:
    audio = recording(1)
    held = weakref.ref(audio)
    engine.transcribe(audio, **BRIEF)
    del audio
    until(lambda: held() is None)
