"""Times official Whisper's decoding of single windows, with models of the end-to-end phase."""

from functools import partial

import torch
import whisper
from whisper.decoding import DecodingOptions

from benchmarks.gpu.models import DIMENSIONS, random_model, tiny
from benchmarks.gpu.phases.end_to_end import STEPS
from benchmarks.gpu.run import Run

MODELS = ("turbo", "large-v3")
_EOT = 50257


def measure(run: Run) -> None:
    for name in MODELS[:1] if run.tiny else MODELS:
        run.need(15)
        dims = tiny(DIMENSIONS[name]) if run.tiny else DIMENSIONS[name]
        model = random_model(dims, run.device)
        mel = torch.randn(dims.n_mels, 2 * dims.n_audio_ctx, device=run.device)
        for cudnn in (False, True) if run.on_gpu else (False,):
            if run.on_gpu:
                torch.backends.cuda.enable_cudnn_sdp(cudnn)
            for beams in (5, None):
                run.need(8)
                options = DecodingOptions(
                    language="en",
                    beam_size=beams,
                    sample_len=2 if run.tiny else STEPS,
                    suppress_tokens=[_EOT],
                    suppress_blank=False,
                    without_timestamps=True,
                    fp16=run.on_gpu,
                )
                # The second window finds every execution plan that the first one has made.
                for window in ("first", "second"):
                    seconds = run.seconds(partial(whisper.decode, model, mel, options))
                    run.report(
                        "window",
                        model=name,
                        beams=beams or 1,
                        steps=options.sample_len,
                        cudnn_attention=cudnn,
                        window=window,
                        seconds=seconds,
                    )
        del model
        run.forget()
