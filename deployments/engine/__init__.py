"""Transcription of many recordings at once, each exactly as OpenAI's Whisper does it alone.

Nothing in this package knows of Ray, HTTP, URLs or files. Its parts import one way: a line of this
list imports only from the lines above it.

    model/            encoder, decoder and their key/value stores, for many windows at once
    decoding/         the windows that decode together: logit filters, beam search, row layout
    upstream/         every tie to the insides of the `whisper` package
    model_runner.py   one copy of a model on its device, and what is computed with it
    tasks.py          what a transcription asks for, and what it holds
    backoff.py        smaller steps after a failure
    queues.py         who waits for what, and who has which slot
    scheduler.py      the thread that does all the model's work
    session.py        a transcription's side of the scheduler
    engine.py         the face
"""

from deployments.engine.engine import Engine, EngineStats, own_process
from deployments.engine.tasks import (
    DecodingLimitExceeded,
    EngineClosedError,
    TranscriptionCancelled,
    Usage,
)

__all__ = [
    "DecodingLimitExceeded",
    "Engine",
    "EngineClosedError",
    "EngineStats",
    "TranscriptionCancelled",
    "Usage",
    "own_process",
]
