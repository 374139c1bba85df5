"""How windows of different kinds and widths become rows, and grids."""

from typing import Any

import pytest
import torch
from whisper.decoding import DecodingOptions
from whisper.model import Whisper

from deployments.engine.decoding.row_layout import RowLayout, TokenLists
from deployments.engine.upstream.decoding import plan_for
from deployments.engine.upstream.model_facts import ModelFacts
from tests.support.engine import devices

BEAMS: dict[str, Any] = {"beam_size": 3, "patience": 2.0}
GREEDY: dict[str, Any] = {"without_timestamps": True, "suppress_tokens": [7]}
SAMPLES: dict[str, Any] = {"temperature": 0.5, "best_of": 2}


def layout(
    model: Whisper, slots: list[int], *options: dict[str, Any], first: bool = False
) -> RowLayout:
    facts = ModelFacts.of(model, model.device)
    plans = [plan_for(facts, DecodingOptions(language="en", **o)) for o in options]
    lists = TokenLists(model.device)
    return RowLayout(slots, plans, facts.vocabulary, lists, first=first)


def test_rows_are_ordered_by_window_and_know_their_slots(tiny_model: Whisper) -> None:
    made = layout(tiny_model, [4, 0, 2], BEAMS, GREEDY, SAMPLES)
    assert made.width == 3
    assert made.row_window.tolist() == [0, 0, 0, 1, 2, 2]
    assert made.row_slot.tolist() == [4, 4, 4, 0, 2, 2]
    assert made.row_beam.tolist() == [0, 1, 2, 0, 0, 1]
    assert made.row_width.tolist() == [3, 3, 3, 1, 2, 2]
    assert made.real.tolist() == [
        [True, True, True],
        [True, False, False],
        [True, True, False],
    ]


def test_kinds_of_windows_are_told_apart(tiny_model: Whisper) -> None:
    made = layout(tiny_model, [4, 0, 2], BEAMS, GREEDY, SAMPLES)
    assert (made.any_beams, made.any_rows) == (True, True)
    assert made.competes.tolist() == [True, False, False]
    assert made.finished_needed.tolist() == [6, 0, 0]
    assert made.timestamps.tolist() == [True, True, True, False, True, True]
    assert made.sampling is not None and made.temperatures is not None
    assert made.sampling.tolist() == [4, 5]
    assert made.temperatures.tolist() == [0.5, 0.5]


def test_a_layout_of_one_kind_leaves_the_other_out(tiny_model: Whisper) -> None:
    beams = layout(tiny_model, [0, 1], BEAMS, BEAMS)
    assert (beams.any_beams, beams.any_rows, beams.sampling) == (True, False, None)
    rows = layout(tiny_model, [0], GREEDY)
    assert (rows.any_beams, rows.any_rows, rows.sampling) == (False, True, None)


def test_suppressed_tokens_are_indices_of_the_rows_that_suppress_them(
    tiny_model: Whisper,
) -> None:
    made = layout(tiny_model, [0, 1], GREEDY, GREEDY | {"suppress_tokens": [5, 9]})
    size = tiny_model.dims.n_vocab
    found = {divmod(index, size) for index in made.suppressed.tolist()}
    own = {(row, token) for row, token in found if token < 10}
    assert own == {(0, 7), (1, 5), (1, 9)}


def test_only_the_first_step_bounds_the_first_timestamp(tiny_model: Whisper) -> None:
    first = layout(tiny_model, [0, 1], BEAMS, GREEDY, first=True)
    assert first.initial_timestamps is not None
    assert first.initial_timestamps.tolist() == [51, 51, 51, 0]
    assert layout(tiny_model, [0, 1], BEAMS, GREEDY).initial_timestamps is None


@pytest.mark.parametrize("options", [(BEAMS, GREEDY, SAMPLES), (BEAMS, BEAMS)])
def test_a_grid_holds_every_row_at_its_place(
    tiny_model: Whisper, options: tuple[dict[str, Any], ...]
) -> None:
    made = layout(tiny_model, [*range(len(options))], *options)
    rows = torch.arange(len(made.row_window)).to(devices.chosen())
    grid = made.to_grid(rows, filler=-1)
    assert grid.shape == (len(options), made.width)
    assert torch.equal(grid[made.row_window, made.row_beam], rows)
    assert torch.equal(grid >= 0, made.real)
    assert torch.equal(made.from_grid(grid), rows)


def test_a_list_of_tokens_is_copied_to_the_device_once(tiny_model: Whisper) -> None:
    lists = TokenLists(tiny_model.device)
    assert lists.tensor((1, 2)) is lists.tensor((1, 2))
    assert lists.tensor((1, 2)).tolist() == [1, 2]
