"""Parts of the end-to-end tests: a running application, requests to it, its replicas' processes."""

import contextlib
import http.client
import http.server
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import requests
import torch
from ray.util import list_named_actors
from whisper.model import ModelDimensions, Whisper

ROOT = Path(__file__).parents[2]
AUDIO = ROOT / "tests" / "audio"

# Nobody listens there, so that weights which are not on this machine cannot be downloaded, with or
# without a network.
DEAD_PROXY = "http://127.0.0.1:9"

# Five minutes of a long recording, with few decoding steps.
LONG_AND_LIGHT = {
    "clip_timestamps": "0,300",
    "beam_size": None,
    "temperature_increment_on_fallback": None,
    "condition_on_previous_text": False,
}

# The loopback URL of a file of tests/audio.
Url = Callable[[str], str]


def repeated(times: int) -> dict[str, Any]:
    """Fields of a request that decodes the first ten seconds of its audio this many times."""
    clips = [0.0, 10.0] * times
    return {"clip_timestamps": clips, "condition_on_previous_text": False}


# More work than any machine does during a test. The caller has to leave.
ENDLESS = repeated(2000)


@dataclass(frozen=True)
class App:
    """A running application. checkpoints: the folder in which its replicas look for weights."""

    url: str
    checkpoints: Path

    def post(self, **request: Any) -> requests.Response:
        return requests.post(f"{self.url}/transcribe", json=request, timeout=300)

    def transcribe(self, **request: Any) -> dict[str, Any]:
        """The answer to a request that must succeed."""
        response = self.post(**request)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def model(self, name: str) -> dict[str, Any]:
        """The entry of a model in GET /models."""
        models = requests.get(f"{self.url}/models", timeout=10).json()["data"]
        [model] = [model for model in models if model["id"] == name]
        return dict(model)


@contextlib.contextmanager
def calling(app: App, **request: Any) -> Iterator[None]:
    """A request whose caller hangs up at the end of the block, before there is an answer."""
    connection = http.client.HTTPConnection(app.url.removeprefix("http://"))
    connection.request("POST", "/transcribe", json.dumps(request))
    try:
        yield
    finally:
        connection.close()


def replica_pids(deployment: str, application: str = "whisper") -> list[int]:
    """Process ids of the deployment's living replicas."""
    name = f"SERVE_REPLICA::{application}#{deployment}#"
    actors = [
        ray.get_actor(actor["name"], actor["namespace"])
        for actor in list_named_actors(all_namespaces=True)
        if actor["name"].startswith(name)
    ]
    return ray.get([a.__ray_call__.remote(lambda _: os.getpid()) for a in actors])


def session_logs() -> Path:
    """The log folder of the tests' cluster; other Rays on the machine have their own."""
    [node] = ray.nodes()
    return Path(node["ObjectStoreSocketName"]).parents[1] / "logs"


def clean_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """A new shell's environment with these variables: nothing of what this process was given.

    Its home is another one, where Ray finds no token.
    """
    return {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "PYTHONPATH": str(ROOT),
        **variables,
    }


def wait_for(condition: Callable[[], object], timeout_s: float = 60) -> None:
    """Return once the condition holds.

    The limit only ends a test that has failed; nothing is measured by it.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.05)


@contextlib.contextmanager
def served_folder(folder: Path) -> Iterator[Url]:
    """Serve a folder on loopback; gives the URL of a file in it."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield lambda name: f"http://127.0.0.1:{server.server_port}/{name}"
        server.shutdown()


def random_checkpoint(path: Path, **dims: int) -> Path:
    """Write a small random model in OpenAI's layout.

    The model has large-v3's input and vocabulary unless `dims` say otherwise.
    """
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
    # Upstream leaves this parameter uninitialised, because checkpoints overwrite it.
    torch.nn.init.normal_(model.decoder.positional_embedding)
    content = {"dims": shape, "model_state_dict": model.state_dict()}
    # A replica may look at the path while the file is written, so the file gets its name last.
    torch.save(content, path.with_suffix(".part"))
    return path.with_suffix(".part").rename(path)
