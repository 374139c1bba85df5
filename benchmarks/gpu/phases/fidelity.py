"""Compares results with official Whisper's on the same device: tokens in fp32, and the errors of logits in fp16.

In half precision many logits are equal and their order decides, so tokens say little. The measure there is the error
against official fp32: the engine's beside that of official fp16.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
import whisper
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from whisper.decoding import DecodingOptions
from whisper.model import Whisper
from whisper.tokenizer import get_tokenizer

from benchmarks.gpu import models
from benchmarks.gpu.audio import Recording, recordings
from benchmarks.gpu.phases.speech import base_options
from benchmarks.gpu.requests import Result, serve
from benchmarks.gpu.run import Run
from deployments.engine import Engine
from deployments.engine.parts import Parts

CASES: dict[str, dict[str, Any]] = {
    "greedy": {"beam_size": None},
    "beam 5": {"beam_size": 5},
}


def measure(run: Run) -> None:
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    if run.on_gpu:
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    model = models.base(run.weights, run.device)
    spoken = recordings(run.pack)[: 2 if run.tiny else None]
    texts = _same_tokens(run, model, spoken)
    _logits(run, model, spoken, texts)
    _company(run, model, spoken)


def _same_tokens(
    run: Run, model: Whisper, spoken: Sequence[Recording]
) -> dict[str, Result]:
    """Compare the engine's tokens with official ones in fp32, and return the official greedy results."""
    greedy: dict[str, Result] = {}
    with Engine(model, dtype=torch.float32) as engine:
        for case, options in CASES.items():
            compared = equal = words = 0
            different: list[dict[str, Any]] = []
            options = options | base_options(run)
            served = serve(engine, spoken, 8, **options)
            for recording, ours in zip(spoken, served.results, strict=True):
                if not run.tiny and run.seconds_left < _reserve(run):
                    break
                theirs = whisper.transcribe(
                    model, recording.wave, fp16=False, **options
                )
                if case == "greedy":
                    greedy[recording.name] = theirs
                compared += 1
                equal += _tokens(ours) == _tokens(theirs)
                words += ours["text"] == theirs["text"]
                if _tokens(ours) != _tokens(theirs):
                    different.append(_first_difference(recording.name, ours, theirs))
            run.report(
                "fp32 tokens",
                case=case,
                recordings=compared,
                equal=equal,
                texts_equal=words,
                different=different[:5],
            )
    return greedy


def _reserve(run: Run) -> float:
    """Seconds to leave for what comes after the comparison of tokens."""
    return 0.4 * (run.ends - run.began)


def _tokens(result: Result) -> list[tuple[Any, ...]]:
    return [(s["start"], s["end"], s["tokens"]) for s in result["segments"]]


def _first_difference(name: str, ours: Result, theirs: Result) -> dict[str, Any]:
    mine = [t for s in ours["segments"] for t in s["tokens"]]
    other = [t for s in theirs["segments"] for t in s["tokens"]]
    same = 0
    while same < min(len(mine), len(other)) and mine[same] == other[same]:
        same += 1
    return {
        "recording": name,
        "at": same,
        "ours": mine[same : same + 1],
        "official": other[same : same + 1],
    }


def _logits(
    run: Run, model: Whisper, spoken: Sequence[Recording], texts: dict[str, Result]
) -> None:
    """Feed the text that official fp32 decodes to each, and compare the logits of its tokens."""
    half = Parts.of(model, run.device, run.dtype, slots=1)
    kernels = {"flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH}
    for recording in spoken:
        if recording.name not in texts:
            continue
        run.need(2)
        mel, tokens = _window(run, model, recording)
        exact = _official(model, mel, tokens, torch.float32)
        ours = _engines(half, mel, tokens, run.dtype)
        theirs = _official(model, mel, tokens, run.dtype)
        errors = {"engine": _error(ours, exact), "official": _error(theirs, exact)}
        # Official code's own error varies with the kernel.
        for name, kernel in kernels.items() if run.on_gpu else ():
            with contextlib.suppress(RuntimeError), sdpa_kernel(kernel):
                other = _official(model, mel, tokens, run.dtype)
                errors[f"official by {name}"] = _error(other, exact)
        best = exact.topk(2).values
        margins = best[:, 0] - best[:, 1]
        run.report(
            "logits",
            recording=recording.name,
            tokens=len(tokens),
            errors=errors,
            choices_other_than_fp32={
                "engine": int((ours.argmax(-1) != exact.argmax(-1)).sum()),
                "official": int((theirs.argmax(-1) != exact.argmax(-1)).sum()),
            },
            largest_margin_lost={
                "engine": _margin_lost(ours, exact, margins),
                "official": _margin_lost(theirs, exact, margins),
            },
        )


def _window(run: Run, model: Whisper, recording: Recording) -> tuple[Tensor, list[int]]:
    """The recording's first window, and what official fp32 decodes greedily for it, with the tokens before."""
    mel = whisper.log_mel_spectrogram(
        recording.wave, model.dims.n_mels, device=run.device
    )
    mel = whisper.pad_or_trim(mel, 2 * model.dims.n_audio_ctx)
    options = DecodingOptions(
        language="en", fp16=False, sample_len=20 if run.tiny else None
    )
    tokenizer = get_tokenizer(True, num_languages=model.num_languages, language="en")
    result = whisper.decode(model, mel, options)
    return mel, [*tokenizer.sot_sequence, *result.tokens]


def _official(
    model: Whisper, mel: Tensor, tokens: list[int], dtype: torch.dtype
) -> Tensor:
    """Logits in fp32, shape (tokens, vocabulary)."""
    given = torch.tensor([tokens], device=mel.device)
    with torch.no_grad():
        features = model.encoder(mel[None].to(dtype))
        logits: Tensor = model.decoder(given, features)[0].float()
    return logits


@torch.inference_mode()
def _engines(
    parts: Parts, mel: Tensor, tokens: list[int], dtype: torch.dtype
) -> Tensor:
    features = parts.encoder(mel[None].to(dtype))
    parts.decoder.listen(0, features[0])
    return parts.decoder.logits(parts.decoder.prefill([0], [tokens])[0])


def _error(logits: Tensor, exact: Tensor) -> dict[str, float]:
    """Median and maximum over the tokens of each token's largest difference."""
    largest = (logits - exact).abs().amax(-1)
    return {"median": float(largest.median()), "max": float(largest.max())}


def _margin_lost(logits: Tensor, exact: Tensor, margins: Tensor) -> float:
    """How much better, in fp32, the best choice that was missed would have been."""
    lost = margins[logits.argmax(-1) != exact.argmax(-1)]
    return float(lost.max()) if len(lost) else 0.0


def _company(run: Run, model: Whisper, spoken: Sequence[Recording]) -> None:
    """Compare the result of a recording alone with its result among as many others as there are slots."""
    options = {"beam_size": 5} | base_options(run)
    with Engine(model) as engine:
        others = engine.stats().slots - 1
        for recording in spoken[: 1 if run.tiny else 6]:
            run.need(3)
            alone = serve(engine, [recording], 1, **options).results[0]
            asked = [recording, *(spoken[n % len(spoken)] for n in range(others))]
            among = serve(engine, asked, len(asked), **options).results[0]
            run.report(
                "company",
                recording=recording.name,
                others=others,
                tokens_equal=_tokens(alone) == _tokens(among),
                bits_equal=alone == among,
                avg_logprob_difference=max(
                    (
                        abs(a["avg_logprob"] - b["avg_logprob"])
                        for a, b in zip(
                            alone["segments"], among["segments"], strict=False
                        )
                    ),
                    default=0.0,
                ),
            )
