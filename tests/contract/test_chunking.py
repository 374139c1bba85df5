"""How a request asks for chunks."""

from typing import Any

import pytest

from deployments.contract.chunking import ServerVad
from tests.support.contract import parse, refusal_of

SERVER_VAD = {"type": "server_vad"}


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (None, None),
        ("", None),
        ("null", None),
        ("auto", ServerVad()),
        (" AUTO ", ServerVad()),
        (SERVER_VAD, ServerVad()),
        ({}, ServerVad()),
        (SERVER_VAD | {"threshold": 0}, ServerVad(threshold=0.0)),
        (SERVER_VAD | {"threshold": "0.7"}, ServerVad(threshold=0.7)),
        (SERVER_VAD | {"threshold": None}, ServerVad()),
        (
            '{"type": "server_vad", "silence_duration_ms": 500.0}',
            ServerVad(silence_duration_ms=500),
        ),
        (
            {"type": "Server_VAD", "prefix_padding_ms": "0", "threshold": ""},
            ServerVad(prefix_padding_ms=0),
        ),
    ],
)
def test_a_strategy_is_read_as_clients_write_it(given: Any, read: Any) -> None:
    assert parse(chunking_strategy=given).options.chunking_strategy == read


@pytest.mark.parametrize(
    "given",
    [
        "vad",
        "server_vad",
        True,
        5,
        [],
        {"type": "auto"},
        {"type": "semantic_vad"},
        "{broken",
        SERVER_VAD | {"threshold": 1.01},
        SERVER_VAD | {"threshold": -0.1},
        SERVER_VAD | {"threshold": float("nan")},
        SERVER_VAD | {"prefix_padding_ms": 10_001},
        SERVER_VAD | {"prefix_padding_ms": 0.5},
        SERVER_VAD | {"silence_duration_ms": -1},
        SERVER_VAD | {"max_speech_ms": 1},
    ],
)
def test_anything_else_is_refused_with_the_rule(given: Any) -> None:
    assert refusal_of(chunking_strategy=given) == (
        'Invalid chunking_strategy: must be null, "auto" or {"type": "server_vad"}, which may have'
        " threshold (0 to 1), prefix_padding_ms (0 to 10,000) and silence_duration_ms"
        " (0 to 60,000)"
    )


def test_chunks_and_clips_exclude_each_other() -> None:
    assert parse(chunking_strategy="auto", clip_timestamps="0").options
    assert refusal_of(chunking_strategy="auto", clip_timestamps=[0, 30]) == (
        "Invalid chunking_strategy: finds its own clips; leave clip_timestamps out"
    )
