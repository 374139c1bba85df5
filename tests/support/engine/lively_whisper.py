"""A Whisper of random weights whose texts vary and end, and batches of its windows."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from whisper.decoding import DecodingOptions, DecodingResult
from whisper.model import Whisper
from whisper.tokenizer import Tokenizer, get_tokenizer

from deployments.engine.decoding.batch import Progress
from deployments.engine.decoding.plan import DecodePlan, Outcome
from deployments.engine.model_runner import ModelRunner
from deployments.engine.upstream.decoding import plan_for, result_of
from deployments.engine.upstream.log_mel import Mel, Spectrogram
from tests.support.engine import devices
from tests.support.engine.tiny_whisper import DIMENSIONS

SLOTS = 6


def lively_whisper(seed: int = 0, end: float = 7.5, **dimensions: int) -> Whisper:
    """A model with little audio and two layers, unless `dimensions` says otherwise.

    end: the higher, the sooner texts end
    """
    torch.manual_seed(seed)
    dimensions = {"n_audio_ctx": 100, "n_text_layer": 2} | dimensions
    model = Whisper(replace(DIMENSIONS, **dimensions)).eval()
    model.requires_grad_(False)
    decoder = model.decoder
    tokens = decoder.token_embedding.weight
    names = tokenizer(model)
    torch.nn.init.normal_(decoder.positional_embedding)
    for block in decoder.blocks:
        # As with real weights, the next token depends on what is attended to, not on the last token
        # alone.
        for attention in (block.attn, block.cross_attn):
            for linear in (attention.query, attention.key, attention.out):
                linear.weight.mul_(6)
        block.mlp[2].weight.mul_(6)
    tokens.mul_(0.5)
    tokens[names.timestamp_begin :].mul_(1.1)
    # Two dimensions are the same for every text, and raise the logits of these tokens.
    tokens[:, -2:] = 0
    decoder.ln.weight[-2:] = 0
    decoder.ln.bias[-2:] = 1
    tokens[names.eot, -2] = end
    tokens[names.no_speech, -1] = end
    return devices.placed(model)


def tokenizer(model: Whisper) -> Tokenizer:
    return get_tokenizer(model.is_multilingual, num_languages=model.num_languages)


def noise(model: Whisper, seed: int = 0) -> Mel:
    """A window of noise."""
    generator = torch.Generator().manual_seed(seed)
    shape = model.dims.n_mels, 2 * model.dims.n_audio_ctx
    # After Whisper's normalisation the values have mean 0 and deviation 1.
    logarithms = torch.randn(shape, generator=generator) * 4 - 4
    floor = torch.tensor(-torch.inf, device=model.device)
    return Mel.of(Spectrogram(logarithms.to(model.device), floor))


def noise_mel(model: Whisper, seed: int = 0) -> Tensor:
    """The window of `noise` as official code takes it: shape (mels, frames)."""
    return noise(model, seed).tensor()


@dataclass(frozen=True)
class Job:
    """A window to decode. number: which decoding of its request this is, for the random draws"""

    mel: Tensor
    options: DecodingOptions
    number: int = 0


def job(model: Whisper, seed: int = 0, number: int = 0, **options: Any) -> Job:
    given = {"language": "en", "sample_len": 12} | options
    return Job(noise_mel(model, seed), DecodingOptions(fp16=False, **given), number)


def official(model: Whisper, job: Job) -> DecodingResult:
    model = devices.official(model)
    result: DecodingResult = model.decode(job.mel.to(model.device), job.options)
    return result


class BatchHarness:
    """A decoding batch without the scheduler, and the windows in it.

    seed: of the random choices: which slots windows take, when they join, and which of them take a
        step together, in what order. None: all join at once, into the first slots, and go on
        together.
    """

    def __init__(
        self,
        model: Whisper,
        seed: int | None = None,
        count: int = SLOTS,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        runner = ModelRunner.of(model, model.device, dtype, slots=count)
        self.facts, self.encoder = runner.facts, runner.encoder
        self.decoder, self.batch = runner.decoder, runner.batch
        self._tokenizer = runner.tokenizer
        self.free = list(range(count))
        self.live: dict[int, _Live] = {}
        self._chance = None if seed is None else random.Random(seed)

    def decode(self, jobs: Sequence[Job]) -> list[DecodingResult]:
        """The results in the order of the jobs."""
        results: dict[int, DecodingResult] = {}
        waiting = list(enumerate(jobs))
        while waiting or self.live:
            joining = waiting[: self._how_many_join(len(waiting))]
            if joining:
                waiting = waiting[len(joining) :]
                numbers, taken = zip(*joining, strict=True)
                results |= self.finished(self.join(taken, numbers))
            if self.live:
                results |= self.finished(self.step(self._who_steps()))
        return [results[number] for number in range(len(jobs))]

    def join(self, jobs: Sequence[Job], numbers: Sequence[int] = ()) -> Progress:
        if self._chance:
            self._chance.shuffle(self.free)
        else:
            self.free.sort()
        slots = [self.free.pop(0) for _ in jobs]
        plans = [plan_for(self.facts, job.options) for job in jobs]
        features = self.encoder(torch.stack([job.mel for job in jobs]))
        for i, slot in enumerate(slots):
            self.batch.check_fits(plans[i])
            self.decoder.write_cross_kv(slot, features[i])
            number = numbers[i] if numbers else i
            self.live[slot] = _Live(number, jobs[i], plans[i])
        return self.batch.join(slots, plans, [job.number for job in jobs])

    def step(self, slots: Sequence[int] | None = None) -> Progress:
        return self.batch.step(list(self.live) if slots is None else slots)

    def finished(self, progress: Progress) -> dict[int, DecodingResult]:
        """The results of the windows that are done, by number; these windows leave the batch."""
        assert not progress.broken
        results = {}
        for slot in progress.done:
            number, options = self.live[slot].number, self.live[slot].job.options
            plan, outcome = self.leave(slot)
            results[number] = result_of(outcome, plan, options, self._tokenizer)
        return results

    def leave(self, slot: int) -> tuple[DecodePlan, Outcome]:
        """Free the slot of a window that is done."""
        plan = self.live.pop(slot).plan
        self.free.append(slot)
        return plan, self.batch.outcome(slot)

    def _how_many_join(self, waiting: int) -> int:
        room = min(waiting, len(self.free))
        if self._chance is None or not self.live:
            return room
        return min(room, self._chance.choice([0, 0, 0, 1, 1, 2, 3]))

    def _who_steps(self) -> list[int]:
        slots = list(self.live)
        if self._chance is None:
            return slots
        if self._chance.random() < 0.3:
            self._chance.shuffle(slots)
        # Sometimes a window waits while others go on.
        few = self._chance.random() < 0.15
        return slots[: self._chance.randint(1, len(slots))] if few else slots


@dataclass
class _Live:
    number: int
    job: Job
    plan: DecodePlan = field(repr=False)
