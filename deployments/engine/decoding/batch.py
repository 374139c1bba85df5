"""The windows that decode together: each joins at any step, goes on by one token with the others, and ends alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deployments.engine.decoding.beam_search import (
    Selection,
    Trace,
    select_beams,
    select_rows,
)
from deployments.engine.decoding.logit_filters import (
    Distribution,
    History,
    Vocabulary,
    distribution,
)
from deployments.engine.decoding.row_layout import Group, TokenLists
from deployments.engine.model.decoder import Decoder, Rows
from deployments.engine.transfer import send, to_device, wait_for
from deployments.engine.upstream.decoding import Outcome, Plan


@dataclass(eq=False)
class _Window:
    plan: Plan
    sampled: int = 0  # tokens so far


@dataclass(frozen=True)
class Progress:
    """Of the windows that took part in a step: the slots of those that are done, and of those that met a NaN."""

    done: list[int]
    broken: list[int]


class Batch:
    """The search state of every slot, on the model's device.

    width, steps: the most beams, or samples, of a window, and the most tokens

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
        self._group: Group | None = None
        self._token_lists = TokenLists(device)

        def grid(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(slots, *shape, dtype=dtype, device=device)

        self._step = grid()
        self._prompt = grid()
        self._finished = grid()
        self._score = grid(width, dtype=torch.float32)
        self._ended = grid(width, dtype=torch.bool)
        self._last = grid(width, dtype=torch.bool)
        self._penultimate = grid(width, dtype=torch.bool)
        self._latest = grid(width)
        self._no_speech_prob = grid(dtype=torch.float32)
        # What each step has written down, see `search.Trace`.
        self._tokens = grid(steps, width)
        self._parents = grid(steps, width)
        self._finished_scores = grid(steps, width, dtype=torch.float32)
        self._finished_parents = grid(steps, width)
        self._uniforms = grid(steps, width, dtype=torch.float64)

    @property
    def bytes_per_slot(self) -> int:
        tensors = [value for value in vars(self).values() if isinstance(value, Tensor)]
        return sum(tensor.nbytes // len(tensor) for tensor in tensors)

    def check_fits(self, plan: Plan) -> None:
        """Raises ValueError if no slot can hold such a window, or its prompt leaves no room for a token."""
        if plan.steps < 1:
            raise ValueError(f"a prompt of {len(plan.prompt)} tokens is too long")
        steps, width = self._tokens.shape[1:]
        columns = len(plan.prompt) + (plan.steps - 1) * plan.width
        if plan.width > width or plan.steps > steps or columns > self._decoder.columns:
            raise ValueError(
                f"{plan.width} beams or samples of {plan.steps} tokens are more than a window may have"
                f" ({width} of {steps})"
            )

    def join(
        self, slots: Sequence[int], plans: Sequence[Plan], numbers: Sequence[int]
    ) -> Progress:
        """Read the prompts of windows whose audio is in their slots, and choose their first tokens.

        numbers: of these decodings in their requests, for their random draws
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
        group = Group(slots, plans, self._vocabulary, self._token_lists, first=True)
        index = group.slots.index
        # All beams of a search are the same before their first token, so only the first one may count.
        beam = torch.arange(self._score.shape[1], device=self._device)
        same = group.competes[:, None] & (beam > 0)
        self._score[index] = torch.where(same, -math.inf, 0.0)
        self._prompt[index] = lengths
        # The assignment of a Python number would copy it to a GPU, and wait for that.
        self._step.index_fill_(0, index, 0)
        self._finished.index_fill_(0, index, 0)
        self._ended.index_fill_(0, index, False)
        self._last.index_fill_(0, index, False)
        self._penultimate.index_fill_(0, index, True)
        self._latest.index_fill_(0, index, -1)
        self._no_speech_prob[index] = self._no_speech_probs(at_start, plans)
        self._group = None
        return self._advance(group, logits[group.row_window])

    def step(self, slots: Sequence[int]) -> Progress:
        """One more token for each of these windows.

        If it fails, nothing has changed that a second try would not set right.
        """
        group = self._group
        if group is None or group.slots.numbers != [*slots]:
            plans = [self._windows[slot].plan for slot in slots]
            group = Group(
                slots, plans, self._vocabulary, self._token_lists, first=False
            )
            self._group = group
        sampled = self._step[group.row_slot] - 1  # the number of the token that is read
        prompt = self._prompt[group.row_slot]
        rows = Rows(
            group,
            position=prompt + sampled,
            column=prompt + sampled * group.row_width + group.row_beam,
            columns=max(self._columns(slot) for slot in slots),
        )
        tokens = self._tokens[group.row_slot, sampled, group.row_beam]
        return self._advance(group, self._decoder.step(tokens, rows))

    def outcome(self, slot: int) -> Outcome:
        """What has come out of a window that is done."""
        window = self._windows[slot]
        steps, width = window.sampled, window.plan.width

        def written(store: Tensor) -> np.ndarray:
            return store[slot, :steps, :width].cpu().numpy()

        trace = Trace(
            tokens=written(self._tokens),
            parents=written(self._parents),
            finished_scores=written(self._finished_scores),
            finished_parents=written(self._finished_parents),
            scores=self._score[slot, :width].cpu().numpy(),
        )
        return Outcome(trace, float(self._no_speech_prob[slot]))

    def clear(self, slot: int) -> None:
        """After a window that failed: nothing of it may reach the next one in its slot."""
        self._decoder.clear(slot)

    def _advance(self, group: Group, logits: Tensor) -> Progress:
        """Choose the next tokens from logits of shape (rows, vocabulary)."""
        index, width = group.slots.index, group.width
        history = History(
            group.timestamps,
            self._last[group.row_slot, group.row_beam],
            self._penultimate[group.row_slot, group.row_beam],
            self._latest[group.row_slot, group.row_beam],
        )
        chances = distribution(
            logits,
            self._vocabulary,
            history,
            suppressed=group.suppressed,
            initial_timestamps=group.initial_timestamps,
        )
        logprobs, tokens = chances.candidates(width + 1 if group.any_beams else 1)
        scores = self._score[index, :width]
        selection = None
        if group.any_beams:
            selection = select_beams(
                scores,
                group.to_grid(logprobs, -math.inf),
                group.to_grid(tokens),
                group.widths,
                self._vocabulary.eot,
            )
        if group.any_rows:
            logprobs, tokens = logprobs[:, 0], tokens[:, 0]
            if group.sampling is not None:
                drawn = self._draw(group, chances)
                logprobs = logprobs.index_copy(0, group.sampling, drawn[0])
                tokens = tokens.index_copy(0, group.sampling, drawn[1])
            rows = select_rows(
                scores,
                group.to_grid(logprobs),
                group.to_grid(tokens),
                self._ended[index, :width],
                self._vocabulary.eot,
            )
            selection = rows if selection is None else group.merged(selection, rows)
        assert selection is not None
        return self._commit(group, selection, chances.normalizer.isnan())

    def _draw(self, group: Group, chances: Distribution) -> tuple[Tensor, Tensor]:
        assert group.sampling is not None and group.temperatures is not None
        slot, beam = group.row_slot[group.sampling], group.row_beam[group.sampling]
        uniform = self._uniforms[slot, self._step[slot], beam]
        return chances.rows(group.sampling).sample(group.temperatures, uniform)

    def _commit(
        self, group: Group, selection: Selection, undefined: Tensor
    ) -> Progress:
        """undefined: rows whose logits had a NaN, shape (rows,); it may concern one that has ended."""
        index, width = group.slots.index, group.width
        step, parents = self._step[index], selection.parents
        # First all that needs memory and may fail: nothing has been written yet.
        scores = selection.scores.masked_fill(~group.real, -math.inf)
        ended = selection.tokens == self._vocabulary.eot
        timestamp = selection.tokens >= self._vocabulary.timestamp_begin
        latest = torch.where(
            timestamp,
            selection.tokens - self._vocabulary.timestamp_begin,
            self._latest[index, :width].gather(1, parents),
        )
        # Before the second token there is no penultimate one, which counts as a timestamp.
        last = self._last[index, :width].gather(1, parents)
        penultimate = last | (step == 0)[:, None]
        finished = self._finished[index] + (~selection.finished_scores.isnan()).sum(1)
        found_enough = finished >= group.finished_needed
        all_ended = (ended | ~group.real).all(1)
        completed = torch.where(group.competes, found_enough, all_ended)
        broken = (scores.isnan() | group.to_grid(undefined)).any(1)
        flags = torch.stack([completed, broken])
        next_step = step + 1
        columns = max(self._columns(slot) for slot in group.slots.numbers)
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
        for slot in group.slots.numbers:
            self._windows[slot].sampled += 1

        slots = group.slots.numbers
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
        """In use, with those of the tokens sampled last."""
        window = self._windows[slot]
        return len(window.plan.prompt) + window.sampled * window.plan.width

    def _no_speech_probs(self, logits: Tensor, plans: Sequence[Plan]) -> Tensor:
        tokens = self._tensor([plan.tokenizer.no_speech for plan in plans])
        return logits.softmax(-1).gather(1, tokens[:, None])[:, 0]

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return to_device(values, self._device)
