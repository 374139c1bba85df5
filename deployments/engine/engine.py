"""The engine's face: many recordings at once, each as `whisper.transcribe` would do it alone."""

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
from deployments.engine.parts import MAX_WIDTH, Parts
from deployments.engine.scheduler import Scheduler
from deployments.engine.tasks import Cancelled, Session, Usage
from deployments.engine.upstream.mel import Spectrograms
from deployments.engine.upstream.transcribe import OnProgress, OnSegments, transcribe

_MAX_WINDOWS = {"cpu": 8, "cuda": 32}
# Encoding several windows in one call gains nothing on a CPU and would hold up the others.
_ENCODED_TOGETHER = {"cpu": 1, "cuda": 8}
_GPU_WORKSPACE = 1 << 30
# The part of the workspace for spectrograms: two hours of audio with 80 mels, 75 minutes with 128.
_SPECTROGRAM_BYTES = 230 << 20


@dataclass(frozen=True)
class EngineStats:
    """What the engine does now and has done.

    slots: windows that can be decoded together
    slot_bytes: of each of them
    bytes_held: of weights and all slots
    """

    slots: int
    slots_in_use: int
    windows_waiting: int
    windows_done: int
    audio_seconds_done: float
    slot_bytes: int
    bytes_held: int


class Engine:
    """Transcribes waveforms with one model; any number of threads may call.

    model: The engine keeps weights in its own layout, and shares the rest with the model, which may be
        dropped but must not change afterwards.
    max_windows: at most this many windows are decoded together, the rest wait in order; None: as many as
        the memory allows, at most 8 on a CPU and 32 on a GPU
    memory_bytes: what weights and slots may take on a GPU; None: what is free there
    device: to run on; None: where the model is. On a GPU, a model that is still on the CPU needs no room
        there beside the engine's own copy.
    dtype: precision of weights and activations, fp32 or fp16; None: fp32 on a CPU and fp16 on a GPU. Asking for
        fp32 on a GPU switches TF32 off in the whole process, so that products are in full precision.
    """

    def __init__(
        self,
        model: Whisper,
        max_windows: int | None = None,
        memory_bytes: int | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if max_windows is not None and max_windows < 1:
            raise ValueError("max_windows: must be at least 1")
        if dtype not in (None, torch.float32, torch.float16):
            raise ValueError(f"dtype: must be float32 or float16, not {dtype}")
        # As tensors tell it: "cuda" becomes "cuda:0".
        place = torch.empty(0, device=device or model.device).device
        kind = place.type
        if dtype is None:
            dtype = torch.float32 if kind == "cpu" else torch.float16
        if dtype == torch.float32 and kind != "cpu":
            torch.set_float32_matmul_precision("highest")
        slot_bytes = Decoder.slot_bytes(model.dims, dtype, MAX_WIDTH)
        self._weight_bytes = _bytes_of_weights(model, dtype)
        slots = max_windows or min(
            _MAX_WINDOWS.get(kind, _MAX_WINDOWS["cuda"]),
            self._windows_that_fit(place, slot_bytes, memory_bytes),
        )

        # OpenMP keeps worker threads for each thread that has used it, and where there are more of them than
        # cores, those of the engine's thread sleep between operations: a third of its speed. This one's end.
        with ThreadPoolExecutor(1) as thread:
            parts = thread.submit(Parts.of, model, place, dtype, slots=slots).result()
        self.facts = parts.facts
        self._slot_bytes = parts.slot_bytes
        self._audio_seconds_done = 0.0
        self._lock = threading.Lock()
        self._scheduler = Scheduler(
            parts,
            Spectrograms(model.dims.n_mels, place, _SPECTROGRAM_BYTES),
            slots=slots,
            encoded_together=_ENCODED_TOGETHER.get(kind, _ENCODED_TOGETHER["cuda"]),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether the engine takes work."""
        return self._scheduler.alive

    @property
    def max_prompt_tokens(self) -> int:
        return self.facts.dims.n_text_ctx // 2 - 1

    def count_prompt_tokens(self, text: str) -> int:
        return len(self._scheduler.tokenizer.encode(" " + text.strip()))

    def transcribe(
        self,
        audio: np.ndarray,
        *,
        on_progress: OnProgress | None = None,
        on_segments: OnSegments | None = None,
        cancelled: Cancelled | None = None,
        on_usage: Callable[[Usage], None] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """`whisper.transcribe(model, audio, **options)`; blocks until the result is there.

        audio: waveform at 16 kHz, shape (samples,): float32, or int16 as `whisper.load_audio` reads it
            before it divides by 32,768
        on_progress(done_seconds, total_seconds): once with 0 when the work begins, then after each window
        on_segments(segments): after each window, with those now final
        cancelled(): asked several times a second on the engine's thread, so it has to be quick; true ends
            the work within one step, or the encoding of one window
        on_usage(usage): once, before the result is returned

        An exception in a callback fails this call and no other.

        `fp16` is no option here: the precision is the engine's.

        Raises TranscriptionCancelled if `cancelled()` was true, EngineClosedError if the engine is or
        gets closed, and whatever `whisper.transcribe` raises.
        """
        session = Session(self._scheduler, cancelled or _never)
        try:
            result = transcribe(
                session,
                audio,
                on_progress=on_progress,
                on_segments=on_segments,
                fp16=False,  # It would round the spectrogram, which is the encoder's task.
                **options,
            )
        finally:
            session.leave_window()
        if on_usage is not None:
            on_usage(session.usage)
        with self._lock:
            self._audio_seconds_done += audio.shape[-1] / SAMPLE_RATE
        return result

    def stats(self) -> EngineStats:
        scheduler = self._scheduler
        return EngineStats(
            slots=scheduler.slots,
            slots_in_use=scheduler.slots_in_use,
            windows_waiting=scheduler.windows_waiting,
            windows_done=scheduler.windows_done,
            audio_seconds_done=self._audio_seconds_done,
            slot_bytes=self._slot_bytes,
            bytes_held=self._weight_bytes + scheduler.slots * self._slot_bytes,
        )

    def close(self) -> None:
        """End at once: running and waiting calls raise EngineClosedError. Never blocks."""
        self._scheduler.close()

    def join(self, timeout: float | None = None) -> None:
        """Wait, at most so many seconds, until a closed engine has let go of its memory."""
        self._scheduler.join(timeout)

    def _windows_that_fit(
        self, device: torch.device, slot_bytes: int, memory_bytes: int | None
    ) -> int:
        if device.type == "cpu":
            return _MAX_WINDOWS["cpu"]
        if memory_bytes is None:
            memory_bytes = _free_on(device)
        left = memory_bytes - self._weight_bytes - _GPU_WORKSPACE
        return max(1, left // slot_bytes)


def _free_on(gpu: torch.device) -> int:
    """Bytes, with what PyTorch holds and does not use."""
    module = torch.get_device_module(gpu)
    unused = module.memory_reserved(gpu) - module.memory_allocated(gpu)
    return int(module.mem_get_info(gpu)[0] + unused)


def _bytes_of_weights(model: Whisper, dtype: torch.dtype) -> int:
    """Of what the engine keeps: the embeddings are there in fp32 as well, cross-attention's keys and values
    for language detection in a second layout.
    """
    parameters = sum(p.numel() for p in model.parameters())
    embeddings = model.decoder.token_embedding.weight.numel()
    dims = model.dims
    second = 2 * dims.n_text_layer * dims.n_text_state**2
    return (parameters + second) * dtype.itemsize + embeddings * 4


def _never() -> bool:
    return False
