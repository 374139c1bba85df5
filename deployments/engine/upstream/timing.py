"""When each word was spoken: `find_alignment` of whisper/timing.py over the engine's own decoder.

Upstream installs hooks on the model, encodes the window a second time and compiles kernels at run
time; none of that happens here.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from whisper import timing
from whisper.audio import TOKENS_PER_SECOND
from whisper.timing import WordTiming
from whisper.tokenizer import Tokenizer

from deployments.engine.decoding import float_order
from deployments.engine.upstream.log_mel import Mel

# OpenAI's own function, prepared at import for compilation by Numba at its first call. Upstream
# compiles it with `parallel=True`, and such a function must not be called from two threads at once.
dtw = numba.njit(nogil=True)(timing.dtw_cpu.py_func)

_MEDIAN_WIDTH = 7
# Comparators after which the fourth of seven numbers is their median: `opt_med7` in Devillard,
# "Fast median search: an ANSI C implementation" (1998).
_MEDIAN_NETWORK = (
    *((0, 5), (0, 3), (1, 6), (2, 4), (0, 1), (3, 5)),
    *((2, 6), (2, 3), (3, 6), (4, 5), (1, 4), (1, 3), (3, 4)),
)


@dataclass(frozen=True)
class Passage:
    """A text that is to be aligned with a window.

    tokens: everything that the decoder reads: start tokens, the text, the end token
    start: index among `tokens` of the token before the text, whose prediction is the first of it
    text: the tokens of the text
    frames: how many frames of features the recording fills in the window
    """

    tokens: Sequence[int]
    start: int
    text: Sequence[int]
    frames: int


@dataclass(frozen=True)
class AttendedFrames:
    """What the alignment heads attend to.

    matrix: high where a token attends to a frame; in fp64, shape (text tokens + 1, frames)
    probabilities: of each text token, in fp64, shape (text tokens,)
    """

    matrix: np.ndarray
    probabilities: np.ndarray


class Aligner(Protocol):
    """A model that has just decoded the window in question."""

    def attended_frames(
        self,
        mel: Mel,
        sot_sequence: Sequence[int],
        no_timestamps: int,
        text: Sequence[int],
        frames: int,
    ) -> AttendedFrames:
        """What the tokens of `text` attend to in the first `frames` frames of the features."""
        ...


def compile_dtw() -> None:
    """Compile `dtw` now, instead of in the first request for word timestamps.

    This takes a second, or less if Numba's cache on disk has the result.
    """
    # Numba raises RuntimeError if it finds no folder that it can write its cache to.
    with contextlib.suppress(RuntimeError):
        dtw.enable_caching()
    dtw.compile((numba.types.Array(numba.float64, 2, "C"),))


def find_alignment(
    model: Aligner,
    tokenizer: Tokenizer,
    text_tokens: list[int],
    mel: Mel,
    num_frames: int,
    **unknown: Any,
) -> list[WordTiming]:
    """`whisper.timing.find_alignment`, with its argument names; upstream calls it by some of them.

    mel: the window that `model` decoded last
    num_frames: how many frames of the spectrogram the recording fills in the window

    Raises TypeError for upstream's other options, which `whisper.transcribe` never uses.
    """
    if unknown:
        raise TypeError(f"not supported: {', '.join(unknown)}")
    if not text_tokens:
        return []
    words, word_tokens = tokenizer.split_to_word_tokens([*text_tokens, tokenizer.eot])
    if len(word_tokens) <= 1:
        return []
    attended = model.attended_frames(
        mel,
        tokenizer.sot_sequence,
        tokenizer.no_timestamps,
        text_tokens,
        num_frames // 2,
    )
    text_indices, time_indices = dtw(-attended.matrix)
    jumps = np.pad(np.diff(text_indices), (1, 0), constant_values=1).astype(bool)
    jump_times = time_indices[jumps] / TOKENS_PER_SECOND
    boundaries = np.pad(np.cumsum([len(t) for t in word_tokens[:-1]]), (1, 0))
    return [
        WordTiming(
            word,
            tokens,
            jump_times[start],
            jump_times[end],
            np.mean(attended.probabilities[start:end]),
        )
        for word, tokens, start, end in zip(
            words, word_tokens, boundaries[:-1], boundaries[1:], strict=False
        )
    ]


def attention_matrix(scores: Tensor) -> Tensor:
    """The heads' mean of normalised and smoothed attention, shape (tokens, frames).

    scores: attention before the softmax, in fp32, shape (heads, tokens, frames)

    Source: `find_alignment` in whisper/timing.py.
    """
    weights = scores.softmax(-1)
    std, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    return median_filter((weights - mean) / std).mean(0)


def median_filter(x: Tensor) -> Tensor:
    """`whisper.timing.median_filter` of width 7 along the last dimension.

    x: fp32, shape (..., frames)

    A network of minima and maxima over whole tensors replaces upstream's sort at every frame. NaN
    counts as the largest number, as it does in a sort.
    """
    if x.shape[-1] <= _MEDIAN_WIDTH // 2:
        return x
    rows = x.masked_fill(x.isnan(), torch.nan).reshape(1, -1, x.shape[-1])
    padded = F.pad(rows, (_MEDIAN_WIDTH // 2,) * 2, mode="reflect")
    ordered = float_order.to_integers(padded)
    taps = [*ordered.unfold(-1, _MEDIAN_WIDTH, 1).unbind(-1)]
    for low, high in _MEDIAN_NETWORK:
        smaller = torch.minimum(taps[low], taps[high])
        taps[high] = torch.maximum(taps[low], taps[high])
        taps[low] = smaller
    return float_order.to_floats(taps[_MEDIAN_WIDTH // 2]).reshape_as(x)
