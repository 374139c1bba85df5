"""A transcription's side of the scheduler: what OpenAI's code asks of a model becomes tasks."""

import math
from collections.abc import Sequence

import numpy as np
from whisper.audio import N_SAMPLES
from whisper.decoding import DecodingOptions, DecodingResult

from deployments.engine.decoding.plan import Outcome
from deployments.engine.scheduler import Scheduler
from deployments.engine.tasks import (
    AlignTask,
    Cancelled,
    DecodeTask,
    DetectTask,
    MelTask,
    OnStart,
    Transcription,
    Usage,
)
from deployments.engine.upstream.decoding import plan_for, result_of
from deployments.engine.upstream.log_mel import Mel, Spectrogram
from deployments.engine.upstream.timing import AttendedFrames, Passage


class Session:
    """The model as one transcription sees it; `upstream.transcribe.Model` says what is needed.

    One thread uses it. Its methods block, and raise TranscriptionCancelled, DecodingLimitExceeded
    and EngineClosedError.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        cancelled: Cancelled,
        max_busy_s: float = math.inf,
        on_start: OnStart | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._runner = scheduler.runner
        self._transcription = Transcription(cancelled, max_busy_s, on_start)
        self._language_probability: float | None = None
        self._decodings = 0
        self.facts = self._runner.facts

    @property
    def window(self) -> Mel | None:
        """The window that was decoded last, until it is left."""
        return self._transcription.window

    @property
    def usage(self) -> Usage:
        return self._transcription.usage(self._language_probability)

    def log_mel(self, audio: np.ndarray) -> Mel:
        """The spectrogram of a whole recording with 30 s of silence after it.

        audio: waveform at 16 kHz, float32 or int16, shape (samples,)
        """
        pieces = self._runner.spectrograms.in_pieces(audio, N_SAMPLES)
        task = MelTask(self._transcription, pieces)
        spectrogram: Spectrogram = self._scheduler.run_task(task)
        return Mel.of(spectrogram)

    def detect_language(self, mel: Mel) -> dict[str, float]:
        """The probability of each language, by its code."""
        task = DetectTask(self._transcription, mel)
        probabilities: dict[str, float] = self._scheduler.run_task(task)
        self._language_probability = max(probabilities.values())
        return probabilities

    def decode(self, mel: Mel, options: DecodingOptions) -> DecodingResult:
        """`whisper.decode`. Raises ValueError and IndexError for options that no slot can serve."""
        plan = plan_for(self.facts, options)
        self._runner.batch.check_fits(plan)
        task = DecodeTask(self._transcription, mel, plan, self._decodings)
        self._decodings += 1
        outcome: Outcome = self._scheduler.run_task(task)
        return result_of(outcome, plan, options, self._runner.tokenizer)

    def attended_frames(
        self,
        mel: Mel,
        sot_sequence: Sequence[int],
        no_timestamps: int,
        text: Sequence[int],
        frames: int,
    ) -> AttendedFrames:
        """What the tokens of `text` attend to in `mel`. See `upstream.timing.Aligner`.

        Raises ValueError unless `mel` is the window that was decoded last.
        """
        if mel is not self.window:
            raise ValueError("only the window that was decoded last can be aligned")
        eot = self._runner.tokenizer.eot
        tokens = [*sot_sequence, no_timestamps, *text, eot]
        passage = Passage(tokens, len(sot_sequence), text, frames)
        task = AlignTask(self._transcription, passage)
        attended: AttendedFrames = self._scheduler.run_task(task)
        return attended

    def leave_window(self) -> None:
        """Give the slot back: nothing more is asked about the window."""
        self._scheduler.queues.release(self._transcription)
