"""`beam_search` against Whisper's own decoders, step by step, over tables of log-probabilities."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from whisper.decoding import (
    BeamSearchDecoder,
    GreedyDecoder,
    Inference,
    MaximumLikelihoodRanker,
)

from deployments.engine.decoding.beam_search import (
    Backpointers,
    Selection,
    select_beams,
    select_rows,
)

PROMPT = 900  # not a token of any table
EOT = 3
KINDS = ["plain", "ties", "early end", "end everywhere", "holes"]
PENALTIES = [None, 0.0, 0.5, 1.0]
# The same examples in every run; conftest.py says how many.
bounded = settings(derandomize=True, database=None)


@dataclass(frozen=True)
class Table:
    """A random language: what may follow depends on the step and on the token before.

    logits: shape (steps, vocabulary + 1, vocabulary); the last row of
        the second dimension is for the token after the prompt
    """

    kind: str
    vocabulary: int
    steps: int
    seed: int
    logits: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        random = torch.Generator().manual_seed(self.seed)
        shape = (self.steps, self.vocabulary + 1, self.vocabulary)
        logits = torch.randn(shape, generator=random) * 2
        if self.kind == "ties":
            logits = torch.randint(0, 2, shape, generator=random).float()
        elif self.kind == "early end":
            logits[..., EOT] += 4
        elif self.kind == "end everywhere":
            logits[..., EOT] = 9
        elif self.kind == "holes":
            # One token stays possible everywhere, since there must be a distribution.
            holes = torch.rand(shape, generator=random) < 0.8
            holes[..., self.seed % self.vocabulary] = False
            logits = logits.masked_fill(holes, -torch.inf)
        object.__setattr__(self, "logits", logits)

    def after(self, step: int, sequences: Sequence[Sequence[int]]) -> Tensor:
        return self.logits[step, [s[-1] if s else self.vocabulary for s in sequences]]


@st.composite
def tables(draw: st.DrawFn) -> Table:
    return Table(
        draw(st.sampled_from(KINDS)),
        vocabulary=draw(st.integers(12, 40)),
        steps=draw(st.integers(1, 12)),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@st.composite
def searches(draw: st.DrawFn) -> tuple[Table, int, float]:
    """A language, a number of beams, a patience."""
    beams = draw(st.integers(1, 10))
    patience = draw(st.sampled_from([0.5, 0.8, 1.0, 1.4, 2.0, 3.0]))
    # Upstream refuses a search that needs no candidate.
    return draw(tables()), beams, patience if round(beams * patience) else 1.0


class Recorder(Inference):
    """Records how upstream would reorder its key/value cache."""

    def __init__(self) -> None:
        self.sources: list[int] = []

    def rearrange_kv_cache(self, source_indices: list[int]) -> None:
        self.sources = source_indices


@dataclass(frozen=True)
class Step:
    """After a step: the sequences that go on, scores, parents, and whether the search is over."""

    sequences: list[list[int]]
    scores: list[float]
    parents: list[int]
    completed: bool


@dataclass(frozen=True)
class Search:
    """A whole search: its steps, and its candidates without `EOT`, with their scores."""

    steps: list[Step]
    candidates: list[tuple[list[int], float]]


def official_candidates(
    decoder: BeamSearchDecoder | GreedyDecoder, tokens: Tensor, scores: Tensor
) -> list[tuple[list[int], float]]:
    """The candidates, as the end of `whisper.decoding.DecodingTask.run` finds them."""
    (found,), (sums,) = decoder.finalize(tokens[None], scores[None])
    texts = [t[1 : (t == EOT).nonzero()[0, 0]].tolist() for t in found]
    return list(zip(texts, sums, strict=True))


def official_beam_search(language: Table, beams: int, patience: float) -> Search:
    recorder = Recorder()
    decoder = BeamSearchDecoder(beams, EOT, recorder, patience)
    tokens = torch.full((beams, 1), PROMPT)
    scores = torch.zeros(beams)
    steps: list[Step] = []
    for step in range(language.steps):
        logits = language.after(step, tokens[:, 1:].tolist())
        tokens, completed = decoder.update(tokens, logits, scores)
        parents = recorder.sources
        steps.append(Step(tokens[:, 1:].tolist(), scores.tolist(), parents, completed))
        if completed:
            break
    return Search(steps, official_candidates(decoder, tokens, scores))


def whispers_best(logprobs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The best tokens as upstream finds them, with its order of ties."""
    found = [row.topk(count) for row in logprobs]
    return torch.stack([f.values for f in found]), torch.stack(
        [f.indices for f in found]
    )


def sorted_best(logprobs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The best tokens in an order that does not depend on the count, even among ties."""
    found = logprobs.sort(descending=True, stable=True)
    return found.values[:, :count], found.indices[:, :count]


@dataclass
class Window:
    """A window of ours: its language and options, and what its steps have recorded."""

    language: Table
    beams: int
    patience: float = 1.0
    find: Callable[[Tensor, int], tuple[Tensor, Tensor]] = whispers_best
    written: list[Selection] = field(default_factory=list)

    def __post_init__(self) -> None:
        # The beams are equal before the first step, and only one of them counts.
        self.scores = torch.tensor([0.0] + [-torch.inf] * (self.beams - 1))

    @property
    def limit(self) -> int:
        return round(self.beams * self.patience)

    @property
    def completed(self) -> bool:
        found = sum(int((~s.finished_scores.isnan()).sum()) for s in self.written)
        return found >= self.limit

    @property
    def over(self) -> bool:
        return self.completed or len(self.written) == self.language.steps

    def backpointers(self) -> Backpointers:
        def all_steps(tensors: list[Tensor]) -> np.ndarray:
            return torch.stack(tensors).numpy()

        return Backpointers(
            tokens=all_steps([s.tokens for s in self.written]),
            parents=all_steps([s.parents for s in self.written]),
            finished_scores=all_steps([s.finished_scores for s in self.written]),
            finished_parents=all_steps([s.finished_parents for s in self.written]),
            scores=self.scores.numpy(),
        )

    def sequences(self) -> list[list[int]]:
        if not self.written:
            return [[]] * self.beams
        found, last = self.backpointers(), len(self.written) - 1
        return [found.sequence(last, beam) for beam in range(self.beams)]

    def candidates(self, count: int) -> tuple[Tensor, Tensor]:
        """Log-probabilities and tokens of each beam, shape (beams, count)."""
        logits = self.language.after(len(self.written), self.sequences())
        return self.find(logits.log_softmax(-1), count)

    def take(self, selection: Selection) -> Step:
        self.written.append(
            Selection(*(value[: self.beams] for value in vars(selection).values()))
        )
        self.scores = self.written[-1].scores
        parents = self.written[-1].parents.tolist()
        return Step(self.sequences(), self.scores.tolist(), parents, self.completed)


def our_step(windows: Sequence[Window]) -> list[Step]:
    """One step of all windows in one call, each padded to the widest."""
    width = max(window.beams for window in windows)
    shape = (len(windows), width, width + 1)
    scores = torch.full(shape[:2], -torch.inf)
    logprobs, tokens = (
        torch.full(shape, -torch.inf),
        torch.zeros(shape, dtype=torch.long),
    )
    for row, window in enumerate(windows):
        scores[row, : window.beams] = window.scores
        found = window.candidates(width + 1)
        logprobs[row, : window.beams], tokens[row, : window.beams] = found
    widths = torch.tensor([window.beams for window in windows])
    selected = select_beams(scores, logprobs, tokens, widths, EOT)
    return [
        window.take(Selection(*(value[row] for value in vars(selected).values())))
        for row, window in enumerate(windows)
    ]


def our_beam_searches(windows: Sequence[Window]) -> list[Search]:
    """The searches of windows that decode together until each is over."""
    steps: list[list[Step]] = [[] for _ in windows]
    while going := [i for i, window in enumerate(windows) if not window.over]:
        for i, step in zip(going, our_step([windows[i] for i in going]), strict=True):
            steps[i].append(step)
    return [
        Search(taken, window.backpointers().finished_beams(window.limit))
        for taken, window in zip(steps, windows, strict=True)
    ]


def assert_same_search(ours: Search, official: Search) -> None:
    assert len(ours.steps) == len(official.steps)
    for step, expected in zip(ours.steps, official.steps, strict=True):
        if step is ours.steps[0]:
            # The beams are still equal, so any of them may be called the parent.
            expected = replace(expected, parents=step.parents)
        assert step == expected
    assert ours.candidates == official.candidates


@given(searches())
@bounded
def test_beam_search_is_whispers_step_by_step(asked: tuple[Table, int, float]) -> None:
    (ours,) = our_beam_searches([Window(*asked)])
    assert_same_search(ours, official_beam_search(*asked))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beams", range(1, 11))
def test_beam_search_of_every_width_is_whispers(beams: int, kind: str) -> None:
    for patience in (0.5, 1.0, 2.3) if beams > 1 else (1.0, 2.3):
        language = Table(kind, vocabulary=30, steps=8, seed=beams)
        (ours,) = our_beam_searches([Window(language, beams, patience)])
        assert_same_search(ours, official_beam_search(language, beams, patience))


@given(st.lists(searches(), min_size=2, max_size=4))
@bounded
def test_windows_of_different_widths_in_one_call_do_not_see_each_other(
    asked: list[tuple[Table, int, float]],
) -> None:
    together = our_beam_searches([Window(*a, find=sorted_best) for a in asked])
    alone = [our_beam_searches([Window(*a, find=sorted_best)])[0] for a in asked]
    assert together == alone


@given(searches())
@bounded
def test_the_ranker_takes_the_candidate_that_it_takes_of_whispers(
    asked: tuple[Table, int, float],
) -> None:
    (ours,) = our_beam_searches([Window(*asked)])
    official = official_beam_search(*asked)
    for penalty in PENALTIES:
        assert chosen(ours, penalty) == chosen(official, penalty)


def chosen(search: Search, penalty: float | None) -> tuple[list[int], float] | None:
    """The best candidate; None if the ranker divides by the length of an empty text."""
    lengths = [torch.empty(len(tokens)) for tokens, _ in search.candidates]
    sums = [score for _, score in search.candidates]
    try:
        (index,) = MaximumLikelihoodRanker(penalty).rank([lengths], [sums])
    except ZeroDivisionError:
        return None
    return search.candidates[index]


def test_a_search_that_has_found_too_few_is_completed_by_the_best_that_are_left() -> (
    None
):
    language = Table("plain", vocabulary=20, steps=4, seed=2)
    language.logits[:2, :, EOT] = -torch.inf
    language.logits[2, :, EOT] = -torch.inf
    language.logits[2, ::4, EOT] = 5.0
    language.logits[3, :, EOT] = -torch.inf
    (ours,) = our_beam_searches([Window(language, 5, patience=2.0)])
    lengths = [len(tokens) for tokens, _ in ours.candidates]
    assert 2 in lengths and 4 in lengths and len(lengths) == 5
    assert_same_search(ours, official_beam_search(language, 5, patience=2.0))


def test_fewer_possible_tokens_than_beams_leave_beams_that_count_for_nothing() -> None:
    # As with a small `max_initial_timestamp`.
    language = Table("plain", vocabulary=20, steps=5, seed=3)
    language.logits[0, :, 2:] = -torch.inf
    (ours,) = our_beam_searches([Window(language, 5)])
    assert ours.steps[0].scores[2:] == [-torch.inf] * 3
    assert all(np.isfinite(score) for score in ours.steps[1].scores)
    assert_same_search(ours, official_beam_search(language, 5, patience=1.0))


@given(tables(), st.integers(1, 10), st.sampled_from([0.0, 0.7]))
@bounded
def test_rows_that_do_not_compete_are_whispers_greedy_decoder(
    language: Table, rows: int, temperature: float
) -> None:
    decoder = GreedyDecoder(temperature, EOT)
    tokens, scores = torch.full((rows, 1), PROMPT), torch.zeros(rows)
    ours = Window(language, rows)
    ours.scores = torch.zeros(rows)
    ended = torch.zeros(1, rows, dtype=torch.bool)
    torch.manual_seed(rows)
    for step in range(language.steps):
        # Upstream's row goes on reading after its end, and ignores what it reads.
        logits = language.after(step, tokens[:, 1:].tolist())
        # Upstream adds 0 * logprob to the score of an ended row: NaN if logprob is infinite.
        logits[ended[0]] = 0.0
        logprobs = logits.log_softmax(-1)
        drawn = logits.argmax(-1)
        tokens, completed = decoder.update(tokens, logits, scores)
        if temperature:
            drawn = torch.where(ended[0], drawn, tokens[:, -1])
        selected = select_rows(
            ours.scores[None],
            logprobs.gather(1, drawn[:, None]).T,
            drawn[None],
            ended,
            EOT,
        )
        ended = selected.tokens == EOT
        taken = ours.take(Selection(*(value[0] for value in vars(selected).values())))
        assert taken.sequences == tokens[:, 1:].tolist()
        assert taken.scores == scores.tolist()
        assert bool(ended.all()) == completed
        if completed:
            break
    candidates = ours.backpointers().rows(EOT)
    assert candidates == official_candidates(decoder, tokens, scores)
    whole = Search([], candidates)
    official = Search([], official_candidates(decoder, tokens, scores))
    for penalty in PENALTIES:
        assert chosen(whole, penalty) == chosen(official, penalty)
