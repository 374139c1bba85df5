"""One Ray cluster for the whole test session, with three applications on it.

`app` is the product on a CPU. `impatient` has small limits. `crowded` has models that ask for a
GPU: Ray is told that there is one, whether the machine has it or not.
"""

import contextlib
import json
from collections.abc import Iterator

import pytest
from ray import serve

from deployments import catalog, launch, serve_config
from deployments.app import build_app
from deployments.config import AppArgs, ModelArgs
from deployments.local import loopback
from tests.support.app import (
    AUDIO,
    DEAD_PROXY,
    App,
    Url,
    random_checkpoint,
    served_folder,
)
from tests.support.http_server import served_file
from tests.support.recordings import as_wav, pcm
from tools.weights import weights


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
    args = AppArgs(models=models, device="cpu", allow_private_networks=True)
    for name in ("base", "tiny.en"):
        path = weights(name)
        (folder / path.name).symlink_to(path)
    config, _ = serve_config.read_config()
    port = loopback.free_port(config.http_options.host)
    environment = {
        "WHISPER_CHECKPOINT_DIR": str(folder),
        "XDG_CACHE_HOME": str(own),
        "HTTPS_PROXY": DEAD_PROXY,
        "https_proxy": DEAD_PROXY,
        "RAY_OVERRIDE_RESOURCES": json.dumps({"GPU": 1}),
    }
    with contextlib.ExitStack() as stack:
        # Ray's processes inherit the environment at their start; the other tests run without it.
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            url = stack.enter_context(launch.running_app(config, args, port))
        yield App(url, folder)


@pytest.fixture(scope="session")
def impatient(app: App) -> App:
    """An application whose limits small requests break."""
    args = AppArgs(
        default_model="tiny.en",
        models=[ModelArgs(name="tiny.en")],
        device="cpu",
        request_timeout_s=1,
        max_requests_per_model=1,
        max_waiting_requests=0,
        max_audio_s=15,
        max_download_bytes=500_000,
        allow_private_networks=True,
    )
    serve.run(build_app(args), name="impatient", route_prefix="/impatient")
    return App(f"{app.url}/impatient", app.checkpoints)


@pytest.fixture(scope="session")
def crowded(app: App, tmp_path_factory: pytest.TempPathFactory) -> App:
    """An application of two models on a GPU that has room for one of them."""
    own = str(random_checkpoint(tmp_path_factory.mktemp("crowded") / "own.pt"))
    args = AppArgs(
        default_model="first",
        models=[
            ModelArgs(name="first", checkpoint=own, gpu_share=0.6, min_replicas=0),
            ModelArgs(name="second", checkpoint=own, gpu_share=0.6, idle_s=2),
        ],
        device="cuda",
        # Without it, no application is built for a GPU that PyTorch cannot use.
        gpu_memory_gb=24,
        allow_private_networks=True,
    )
    serve.run(build_app(args), name="crowded", route_prefix="/crowded")
    return App(f"{app.url}/crowded", app.checkpoints)


@pytest.fixture(scope="session")
def audio_url() -> Iterator[Url]:
    """Gives the loopback URL of a file of tests/audio."""
    with served_folder(AUDIO) as url:
        yield url


@pytest.fixture(scope="session")
def long_recording(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The loopback URL of ten minutes of speech."""
    path = tmp_path_factory.mktemp("long") / "long.wav"
    path.write_bytes(as_wav(*[pcm("jfk.flac")] * 55))
    with served_file(path) as url:
        yield url
