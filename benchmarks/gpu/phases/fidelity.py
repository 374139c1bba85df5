"""Compares results with official Whisper's: tokens in fp32, texts and logits in fp16.

In half precision many logits are equal and their order decides, so tokens say little. The measure
there is the error against official fp32: the engine's beside that of official fp16.
"""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
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
from deployments.engine.model_runner import ModelRunner

_KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "math": SDPBackend.MATH,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
}


def measure(run: Run) -> None:
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    if run.on_gpu:
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    model, _ = models.base(run.weights, run.device)
    spoken = recordings(run.pack)[: 2 if run.tiny else None]
    greedy: dict[str, Result] = {}
    run.attempt("fp32, greedy", partial(_same_tokens, run, model, spoken, None, greedy))
    run.attempt("fp32, beam 5", partial(_same_tokens, run, model, spoken, 5, {}))
    run.attempt("fp16 texts", partial(_texts, run, model, spoken, greedy), 4)
    half = ModelRunner.of(model, run.device, run.dtype, slots=1)
    for recording in spoken:
        run.attempt("logits", partial(_logits, run, model, half, recording), 2)
    run.attempt("company", partial(_company, run, model, spoken), 3)


def _same_tokens(
    run: Run,
    model: Whisper,
    spoken: Sequence[Recording],
    beams: int | None,
    expected: dict[str, Result],
) -> None:
    """Compare the engine's tokens with official ones in fp32.

    `expected` is given the official results.
    """
    options = {"beam_size": beams} | base_options(run)
    with Engine(model, dtype=torch.float32) as engine:
        served = serve(engine, spoken, 8, **options)
    different: list[dict[str, Any]] = []
    compared = equal = 0
    for recording, ours in zip(spoken, served.results, strict=True):
        # Leave time for what comes after this.
        if not run.tiny and run.seconds_left < 0.45 * (run.ends - run.began):
            break
        theirs = whisper.transcribe(model, recording.wave, fp16=False, **options)
        expected[recording.name] = theirs
        compared += 1
        if _tokens(ours) == _tokens(theirs):
            equal += 1
        else:
            different.append(_first_difference(recording.name, ours, theirs))
    case = "greedy" if beams is None else f"beam {beams}"
    run.report(
        "fp32 tokens",
        case=case,
        recordings=compared,
        equal=equal,
        different=different[:5],
    )


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


def _texts(
    run: Run, model: Whisper, spoken: Sequence[Recording], expected: dict[str, Result]
) -> None:
    """Compare greedy texts and times in fp16, ours and official ones, with official fp32."""
    options = {"beam_size": None} | base_options(run)
    compared = [recording for recording in spoken if recording.name in expected]
    with Engine(model) as engine:
        ours = serve(engine, compared, 8, **options).results
    theirs: list[Result] = []
    for recording in compared:
        if not run.tiny and run.seconds_left < 0.25 * (run.ends - run.began):
            break
        theirs.append(
            whisper.transcribe(model, recording.wave, fp16=run.on_gpu, **options)
        )
    for name, results in (("engine", ours[: len(theirs)]), ("official", theirs)):
        exact = [expected[recording.name] for recording in compared[: len(theirs)]]
        pairs = list(zip(results, exact, strict=True))
        words = [(one["text"].split(), other["text"].split()) for one, other in pairs]
        run.report(
            "fp16 texts",
            of=name,
            recordings=len(pairs),
            equal=sum(one["text"] == other["text"] for one, other in pairs),
            times_equal=sum(_times(one) == _times(other) for one, other in pairs),
            word_edits=sum(edits(one, other) for one, other in words),
            words=sum(len(other) for _, other in words),
        )


def _times(result: Result) -> list[tuple[float, float]]:
    return [(segment["start"], segment["end"]) for segment in result["segments"]]


def edits(one: Sequence[str], other: Sequence[str]) -> int:
    """The fewest insertions, deletions and replacements that make `other` of `one`."""
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(other, 1):
            best = min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
            diagonal, row[j] = row[j], best
    return row[-1]


def _logits(run: Run, model: Whisper, half: ModelRunner, recording: Recording) -> None:
    """Feed the text that official fp32 decodes to each, and compare the logits of its tokens."""
    mel, tokens = _window(run, model, recording)
    exact = _official(model, mel, tokens, torch.float32)
    ours = _engines(half, mel, tokens, run.dtype)
    theirs = _official(model, mel, tokens, run.dtype)
    errors = {"engine": _error(ours, exact), "official": _error(theirs, exact)}
    # Official code's own error varies with the kernel and with the number of rows.
    others: dict[str, Callable[[], Tensor]] = {
        "official, five rows": partial(_official, model, mel, tokens, run.dtype, rows=5)
    }
    for name, kernel in _KERNELS.items() if run.on_gpu else ():
        others[f"official by {name}"] = partial(
            _by_kernel, kernel, partial(_official, model, mel, tokens, run.dtype)
        )
    for name, logits in others.items():
        # Not every kernel takes every call.
        with contextlib.suppress(RuntimeError):
            errors[name] = _error(logits(), exact)
    best = exact.topk(2).values
    margins = best[:, 0] - best[:, 1]
    both = {"engine": ours, "official": theirs}
    run.report(
        "logits",
        recording=recording.name,
        tokens=len(tokens),
        errors=errors,
        other_choices={n: int(_other_choices(x, exact).sum()) for n, x in both.items()},
        margin_lost={n: _margin_lost(x, exact, margins) for n, x in both.items()},
    )


def _by_kernel(kernel: SDPBackend, work: Callable[[], Tensor]) -> Tensor:
    with sdpa_kernel(kernel):
        return work()


def _window(run: Run, model: Whisper, recording: Recording) -> tuple[Tensor, list[int]]:
    """The recording's first window, and the tokens that official fp32 decodes, with the prompt."""
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


@torch.no_grad()
def _official(
    model: Whisper, mel: Tensor, tokens: list[int], dtype: torch.dtype, rows: int = 1
) -> Tensor:
    """Logits in fp32, shape (tokens, vocabulary).

    rows: how many copies of the text are read together
    """
    given = torch.tensor([tokens] * rows, device=mel.device)
    features = model.encoder(mel[None].to(dtype))
    logits: Tensor = model.decoder(given, features)
    return logits[0].float()


@torch.inference_mode()
def _engines(
    runner: ModelRunner, mel: Tensor, tokens: list[int], dtype: torch.dtype
) -> Tensor:
    features = runner.encoder(mel[None].to(dtype))
    runner.decoder.write_cross_kv(0, features[0])
    return runner.decoder.logits(runner.decoder.prefill([0], [tokens])[0])


def _error(logits: Tensor, exact: Tensor) -> dict[str, float]:
    """Median and maximum over the tokens of each token's largest difference."""
    largest = (logits - exact).abs().amax(-1)
    return {"median": float(largest.median()), "max": float(largest.max())}


def _other_choices(logits: Tensor, exact: Tensor) -> Tensor:
    return logits.argmax(-1) != exact.argmax(-1)


def _margin_lost(logits: Tensor, exact: Tensor, margins: Tensor) -> float:
    """How much better, in fp32, the best choice that was missed would have been."""
    lost = margins[_other_choices(logits, exact)]
    return float(lost.max()) if len(lost) else 0.0


def _company(run: Run, model: Whisper, spoken: Sequence[Recording]) -> None:
    """Compare results of recordings alone with their results among others in all slots.

    Scores add up the logits of all steps, so they are the same to the last bit only if those were.
    """
    options = {"beam_size": 5} | base_options(run)
    compared = tokens = bits = 0
    differences = [0.0]
    with Engine(model) as engine:
        others = engine.stats().slots - 1
        for recording in spoken[: 1 if run.tiny else 6]:
            if not run.tiny and run.seconds_left < 2:
                break
            alone = serve(engine, [recording], 1, **options).results[0]
            asked = [recording, *(spoken[n % len(spoken)] for n in range(others))]
            among = serve(engine, asked, len(asked), **options).results[0]
            compared += 1
            tokens += _tokens(alone) == _tokens(among)
            bits += alone == among
            differences += [
                abs(one["avg_logprob"] - other["avg_logprob"])
                for one, other in zip(
                    alone["segments"], among["segments"], strict=False
                )
            ]
    run.report(
        "company",
        others=others,
        recordings=compared,
        tokens_equal=tokens,
        bits_equal=bits,
        avg_logprob_difference=max(differences),
    )
