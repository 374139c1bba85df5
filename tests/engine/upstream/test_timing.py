"""Word timestamps: the engine's against those of `whisper.timing`.

The cases of `dtw` and `median_filter` are those of openai-whisper's tests/test_timing.py.
"""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from whisper import timing
from whisper.decoding import DecodingOptions
from whisper.model import Whisper
from whisper.timing import WordTiming
from whisper.tokenizer import Tokenizer, get_tokenizer

from deployments.engine import Engine
from deployments.engine.session import Session
from deployments.engine.upstream import timing as alignment_module
from deployments.engine.upstream.log_mel import Mel
from deployments.engine.upstream.timing import (
    AttendedFrames,
    attention_matrix,
    compile_dtw,
    dtw,
    find_alignment,
    median_filter,
)
from tests.support.engine import devices
from tests.support.engine.calls import PATIENCE_S, exact_engine
from tests.support.engine.lively_whisper import lively_whisper, noise, noise_mel

SIZES = [(10, 20), (32, 16), (123, 1500), (234, 189)]
SHAPES = [(10,), (1, 15), (4, 5, 345), (6, 12, 24, 512)]
LONGEST_TEXT = (
    448 - 5
)  # of a context that also holds four tokens before it and one behind
AUDIO_FRAMES = 400


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_dtw_finds_the_cheapest_path(rows: int, columns: int) -> None:
    generator = np.random.default_rng(42)
    steps = np.concatenate([np.zeros(rows - 1), np.ones(columns - 1)])
    generator.shuffle(steps)
    x = generator.random((rows, columns)).astype(np.float32)
    i, j, trace = 0, 0, []
    while True:
        x[i, j] -= 1
        trace.append((i, j))
        if len(steps) == len(trace) - 1:
            break
        if steps[len(trace) - 1] == 0:
            i += 1
        else:
            j += 1
    found = dtw(x.astype(np.float64))
    np.testing.assert_array_equal(found, np.array(trace).T)


@pytest.mark.parametrize(("rows", "columns"), [*SIZES, (1, 1), (1, 30), (30, 1)])
def test_dtw_finds_whispers_path_through_noise(rows: int, columns: int) -> None:
    x = np.random.default_rng(1).normal(size=(rows, columns))
    np.testing.assert_array_equal(dtw(x), timing.dtw_cpu(x))


def test_dtw_finds_whispers_path_where_costs_are_equal() -> None:
    x = np.random.default_rng(2).integers(0, 2, size=(40, 60)).astype(np.float64)
    np.testing.assert_array_equal(dtw(x), timing.dtw_cpu(x))
    np.testing.assert_array_equal(dtw(x * 0), timing.dtw_cpu(x * 0))


def test_dtw_may_be_called_from_many_threads_at_once(
    threads: ThreadPoolExecutor,
) -> None:
    generator = np.random.default_rng(3)
    matrices = [generator.normal(size=(50, 300)) for _ in range(64)]
    expected = [dtw(x) for x in matrices]
    for found, path in zip(threads.map(dtw, matrices), expected, strict=True):
        np.testing.assert_array_equal(found, path)


def test_dtw_is_compiled_before_it_is_needed() -> None:
    compile_dtw()
    known = len(dtw.signatures)
    assert known > 0
    dtw(-AttendedFrames(np.eye(4), np.ones(3)).matrix)
    assert len(dtw.signatures) == known


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_median_filter_is_whispers(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    assert torch.equal(ours(x), _whispers(x))


def test_the_median_filter_orders_what_is_no_number_as_whispers_does() -> None:
    random = torch.Generator().manual_seed(8)
    x = torch.randn(4, 5, 345, generator=random)
    for value in (torch.nan, -torch.nan, torch.inf, -torch.inf, 0.0, -0.0):
        x[torch.rand(x.shape, generator=random) < 0.12] = value
    torch.testing.assert_close(ours(x), _whispers(x), rtol=0, atol=0, equal_nan=True)
    assert 0 < ours(x).isnan().sum() < x.numel() / 2


def test_the_median_filters_network_finds_the_median_of_any_seven() -> None:
    # A network of comparators that orders all zeros and ones orders everything.
    for bits in itertools.product([0, 1], repeat=7):
        taps = [*bits]
        for low, high in alignment_module._MEDIAN_NETWORK:
            taps[low], taps[high] = sorted((taps[low], taps[high]))
        assert taps[3] == sorted(bits)[3]


@pytest.mark.parametrize("frames", [0, 1, 2, 3, 4, 6, 7])
def test_the_median_filter_leaves_a_few_frames_as_they_are_like_whispers(
    frames: int,
) -> None:
    x = torch.rand(2, 3, frames)
    assert torch.equal(ours(x), _whispers(x))
    assert torch.equal(ours(x), x) is (frames <= 3)


def ours(x: Tensor) -> Tensor:
    return median_filter(x.to(devices.chosen())).cpu()


def _whispers(x: Tensor) -> Tensor:
    result: Tensor = timing.median_filter(x, 7)
    return result


@dataclass(frozen=True)
class Case:
    """A text for a window. frames: how many frames of its spectrogram are no padding"""

    seed: int
    text: list[int]
    frames: int = AUDIO_FRAMES


def random_text(seed: int, length: int, tokenizer: Tokenizer) -> list[int]:
    generator = np.random.default_rng(seed)
    return [int(token) for token in generator.integers(0, tokenizer.eot, length)]


@pytest.fixture(scope="module")
def model() -> Whisper:
    return lively_whisper(n_audio_ctx=AUDIO_FRAMES // 2, n_text_layer=4)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return get_tokenizer(True, language="en", task="transcribe")


@pytest.fixture(params=[1, 5], ids=["one by one", "together"])
def engine(request: pytest.FixtureRequest, model: Whisper) -> Iterator[Engine]:
    with exact_engine(model, encoder_windows=request.param) as engine:
        yield engine
    assert engine.join(PATIENCE_S)


@pytest.fixture
def session(engine: Engine) -> Session:
    return Session(engine.scheduler, lambda: False)


def heard(model: Whisper, session: Session, seed: int) -> Mel:
    """A window that the session has just decoded."""
    mel = noise(model, seed)
    options = DecodingOptions(language="en", fp16=False, sample_len=2)
    session.decode(mel, options)
    return mel


def alignment(
    model: Whisper, session: Session, tokenizer: Tokenizer, case: Case
) -> list[WordTiming]:
    mel = heard(model, session, case.seed)
    words = find_alignment(session, tokenizer, case.text, mel, case.frames)
    session.leave_window()
    return words


def whispers_alignment(
    model: Whisper, tokenizer: Tokenizer, case: Case
) -> list[WordTiming]:
    reference, mel = devices.official(model), noise_mel(model, case.seed)
    words: list[WordTiming] = timing.find_alignment(
        reference, tokenizer, case.text, mel.to(reference.device), case.frames
    )
    return words


def assert_same(ours: list[WordTiming], expected: list[WordTiming]) -> None:
    assert len(ours) == len(expected)
    for one, other in zip(ours, expected, strict=True):
        assert (one.word, one.tokens) == (other.word, other.tokens)
        assert (one.start, one.end) == (other.start, other.end)
        assert one.probability == pytest.approx(other.probability, abs=1e-4)


@pytest.mark.parametrize("length", [1, 2, 7, 30, 120, LONGEST_TEXT])
def test_an_alignment_is_whispers(
    model: Whisper, session: Session, tokenizer: Tokenizer, length: int
) -> None:
    case = Case(length, random_text(length, length, tokenizer))
    ours = alignment(model, session, tokenizer, case)
    assert_same(ours, whispers_alignment(model, tokenizer, case))
    assert len(ours) > 0


@pytest.mark.parametrize("frames", [399, 200, 31, 14, 8, 7, 6, 3, 2])
def test_an_alignment_to_the_end_of_a_recording_is_whispers(
    model: Whisper, session: Session, tokenizer: Tokenizer, frames: int
) -> None:
    case = Case(frames, random_text(frames, 5, tokenizer), frames)
    ours = alignment(model, session, tokenizer, case)
    assert_same(ours, whispers_alignment(model, tokenizer, case))


def test_a_text_of_another_language_and_task_is_aligned_as_whisper_does(
    model: Whisper, session: Session
) -> None:
    tokenizer = get_tokenizer(True, language="ja", task="translate")
    case = Case(5, tokenizer.encode("東京は晴れ。 明日は雨でしょう。"))
    ours = alignment(model, session, tokenizer, case)
    assert_same(ours, whispers_alignment(model, tokenizer, case))


@pytest.fixture(scope="module")
def cases(tokenizer: Tokenizer) -> list[Case]:
    return [
        Case(seed, random_text(seed, length, tokenizer), AUDIO_FRAMES - 3 * seed)
        for seed, length in enumerate([3, 40, 1, 120, 12, 7, 75])
    ]


@pytest.fixture(scope="module")
def whispers_alignments(
    model: Whisper, tokenizer: Tokenizer, cases: list[Case]
) -> list[list[WordTiming]]:
    return [whispers_alignment(model, tokenizer, case) for case in cases]


def test_texts_that_are_aligned_together_have_whispers_alignments(
    model: Whisper,
    engine: Engine,
    tokenizer: Tokenizer,
    cases: list[Case],
    whispers_alignments: list[list[WordTiming]],
    threads: ThreadPoolExecutor,
) -> None:
    def align(case: Case) -> list[WordTiming]:
        session = Session(engine.scheduler, lambda: False)
        return alignment(model, session, tokenizer, case)

    together = list(threads.map(align, cases))
    for ours, theirs in zip(together, whispers_alignments, strict=True):
        assert_same(ours, theirs)


def test_nothing_is_asked_of_the_model_for_a_text_without_words(
    tokenizer: Tokenizer, model: Whisper
) -> None:
    part_of_a_sign = tokenizer.encode("𝄞")[:2]
    words, _ = tokenizer.split_to_word_tokens([*part_of_a_sign, tokenizer.eot])
    assert len(words) == 1
    nobody = cast(Any, SimpleNamespace())
    texts: list[list[int]] = [[], part_of_a_sign]
    for text in texts:
        theirs = whispers_alignment(model, tokenizer, Case(1, text))
        ours = find_alignment(nobody, tokenizer, text, noise(model), AUDIO_FRAMES)
        assert ours == theirs == []


def test_a_text_may_be_aligned_again_and_decoding_goes_on(
    model: Whisper, session: Session, tokenizer: Tokenizer
) -> None:
    case = Case(8, random_text(8, 20, tokenizer))
    options = DecodingOptions(language="en", fp16=False, sample_len=6)
    mel = heard(model, session, case.seed)
    first = session.decode(mel, options).tokens
    expected = whispers_alignment(model, tokenizer, case)
    for _ in range(2):
        ours = find_alignment(session, tokenizer, case.text, mel, case.frames)
        assert_same(ours, expected)
    assert session.decode(mel, options).tokens == first


def test_only_the_window_decoded_last_can_be_aligned(
    model: Whisper, session: Session, tokenizer: Tokenizer
) -> None:
    first = heard(model, session, 1)
    session.leave_window()
    second = heard(model, session, 2)
    text = random_text(1, 3, tokenizer)
    for other in (first, noise(model, 2)):
        with pytest.raises(ValueError, match="decoded last"):
            find_alignment(session, tokenizer, text, other, AUDIO_FRAMES)
    assert find_alignment(session, tokenizer, text, second, AUDIO_FRAMES)
    session.leave_window()
    with pytest.raises(ValueError, match="decoded last"):
        find_alignment(session, tokenizer, text, second, AUDIO_FRAMES)


@pytest.mark.parametrize("option", [{"medfilt_width": 5}, {"qk_scale": 2.0}])
def test_upstreams_other_options_are_refused(
    tokenizer: Tokenizer, option: dict[str, Any]
) -> None:
    nobody = cast(Any, SimpleNamespace())
    with pytest.raises(TypeError, match=next(iter(option))):
        find_alignment(nobody, tokenizer, [1], nobody, 10, **option)


@pytest.mark.parametrize("size", [(1, 2, 9), (6, 40, 300), (3, 448, 1500)], ids=str)
def test_the_attention_matrix_is_whispers(size: Sequence[int]) -> None:
    scores = torch.randn(size, generator=torch.Generator().manual_seed(1)) * 3
    weights = scores.softmax(dim=-1)
    std, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    expected = _whispers((weights - mean) / std).mean(dim=0)
    given = attention_matrix(scores.to(devices.chosen())).cpu()
    tolerance = 0.0 if devices.on_cpu() else 1e-4
    torch.testing.assert_close(given, expected, atol=tolerance, rtol=0)
