"""Times official Whisper's decoding of single windows, with models of the end-to-end phase."""

from functools import partial

import torch
import whisper
from torch import Tensor
from whisper.decoding import DecodingOptions
from whisper.model import ModelDimensions, Whisper

from benchmarks.gpu.models import measured, random_model
from benchmarks.gpu.phases.end_to_end import STEPS
from benchmarks.gpu.run import Run

MODELS = ("turbo", "large-v3")


def measure(run: Run) -> None:
    for name, dims in measured(run, MODELS):
        run.attempt(name, partial(_model, run, name, dims), 10)


def _model(run: Run, name: str, dims: ModelDimensions) -> None:
    model = random_model(dims, run.device)
    mel = torch.randn(dims.n_mels, 2 * dims.n_audio_ctx, device=run.device)
    for cudnn in (False, True) if run.on_gpu else (False,):
        for beams in (5, None):
            work = partial(_windows, run, name, model, mel, beams, cudnn)
            run.attempt(f"{name}, {beams or 1} beams", work, 5)


def _windows(
    run: Run, name: str, model: Whisper, mel: Tensor, beams: int | None, cudnn: bool
) -> None:
    if run.on_gpu:
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
    steps = 2 if run.tiny else STEPS
    options = DecodingOptions(
        language="en", beam_size=beams, sample_len=steps, fp16=run.on_gpu
    )
    # The second window finds every execution plan that the first one has made.
    for window in ("first", "second"):
        seconds = run.seconds(partial(whisper.decode, model, mel, options))
        run.report(
            "window",
            model=name,
            beams=beams or 1,
            steps=steps,
            cudnn_attention=cudnn,
            window=window,
            seconds=seconds,
        )
