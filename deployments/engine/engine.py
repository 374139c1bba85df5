"""The engine's face: many recordings at once, each as `whisper.transcribe` would do it alone."""

import math
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from whisper.audio import SAMPLE_RATE
from whisper.model import Whisper

from deployments.engine.model.decoder import Decoder
from deployments.engine.model_runner import MAX_WIDTH, ModelRunner
from deployments.engine.queues import TaskQueues
from deployments.engine.scheduler import Scheduler
from deployments.engine.session import Session
from deployments.engine.tasks import Cancelled, Usage
from deployments.engine.upstream.model_facts import prompt_tokens
from deployments.engine.upstream.transcribe import (
    OnProgress,
    OnSegments,
    detect_language,
    transcribe,
)

# The most windows that decode together, by the kind of device, unless the caller chooses.
MAX_WINDOWS = {"cpu": 8, "cuda": 32}
# Encoding several windows in one call gains nothing on a CPU, and would hold up the other windows.
_ENCODER_WINDOWS = {"cpu": 1, "cuda": 8}
# Memory of a GPU that is left for intermediate results and spectrograms.
_GPU_WORKSPACE = 1 << 30
_SWITCH_INTERVAL_S = 1e-4


@dataclass(frozen=True)
class EngineStats:
    """What the engine does now and has done.

    slots: how many windows can be decoded together
    windows_waiting: windows that wait for a slot
    windows_done, audio_seconds_done: since the engine was made
    slot_bytes: memory of each slot
    bytes_held: memory of the weights and all slots
    """

    slots: int
    slots_in_use: int
    windows_waiting: int
    windows_done: int
    audio_seconds_done: float
    slot_bytes: int
    bytes_held: int


class Engine:
    """Transcribes waveforms with one model. Any number of threads may call.

    model: its weights are copied to the layout and precision of the engine; those that need no
        change are shared. The model may be dropped, but it must not be changed.
    max_windows: the most windows that are decoded together; the others wait in order of arrival.
        None: as many as fit into the memory, at most 8 on a CPU and 32 on a GPU
    memory_bytes: memory of a GPU for weights and slots. None: what is free
    device: where to run. None: where the model is. For a GPU, a model on the CPU saves memory:
        the GPU then holds nothing but the engine's own copy of the weights.
    dtype: precision of weights and activations, fp32 or fp16. None: fp32 on a CPU, fp16 on a GPU.
        fp32 on a GPU switches TF32 off in the whole process, so that products are in full
        precision.
    encoder_windows: how many windows the encoder takes at once. None: 1 on a CPU, 8 on a GPU

    Raises ValueError for a `max_windows` below 1 and for any other `dtype`.

    The attribute `scheduler` is for tests and measurements; see `Scheduler`.
    """

    def __init__(
        self,
        model: Whisper,
        max_windows: int | None = None,
        memory_bytes: int | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        encoder_windows: int | None = None,
    ) -> None:
        if max_windows is not None and max_windows < 1:
            raise ValueError("max_windows: must be at least 1")
        if dtype not in (None, torch.float32, torch.float16):
            raise ValueError(f"dtype: must be float32 or float16, not {dtype}")
        # A tensor's device has an index: "cuda" becomes "cuda:0".
        device = torch.empty(0, device=device or model.device).device
        on_cpu = device.type == "cpu"
        if dtype is None:
            dtype = torch.float32 if on_cpu else torch.float16
        if dtype == torch.float32 and not on_cpu:
            torch.set_float32_matmul_precision("highest")
        kind = "cpu" if on_cpu else "cuda"
        self._weight_bytes = _bytes_of_weights(model, dtype)
        slots = max_windows or MAX_WINDOWS[kind]
        if max_windows is None and not on_cpu:
            slot_bytes = Decoder.slot_bytes(model.dims, dtype, MAX_WIDTH)
            if memory_bytes is None:
                memory_bytes = _free_on(device)
            left = memory_bytes - self._weight_bytes - _GPU_WORKSPACE
            slots = min(slots, max(1, left // slot_bytes))

        # OpenMP keeps a pool of worker threads for each thread that has called it, and more workers
        # than cores slow the engine's thread down (benchmarks/results/engine_profile.md). So the
        # weights are prepared in a thread that ends, and its pool ends with it.
        with ThreadPoolExecutor(1) as thread:
            runner = thread.submit(
                ModelRunner.of, model, device, dtype, slots=slots
            ).result()
        self.facts = runner.facts
        self.scheduler = Scheduler(
            runner,
            TaskQueues(slots),
            encoder_windows=encoder_windows or _ENCODER_WINDOWS[kind],
        )
        self._tokenizer = runner.tokenizer
        self._slot_bytes = runner.slot_bytes
        self._audio_seconds_done = 0.0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether the engine takes work."""
        return self.scheduler.alive

    @property
    def max_prompt_tokens(self) -> int:
        """How many tokens of an `initial_prompt` Whisper uses, the last ones: 223.

        Whisper ignores the tokens before them.
        """
        return self.facts.max_prompt_tokens

    def count_prompt_tokens(self, text: str) -> int:
        """How many tokens this `initial_prompt` has, as `whisper.transcribe` counts them."""
        return len(prompt_tokens(self._tokenizer, text))

    def transcribe(
        self,
        audio: np.ndarray,
        *,
        on_start: Callable[[], None] | None = None,
        on_progress: OnProgress | None = None,
        on_segments: OnSegments | None = None,
        cancelled: Cancelled | None = None,
        on_usage: Callable[[Usage], None] | None = None,
        max_busy_s: float = math.inf,
        **options: Any,
    ) -> dict[str, Any]:
        """`whisper.transcribe(model, audio, **options)`. Blocks until the result is there.

        audio: waveform at 16 kHz, shape (samples,): float32, or int16 as ffmpeg delivers it before
            `whisper.load_audio` divides it by 32,768
        on_start(): called once, when the first window has its slot and the work on it begins. It is
            called on the engine's thread, so it must be quick.
        on_progress(done_seconds, total_seconds): called once with 0 at the start, then after each
            window
        on_segments(segments): called after each window with the segments that have become final
        cancelled(): called several times a second on the engine's thread, so it must be quick. If
            it returns true, the work ends within one step, or the encoding of one window.
        on_usage(usage): called once, before the result is returned
        max_busy_s: the most seconds that the engine's thread may work on this call; see
            `Usage.busy_s`

        An exception in a callback fails this call and no other. `fp16` is not an option here, since
        the engine has its own precision.

        Raises TranscriptionCancelled if `cancelled()` returned true, DecodingLimitExceeded after
        `max_busy_s`, EngineClosedError if the engine is or gets closed, and whatever
        `whisper.transcribe` raises.
        """
        session = self._session(on_start, cancelled, max_busy_s)
        try:
            result = transcribe(
                session,
                audio,
                on_progress=on_progress,
                on_segments=on_segments,
                fp16=False,  # True would round the spectrogram, which is left to the encoder.
                **options,
            )
        finally:
            session.leave_window()
        if on_usage is not None:
            on_usage(session.usage)
        with self._lock:
            self._audio_seconds_done += audio.shape[-1] / SAMPLE_RATE
        return result

    def detect_language(
        self,
        audio: np.ndarray,
        *,
        on_start: Callable[[], None] | None = None,
        cancelled: Cancelled | None = None,
        max_busy_s: float = math.inf,
    ) -> tuple[str, float | None]:
        """The language that `transcribe` would detect in a recording, and its probability.

        The probability is None, and nothing is computed, where the model knows only English.
        Arguments and errors are those of `transcribe`.
        """
        session = self._session(on_start, cancelled, max_busy_s)
        try:
            return detect_language(session, audio)
        finally:
            session.leave_window()

    def stats(self) -> EngineStats:
        queues = self.scheduler.queues
        return EngineStats(
            slots=queues.slots,
            slots_in_use=queues.slots - len(queues.free_slots),
            windows_waiting=len(queues.waiting),
            windows_done=self.scheduler.windows_done,
            audio_seconds_done=self._audio_seconds_done,
            slot_bytes=self._slot_bytes,
            bytes_held=self._weight_bytes + queues.slots * self._slot_bytes,
        )

    def close(self) -> None:
        """End at once: running and waiting calls raise EngineClosedError. Never blocks."""
        self.scheduler.close()

    def join(self, timeout: float | None = None) -> bool:
        """Wait, for `timeout` seconds at most, until a closed engine's thread has ended.

        Returns whether it has. Then the engine's memory can be freed.
        """
        return self.scheduler.join(timeout)

    def _session(
        self,
        on_start: Callable[[], None] | None,
        cancelled: Cancelled | None,
        max_busy_s: float,
    ) -> Session:
        return Session(self.scheduler, cancelled or _never, max_busy_s, on_start)


def own_process() -> None:
    """Shorten the time that the engine's thread waits for Python's interpreter lock.

    PyTorch releases the lock during every operation. Another thread that takes it may keep it for
    5 ms by default, in which a GPU could take several decoding steps. Call this once in a process
    whose main work is an engine.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)


def _free_on(gpu: torch.device) -> int:
    """Free bytes, including those that PyTorch has reserved and does not use."""
    module = torch.get_device_module(gpu)
    unused = module.memory_reserved(gpu) - module.memory_allocated(gpu)
    return int(module.mem_get_info(gpu)[0] + unused)


def _bytes_of_weights(model: Whisper, dtype: torch.dtype) -> int:
    """Memory of the weights that the engine keeps.

    It keeps the embeddings in fp32 as well, and the weights for keys and values of cross-attention
    in a second layout, for language detection.
    """
    parameters = sum(p.numel() for p in model.parameters())
    embeddings = model.decoder.token_embedding.weight.numel()
    dims = model.dims
    second = 2 * dims.n_text_layer * dims.n_text_state**2
    return (parameters + second) * dtype.itemsize + embeddings * 4


def _never() -> bool:
    return False
