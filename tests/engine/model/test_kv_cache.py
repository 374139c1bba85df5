import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deployments.engine.model import onednn
from deployments.engine.model.kv_cache import (
    CrossAttention,
    PackedCrossAttention,
    PlainCrossAttention,
    SelfAttention,
    cross_attention,
)
from deployments.engine.model.slot_index import SlotIndex
from tests.support.engine import devices
from tests.support.engine.devices import CPU

LAYERS, SLOTS, STATE = 2, 4, 64
TOLERANCE = 1e-5

needs_packing = pytest.mark.skipif(
    not onednn.serves(CPU, torch.float32), reason="oneDNN's operators are missing"
)


def both(heads: int, context: int) -> list[CrossAttention]:
    return [
        PackedCrossAttention(LAYERS, SLOTS, heads, context, STATE),
        PlainCrossAttention(LAYERS, SLOTS, heads, context, STATE, CPU, torch.float32),
    ]


def filled(
    implementations: list[CrossAttention], context: int
) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
    """Write random keys and values to every slot of every layer, also after the audio context."""
    random = torch.Generator().manual_seed(context)
    rows = max(implementation.rows for implementation in implementations)
    written = {}
    for layer in range(LAYERS):
        for slot in range(SLOTS):
            keys, values = torch.randn(2, rows, STATE, generator=random) * 2
            written[layer, slot] = keys[:context], values[:context]
            for one in implementations:
                one.write(layer, slot, keys[: one.rows], values[: one.rows])
    return written


def split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


@needs_packing
@pytest.mark.parametrize("context", [16, 100, 1500])
@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("positions", [1, 5, 10, 37])
def test_both_cross_attentions_are_torchs(
    positions: int, heads: int, context: int
) -> None:
    implementations = both(heads, context)
    written = filled(implementations, context)
    for numbers in ([0], [2], [0, 1], [3, 0, 2]):
        slots = SlotIndex.on(CPU, numbers)
        queries = torch.randn(len(numbers), positions, STATE)
        for layer in range(LAYERS):
            keys, values = (
                torch.stack(x)
                for x in zip(*[written[layer, s] for s in numbers], strict=True)
            )
            q, k, v = (split(x, heads) for x in (queries, keys, values))
            expected = (
                F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            )
            scores = q @ k.transpose(-1, -2) * (STATE // heads) ** -0.5
            for implementation in implementations:
                given = implementation.attend(layer, queries, slots)
                torch.testing.assert_close(given, expected, rtol=0, atol=TOLERANCE)
                some = torch.arange(0, heads, 2)
                given = implementation.scores(layer, queries, slots, some)
                torch.testing.assert_close(
                    given, scores[:, some], rtol=1e-5, atol=TOLERANCE
                )


@needs_packing
def test_a_slot_hears_the_audio_that_was_written_last() -> None:
    for implementation in both(2, 100):
        filled([implementation], 100)
        queries = torch.randn(1, 5, STATE)
        others = implementation.attend(0, queries, SlotIndex.on(CPU, [2]))
        nan = torch.full((2, implementation.rows, STATE), torch.nan)
        implementation.write(0, 1, nan[0], nan[1])
        assert implementation.attend(0, queries, SlotIndex.on(CPU, [1])).isnan().all()
        keys, values = torch.randn(2, implementation.rows, STATE)
        implementation.write(0, 1, keys, values)
        now = queries, keys[None, :100], values[None, :100]
        q, k, v = (split(x, 2) for x in now)
        expected = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        given = implementation.attend(0, queries, SlotIndex.on(CPU, [1]))
        torch.testing.assert_close(given, expected, rtol=0, atol=TOLERANCE)
        assert torch.equal(
            implementation.attend(0, queries, SlotIndex.on(CPU, [2])), others
        )


@needs_packing
@pytest.mark.parametrize(
    ("heads", "dtype", "packed"),
    [(4, torch.float32, True), (8, torch.float32, False), (4, torch.float16, False)],
)
@pytest.mark.parametrize("avx512", [True, False])
def test_what_cannot_be_packed_is_left_plain(
    monkeypatch: pytest.MonkeyPatch,
    heads: int,
    dtype: torch.dtype,
    packed: bool,
    avx512: bool,
) -> None:
    monkeypatch.setattr(onednn, "has_avx512", lambda: avx512)
    made = cross_attention(
        layers=1, slots=1, heads=heads, context=20, state=STATE, device=CPU, dtype=dtype
    )
    kind = PackedCrossAttention if packed and avx512 else PlainCrossAttention
    assert isinstance(made, kind)


def self_attention(width: int = 3, columns: int = 30) -> SelfAttention:
    return SelfAttention(
        layers=LAYERS,
        slots=SLOTS,
        width=width,
        columns=columns,
        heads=2,
        state=STATE,
        device=devices.chosen(),
        dtype=torch.float32,
    )


def test_a_beam_sees_the_prompt_and_its_ancestors_only() -> None:
    attention, slot, prompt, width = self_attention(), 2, 4, 3
    device = devices.chosen()
    keys, values = torch.randn(2, prompt, STATE).to(device)
    attention.write_prompt(1, slot, keys, values)
    attention.begin(slot, prompt)
    histories = [list(zip(keys, values, strict=True)) for _ in range(width)]
    alone = SlotIndex.on(device, [slot])
    slots, beams = alone.index.repeat(width), torch.arange(width, device=device)
    for step, parents in enumerate([[0, 0, 0], [2, 0, 2], [1, 1, 0], [0, 1, 2]]):
        columns = prompt + step * width + beams
        end = prompt + (step + 1) * width
        attention.unmask(slots, beams, columns)
        k, v = torch.randn(2, width, STATE).to(device)
        attention.write(1, slots, columns, k, v)
        for beam in range(width):
            histories[beam].append((k[beam], v[beam]))
        queries = torch.randn(1, width, STATE).to(device)
        mask = attention.mask(alone, width, end)
        given = attention.attend(1, queries, alone, mask)
        for beam in range(width):
            seen = [torch.stack(x) for x in zip(*histories[beam], strict=True)]
            q, k, v = (split(x, 2) for x in (queries[0, beam : beam + 1], *seen))
            expected = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten()
            torch.testing.assert_close(given[0, beam], expected, rtol=0, atol=TOLERANCE)
        attention.reorder(alone.index, torch.tensor([parents]).to(device), end)
        histories = [list(histories[parent]) for parent in parents]


@pytest.mark.parametrize(
    "numbers", [[0], [0, 1, 2], [1], [2, 0], [3, 1, 2], [0, 2, 3], [0, 3], [1, 2]]
)
def test_each_window_meets_its_slot(numbers: list[int]) -> None:
    device = devices.chosen()
    store = torch.randn(SLOTS, 5).to(device)
    queries = torch.randn(len(numbers), 5).to(device)
    slots = SlotIndex.on(device, numbers)
    met = slots.gathered(slots.spread(queries) * slots.of(store))
    assert torch.equal(met, queries * store[slots.index])


@pytest.mark.parametrize("numbers", [[0, 1], [1, 2, 3], [1, 0], [0, 2, 3]])
def test_slots_that_lie_close_together_are_not_copied(numbers: list[int]) -> None:
    store = torch.randn(SLOTS, 5)
    given = SlotIndex.on(CPU, numbers).of(store)
    assert given.data_ptr() == store[min(numbers)].data_ptr()
