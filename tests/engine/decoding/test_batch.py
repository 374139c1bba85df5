"""`DecodingBatch` gives the texts of `Whisper.decode`, whatever else is in the batch."""

from typing import Any

import pytest
from whisper.decoding import DecodingResult
from whisper.model import Whisper

from deployments.engine.model import onednn
from tests.support.engine.lively_whisper import (
    SLOTS,
    BatchHarness,
    Job,
    job,
    lively_whisper,
    official,
)
from tests.support.engine.window_cases import (
    EOT,
    FULL_PROMPT,
    OPTIONS,
    assert_all_same,
    assert_same,
    case,
)

pytestmark = pytest.mark.usefixtures("inference_mode")


@pytest.fixture(scope="module")
def model() -> Whisper:
    return lively_whisper()


@pytest.fixture(scope="module")
def jobs(model: Whisper) -> list[Job]:
    return [case(model, name) for name in OPTIONS]


@pytest.fixture(scope="module")
def whispers(model: Whisper, jobs: list[Job]) -> list[DecodingResult]:
    return [official(model, one) for one in jobs]


def test_the_texts_to_decode_are_no_trifles(whispers: list[DecodingResult]) -> None:
    """If the texts were all alike or empty, the comparisons below would say little."""
    tokens = [token for result in whispers for token in result.tokens]
    assert len(set(tokens)) > 100
    assert sum(token > EOT for token in tokens) > 100
    assert len({tuple(result.tokens) for result in whispers}) >= len(whispers) - 2
    ended = [
        len(result.tokens) < given.get("sample_len", 12)
        for result, given in zip(whispers, OPTIONS.values(), strict=True)
    ]
    assert 3 < sum(ended) < len(ended) - 3


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_windows_that_come_and_go_have_whispers_texts(
    model: Whisper, jobs: list[Job], whispers: list[DecodingResult], seed: int | None
) -> None:
    assert_all_same(BatchHarness(model, seed).decode(jobs), whispers)


def test_a_text_may_fill_the_context(model: Whisper) -> None:
    endless: dict[str, Any] = {
        "prompt": FULL_PROMPT,
        "sample_len": 224,
        "suppress_tokens": [EOT],
    }
    asked = [job(model, beam_size=2, **endless), case(model, "ten beams")]
    ours = BatchHarness(model, 1).decode(asked)
    # The context holds 448 tokens, 227 of them given. The last sampled token is not read.
    assert len(ours[0].tokens) == 448 - 227 + 1
    assert_all_same(ours, [official(model, one) for one in asked])


@pytest.mark.parametrize("name", ["five beams", "greedy", "prefix", "patience"])
def test_a_window_alone_has_whispers_text(
    model: Whisper, jobs: list[Job], whispers: list[DecodingResult], name: str
) -> None:
    index = list(OPTIONS).index(name)
    for slot in (0, 3, SLOTS - 1):
        slots = BatchHarness(model)
        slots.free = [slot]
        assert_same(slots.decode([jobs[index]])[0], whispers[index])


@pytest.mark.parametrize(
    "dimensions",
    [
        pytest.param({"n_vocab": 51866, "n_mels": 128}, id="v3"),
        pytest.param({"n_vocab": 51864, "n_text_layer": 1}, id="english"),
        pytest.param({"n_audio_ctx": 1500, "n_audio_layer": 2}, id="thirty seconds"),
        pytest.param({"n_text_head": 1, "n_audio_head": 4}, id="other heads"),
    ],
)
def test_models_of_every_kind_have_whispers_texts(dimensions: dict[str, int]) -> None:
    model = lively_whisper(1, **dimensions)
    names = ["greedy", "five beams", "no timestamps", "a text before"]
    asked = [job(model, seed, **OPTIONS[name]) for seed, name in enumerate(names)]
    assert_all_same(
        BatchHarness(model, 7).decode(asked), [official(model, j) for j in asked]
    )


def test_without_packed_weights_the_texts_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
    model: Whisper,
    jobs: list[Job],
    whispers: list[DecodingResult],
) -> None:
    monkeypatch.setattr(onednn, "AVAILABLE", False)
    assert_all_same(BatchHarness(model, 4).decode(jobs[1::4]), whispers[1::4])


@pytest.mark.parametrize("beam_size", [None, 1, 5])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_text_that_ends_at_once_is_empty(
    beam_size: int | None, penalty: float
) -> None:
    model = lively_whisper(end=40)
    hasty = job(
        model,
        beam_size=beam_size,
        length_penalty=penalty,
        suppress_blank=False,
        without_timestamps=True,
    )
    (ours,) = BatchHarness(model).decode([hasty])
    assert ours.tokens == []
    assert_same(ours, official(model, hasty))


@pytest.mark.parametrize("beam_size", [None, 5])
def test_ranking_an_empty_text_by_its_length_fails_as_whispers_does(
    beam_size: int | None,
) -> None:
    model = lively_whisper(end=40)
    hasty = job(
        model, beam_size=beam_size, suppress_blank=False, without_timestamps=True
    )
    with pytest.raises(ZeroDivisionError):
        official(model, hasty)
    with pytest.raises(ZeroDivisionError):
        BatchHarness(model).decode([hasty])


@pytest.mark.parametrize("beam_size", [None, 5])
def test_a_text_of_which_only_the_end_is_left_ends(
    model: Whisper, beam_size: int | None
) -> None:
    every_word = list(range(EOT))
    given = job(model, beam_size=beam_size, suppress_tokens=every_word)
    assert_same(BatchHarness(model).decode([given])[0], official(model, given))
