"""The windows that decode together: each joins at any step, and ends when it is done."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deployments.engine.decoding.beam_search import (
    Backpointers,
    Selection,
    select_beams,
    select_rows,
)
from deployments.engine.decoding.logit_filters import (
    Distribution,
    History,
    Vocabulary,
    distribution,
)
from deployments.engine.decoding.plan import DecodePlan, Outcome
from deployments.engine.decoding.row_layout import RowLayout, TokenLists
from deployments.engine.model.decoder import Decoder, Rows
from deployments.engine.model.transfer import send, to_device, wait_for


@dataclass(eq=False)
class _Window:
    """sampled: how many tokens have been sampled"""

    plan: DecodePlan
    sampled: int = 0


@dataclass(frozen=True)
class Progress:
    """What a step has changed.

    done: slots of windows that need no further step
    broken: slots of windows whose logits had a NaN
    """

    done: list[int]
    broken: list[int]


class DecodingBatch:
    """The search state of every slot, on the model's device.

    width: the most beams, or samples, of a window
    steps: the most tokens that are sampled for a window

    A step waits for the device once, at its end, to learn which windows are done.
    """

    def __init__(
        self,
        decoder: Decoder,
        vocabulary: Vocabulary,
        *,
        slots: int,
        width: int,
        steps: int,
        device: torch.device,
    ) -> None:
        self._decoder = decoder
        self._vocabulary = vocabulary
        self._device = device
        self._windows: dict[int, _Window] = {}
        self._layout: RowLayout | None = None
        self._token_lists = TokenLists(device)
        self.bytes_per_slot = 0

        def store(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
            """Zeros of this shape for each slot."""
            tensor = torch.zeros(slots, *shape, dtype=dtype, device=device)
            self.bytes_per_slot += tensor.nbytes // slots
            return tensor

        self._step = store()  # how many tokens have been sampled
        self._prompt = store()  # how many tokens the prompt has
        self._finished = store()  # how many sequences have ended
        self._score = store(width, dtype=torch.float32)
        self._ended = store(width, dtype=torch.bool)
        # See `History`.
        self._last = store(width, dtype=torch.bool)
        self._penultimate = store(width, dtype=torch.bool)
        self._latest = store(width)
        self._no_speech_prob = store(dtype=torch.float32)
        # What each step has recorded; see `Backpointers`.
        self._tokens = store(steps, width)
        self._parents = store(steps, width)
        self._finished_scores = store(steps, width, dtype=torch.float32)
        self._finished_parents = store(steps, width)
        self._uniforms = store(steps, width, dtype=torch.float64)

    def check_fits(self, plan: DecodePlan) -> None:
        """Raises ValueError if no slot can hold the window, or its prompt fills the context."""
        if plan.steps < 1:
            raise ValueError(f"a prompt of {len(plan.prompt)} tokens is too long")
        steps, width = self._tokens.shape[1:]
        columns = len(plan.prompt) + (plan.steps - 1) * plan.width
        if plan.width > width or plan.steps > steps or columns > self._decoder.columns:
            raise ValueError(
                f"{plan.width} beams or samples of {plan.steps} tokens are more than a"
                f" window may have ({width} of {steps})"
            )

    def rows(self, slots: Sequence[int]) -> int:
        """How many beams, or samples, the windows in these slots have together."""
        return sum(self._windows[slot].plan.width for slot in slots)

    def join(
        self, slots: Sequence[int], plans: Sequence[DecodePlan], numbers: Sequence[int]
    ) -> Progress:
        """Read the prompts of windows whose audio is in their slots, and choose their first tokens.

        numbers: which decoding of its request each of these is, for the random draws
        """
        hidden = self._decoder.prefill(slots, [plan.prompt for plan in plans])
        windows = torch.arange(len(slots), device=self._device)
        starts = self._tensor([plan.sot_index for plan in plans])
        lengths = self._tensor([len(plan.prompt) for plan in plans])
        hidden = torch.cat([hidden[windows, starts], hidden[windows, lengths - 1]])
        at_start, logits = self._decoder.logits(hidden).chunk(2)
        for slot, plan, number in zip(slots, plans, numbers, strict=True):
            self._windows[slot] = _Window(plan)
            if plan.samples:
                draws = send(plan.uniforms(number), self._device)
                self._uniforms[slot, : plan.steps, : plan.width] = draws
        layout = RowLayout(
            slots, plans, self._vocabulary, self._token_lists, first=True
        )
        index = layout.slots.index
        # All beams of a search are equal before their first token, so only the first one may count.
        beam = torch.arange(self._score.shape[1], device=self._device)
        same = layout.competes[:, None] & (beam > 0)
        self._score[index] = torch.where(same, -math.inf, 0.0)
        self._prompt[index] = lengths
        # Assigning a Python number would copy it to a GPU and wait for the copy.
        self._step.index_fill_(0, index, 0)
        self._finished.index_fill_(0, index, 0)
        self._ended.index_fill_(0, index, False)
        self._last.index_fill_(0, index, False)
        self._penultimate.index_fill_(0, index, True)
        self._latest.index_fill_(0, index, -1)
        self._no_speech_prob[index] = self._no_speech_probs(at_start, plans)
        self._layout = None
        return self._advance(layout, logits[layout.row_window])

    def step(self, slots: Sequence[int]) -> Progress:
        """Choose one more token for each of these windows.

        If this raises, it can be called again: what it has changed so far, it would change again.
        """
        layout = self._layout
        if layout is None or layout.slots.numbers != [*slots]:
            plans = [self._windows[slot].plan for slot in slots]
            layout = RowLayout(
                slots, plans, self._vocabulary, self._token_lists, first=False
            )
            self._layout = layout
        # The step that sampled the token to be read now.
        sampled = self._step[layout.row_slot] - 1
        prompt = self._prompt[layout.row_slot]
        rows = Rows(
            layout,
            position=prompt + sampled,
            column=prompt + sampled * layout.row_width + layout.row_beam,
            columns=max(self._columns(slot) for slot in slots),
        )
        tokens = self._tokens[layout.row_slot, sampled, layout.row_beam]
        return self._advance(layout, self._decoder.step(tokens, rows))

    def outcome(self, slot: int) -> Outcome:
        """The outcome of a window that is done."""
        window = self._windows[slot]
        steps, width = window.sampled, window.plan.width

        def recorded(store: Tensor) -> np.ndarray:
            return store[slot, :steps, :width].cpu().numpy()

        backpointers = Backpointers(
            tokens=recorded(self._tokens),
            parents=recorded(self._parents),
            finished_scores=recorded(self._finished_scores),
            finished_parents=recorded(self._finished_parents),
            scores=self._score[slot, :width].cpu().numpy(),
        )
        return Outcome(backpointers, float(self._no_speech_prob[slot]))

    def clear(self, slot: int) -> None:
        """Erase a window that failed, so that nothing of it reaches the next window in its slot."""
        self._decoder.clear(slot)

    def _advance(self, layout: RowLayout, logits: Tensor) -> Progress:
        """Choose the next tokens from logits of shape (rows, vocabulary)."""
        index, width = layout.slots.index, layout.width
        history = History(
            layout.timestamps,
            self._last[layout.row_slot, layout.row_beam],
            self._penultimate[layout.row_slot, layout.row_beam],
            self._latest[layout.row_slot, layout.row_beam],
        )
        next_token = distribution(
            logits,
            self._vocabulary,
            history,
            suppressed=layout.suppressed,
            initial_timestamps=layout.initial_timestamps,
        )
        logprobs, tokens = next_token.candidates(width + 1 if layout.any_beams else 1)
        scores = self._score[index, :width]
        selection = None
        if layout.any_beams:
            selection = select_beams(
                scores,
                layout.to_grid(logprobs, -math.inf),
                layout.to_grid(tokens),
                layout.widths,
                self._vocabulary.eot,
            )
        if layout.any_rows:
            logprobs, tokens = logprobs[:, 0], tokens[:, 0]
            if layout.sampling is not None:
                drawn = self._draw(layout, next_token)
                logprobs = logprobs.index_copy(0, layout.sampling, drawn[0])
                tokens = tokens.index_copy(0, layout.sampling, drawn[1])
            rows = select_rows(
                scores,
                layout.to_grid(logprobs),
                layout.to_grid(tokens),
                self._ended[index, :width],
                self._vocabulary.eot,
            )
            selection = selection.merged(rows, layout.competes) if selection else rows
        assert selection is not None
        return self._commit(layout, selection, next_token.normalizer.isnan())

    def _draw(
        self, layout: RowLayout, next_token: Distribution
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and tokens of the rows that are drawn at random."""
        assert layout.sampling is not None and layout.temperatures is not None
        slot, beam = layout.row_slot[layout.sampling], layout.row_beam[layout.sampling]
        uniform = self._uniforms[slot, self._step[slot], beam]
        return next_token.rows(layout.sampling).sample(layout.temperatures, uniform)

    def _commit(
        self, layout: RowLayout, selection: Selection, undefined: Tensor
    ) -> Progress:
        """Write the selection to the stores.

        undefined: rows whose logits had a NaN, even if they have ended before; shape (rows,)
        """
        index, width = layout.slots.index, layout.width
        step, parents = self._step[index], selection.parents
        # All that needs memory and may fail comes first, before anything is written.
        scores = selection.scores.masked_fill(~layout.real, -math.inf)
        ended = selection.tokens == self._vocabulary.eot
        timestamp = selection.tokens >= self._vocabulary.timestamp_begin
        latest = torch.where(
            timestamp,
            selection.tokens - self._vocabulary.timestamp_begin,
            self._latest[index, :width].gather(1, parents),
        )
        # A penultimate token that does not exist counts as a timestamp; see `History`.
        last = self._last[index, :width].gather(1, parents)
        penultimate = last | (step == 0)[:, None]
        finished = self._finished[index] + (~selection.finished_scores.isnan()).sum(1)
        found_enough = finished >= layout.finished_needed
        all_ended = (ended | ~layout.real).all(1)
        completed = torch.where(layout.competes, found_enough, all_ended)
        broken = (scores.isnan() | layout.to_grid(undefined)).any(1)
        flags = torch.stack([completed, broken])
        next_step = step + 1
        columns = max(self._columns(slot) for slot in layout.slots.numbers)
        self._decoder.reorder(index, parents, columns)

        self._tokens[index, step, :width] = selection.tokens
        self._parents[index, step, :width] = parents
        self._finished_scores[index, step, :width] = selection.finished_scores
        self._finished_parents[index, step, :width] = selection.finished_parents
        self._finished[index] = finished
        self._score[index, :width] = scores
        self._ended[index, :width] = ended
        self._latest[index, :width] = latest
        self._penultimate[index, :width] = penultimate
        self._last[index, :width] = timestamp
        self._step[index] = next_step
        for slot in layout.slots.numbers:
            self._windows[slot].sampled += 1

        slots = layout.slots.numbers
        complete, bad = wait_for(flags)
        return Progress(
            done=[
                s
                for s, c in zip(slots, complete, strict=True)
                if c or self._exhausted(s)
            ],
            broken=[s for s, b in zip(slots, bad, strict=True) if b],
        )

    def _exhausted(self, slot: int) -> bool:
        window = self._windows[slot]
        return window.sampled >= window.plan.steps

    def _columns(self, slot: int) -> int:
        """How many columns of the slot are in use, including those of the tokens sampled last."""
        window = self._windows[slot]
        return len(window.plan.prompt) + window.sampled * window.plan.width

    def _no_speech_probs(self, logits: Tensor, plans: Sequence[DecodePlan]) -> Tensor:
        tokens = self._tensor([plan.no_speech for plan in plans])
        return logits.softmax(-1).gather(1, tokens[:, None])[:, 0]

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return to_device(values, self._device)
