from typing import Any

import pytest
import torch
from torch import Tensor
from whisper.decoding import DecodingOptions
from whisper.model import Whisper, disable_sdpa

from deployments.engine.decoding.row_layout import RowLayout, TokenLists
from deployments.engine.model import onednn
from deployments.engine.model.decoder import Decoder, Rows
from deployments.engine.upstream.decoding import plan_for
from deployments.engine.upstream.model_facts import ModelFacts
from tests.support.engine import devices
from tests.support.engine.lively_whisper import lively_whisper, noise_mel, tokenizer

SLOTS, WIDTH = 5, 4
TOLERANCE = 1e-4
LENGTHS = [3, 1, 40, 227]


@pytest.fixture(scope="module")
def model() -> Whisper:
    return lively_whisper()


@pytest.fixture(params=["packed", "plain"], autouse=True)
def packing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "packed" and not devices.on_cpu():
        pytest.skip("nothing is packed but on a CPU")
    if request.param == "plain":
        monkeypatch.setattr(onednn, "AVAILABLE", False)


def our_decoder(model: Whisper, dtype: torch.dtype = torch.float32) -> Decoder:
    return Decoder(
        model.decoder, model.dims, model.device, dtype, slots=SLOTS, width=WIDTH
    )


def audio(model: Whisper, windows: int) -> Tensor:
    mel = [noise_mel(model, seed) for seed in range(windows)]
    reference = devices.official(model)
    features: Tensor = reference.encoder(torch.stack(mel).to(reference.device))
    return features.to(model.device)


def text(length: int, seed: int = 0) -> list[int]:
    random = torch.Generator().manual_seed(1000 * length + seed)
    return torch.randint(50000, (length,), generator=random).tolist()


def on_device(values: Any) -> Tensor:
    return torch.tensor(values, device=devices.chosen())


def whispers_logits(model: Whisper, tokens: Tensor, features: Tensor) -> Tensor:
    reference = devices.official(model)
    device = reference.device
    logits: Tensor = reference.logits(tokens.to(device), features.to(device))
    return logits.to(model.device)


def assert_near(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("slots", [[0, 1, 2, 3], [4, 0, 3, 1]])
def test_prompts_of_different_lengths_are_read_as_each_alone(
    model: Whisper, slots: list[int]
) -> None:
    decoder, features = our_decoder(model), audio(model, 4)
    prompts = [text(length) for length in LENGTHS]
    for slot, heard in zip(slots, features, strict=True):
        decoder.write_cross_kv(slot, heard)
    hidden = decoder.prefill(slots, prompts)
    for row, prompt in enumerate(prompts):
        expected = whispers_logits(model, on_device([prompt]), features[row : row + 1])
        some = [0, len(prompt) // 2, len(prompt) - 1]
        assert_near(decoder.logits(hidden[row, some]), expected[0, some])


def test_reading_a_text_changes_no_slot(model: Whisper) -> None:
    decoder, features = our_decoder(model), audio(model, 2)
    decoder.write_cross_kv(0, features[0])
    decoder.write_cross_kv(1, features[1])
    before = step_logits(model, decoder, [text(5), text(9)], read=False)
    after = step_logits(model, decoder, [text(5), text(9)], read=True)
    assert torch.equal(before, after)


def step_logits(
    model: Whisper, decoder: Decoder, prompts: list[list[int]], read: bool
) -> Tensor:
    decoder.prefill([0, 1], prompts)
    if read:
        decoder.read([1, 0], [text(30), text(12)], scored={})
    return decoder.step(on_device([7, 8]), rows(model, [0, 1], [1, 1], prompts, 0))


def rows(
    model: Whisper,
    slots: list[int],
    widths: list[int],
    prompts: list[list[int]],
    step: int,
) -> Rows:
    """The rows of step `step` of windows that have joined together."""
    facts = ModelFacts.of(model, model.device)
    plans = [
        plan_for(facts, DecodingOptions(language="en", beam_size=width))
        for width in widths
    ]
    token_lists = TokenLists(model.device)
    layout = RowLayout(slots, plans, facts.vocabulary, token_lists, first=False)
    lengths = on_device([len(prompt) for prompt in prompts])
    starts = lengths[layout.row_window]
    ends = [
        len(prompt) + (step + 1) * width
        for prompt, width in zip(prompts, widths, strict=True)
    ]
    return Rows(
        layout,
        position=starts + step,
        column=starts + step * layout.row_width + layout.row_beam,
        columns=max(ends),
    )


def last_logits(model: Whisper, beams: list[list[int]], heard: Tensor) -> Tensor:
    logits: Tensor = whispers_logits(
        model, on_device(beams), heard.expand(len(beams), -1, -1)
    )
    return logits[:, -1]


@pytest.mark.parametrize("slots", [[0, 1, 2], [4, 0, 2]])
def test_steps_of_beams_that_change_places_are_whispers(
    model: Whisper, slots: list[int]
) -> None:
    decoder, features = our_decoder(model), audio(model, 3)
    widths, prompts = [3, 1, 4], [text(2), text(40), text(7)]
    for slot, heard in zip(slots, features, strict=True):
        decoder.write_cross_kv(slot, heard)
    decoder.prefill(slots, prompts)
    texts = [[prompt] * w for prompt, w in zip(prompts, widths, strict=True)]
    random = torch.Generator().manual_seed(1)
    for step in range(4):
        tokens = torch.randint(50000, (sum(widths),), generator=random)
        tokens = tokens.to(model.device)
        now = rows(model, slots, widths, prompts, step)
        logits = decoder.step(tokens, now)
        coming = iter(tokens.tolist())
        texts = [[[*beam, next(coming)] for beam in window] for window in texts]
        expected = [
            last_logits(model, window, heard)
            for window, heard in zip(texts, features, strict=True)
        ]
        assert_near(logits, torch.cat(expected))
        parents = torch.stack(
            [torch.randint(width, (max(widths),), generator=random) for width in widths]
        )
        decoder.reorder(now.layout.slots.index, parents.to(model.device), now.columns)
        texts = [
            [window[parent] for parent in order[: len(window)].tolist()]
            for window, order in zip(texts, parents, strict=True)
        ]


@pytest.mark.parametrize("windows", [1, 3])
def test_first_token_logits_are_whispers(model: Whisper, windows: int) -> None:
    features, sot = audio(model, windows), tokenizer(model).sot
    expected = whispers_logits(model, on_device([[sot]] * windows), features)[:, 0]
    assert_near(our_decoder(model).first_token_logits(features, sot), expected)


def test_what_heads_attend_to_is_what_whispers_attend_to(model: Whisper) -> None:
    decoder, features = our_decoder(model), audio(model, 2)
    texts = [text(6), text(11)]
    scored = {0: on_device([1]), 1: on_device([1, 0])}
    for slot, heard in zip([3, 1], features, strict=True):
        decoder.write_cross_kv(slot, heard)
    _, scores = decoder.read([3, 1], texts, scored)
    for row, one in enumerate(texts):
        expected = official_scores(model, one, features[row : row + 1])
        for place, (layer, head) in enumerate([(0, 1), (1, 1), (1, 0)]):
            whispers = expected[layer][0, head].to(model.device)
            assert_near(scores[row, place, : len(one)], whispers)


def official_scores(model: Whisper, text: list[int], features: Tensor) -> list[Tensor]:
    """The scores of each layer, shape (1, heads, tokens, audio context).

    See `whisper.timing.find_alignment`.
    """
    found: list[Tensor] = []
    hooks = [
        block.cross_attn.register_forward_hook(
            lambda _, __, outs: found.append(outs[1])
        )
        for block in devices.official(model).decoder.blocks
    ]
    # Upstream's fused attention does not return its scores.
    with disable_sdpa():
        whispers_logits(model, on_device([text]), features)
    for hook in hooks:
        hook.remove()
    return found


def test_a_nan_of_one_window_does_not_reach_the_next_one_in_the_slot(
    model: Whisper,
) -> None:
    decoder, features = our_decoder(model), audio(model, 1)
    prompts = [text(30)]
    decoder.write_cross_kv(2, torch.full_like(features[0], torch.nan))
    decoder.prefill([2], prompts)
    for step in range(3):
        tokens = on_device([0, 1, 2, 3])
        broken = decoder.step(tokens, rows(model, [2], [4], prompts, step))
        assert broken.isnan().all()
    decoder.clear(2)
    decoder.write_cross_kv(2, features[0])
    short = [text(3)]
    decoder.prefill([2], short)
    # As many columns are read as the failed window had, as if a window of that size were there.
    now = rows(model, [2], [1], short, 0)
    now = Rows(now.layout, now.position, now.column, columns=45)
    logits = decoder.step(on_device([9]), now)
    expected = whispers_logits(model, on_device([[*short[0], 9]]), features)
    assert_near(logits, expected[:, -1])


def test_logits_in_half_precision_are_near_whispers(model: Whisper) -> None:
    decoder, features = our_decoder(model, torch.float16), audio(model, 1).half()
    prompt = text(12)
    decoder.write_cross_kv(0, features[0])
    logits = decoder.logits(decoder.prefill([0], [prompt]))
    assert logits.dtype == torch.float32
    expected = whispers_logits(model, on_device([prompt]), features.float())
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.2)
    step = decoder.step(on_device([9]), rows(model, [0], [1], [prompt], 0))
    expected = whispers_logits(model, on_device([[*prompt, 9]]), features.float())
    torch.testing.assert_close(step, expected[:, -1], rtol=0, atol=0.2)
    one = decoder.first_token_logits(features, 9)
    expected = whispers_logits(model, on_device([[9]]), features.float())
    torch.testing.assert_close(one, expected[:, 0], rtol=0, atol=0.2)
