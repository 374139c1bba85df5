"""A Router over handles that answer as a test tells them. No Ray cluster."""

import base64
from pathlib import Path
from typing import Any, cast

from deployments.audio.spool import Spool
from deployments.config import AppArgs, ModelArgs
from deployments.router.decoding import Decoder
from deployments.router.in_flight import InFlight
from deployments.router.router import Router
from tests.support.handles import Handle
from tests.support.sandbox import SANDBOX
from tests.support.shared_audio import shared

AUDIO = Path(__file__).parents[1] / "audio"

# A recording inside a request: no server is needed, and the real decoder reads it.
RECORDING = {
    "audio_base64": base64.b64encode((AUDIO / "jfk-phone.wav").read_bytes()).decode()
}


def router(handle: Handle, *names: str, running: int = 1, **args: Any) -> Router:
    """A Router whose models all have the same handle.

    names: of the models; base alone if there are none
    running: replicas of each model
    args: options of the application; the tests' servers of recordings are on loopback
    """
    args.setdefault("allow_private_networks", True)
    models = [ModelArgs(name=name) for name in names or ("base",)]
    app_args = AppArgs(models=models, default_model=models[0].name, **args)
    return Router(
        app_args,
        {model.name: cast(Any, handle) for model in models},
        {model.name: 0.0 for model in models},
        running_replicas=lambda: {model.deployment: running for model in models},
        share_audio=shared,
        decoder=Decoder(app_args, SANDBOX),
    )


class BrokenRouter:
    """A Router that fails in an unforeseen way, with a text that is for nobody."""

    args = AppArgs()
    in_flight = InFlight()
    spool = Spool(args.max_spool_bytes)

    async def health(self) -> None:
        raise ValueError("SECRET")

    async def models(self) -> None:
        raise ValueError("SECRET")

    async def ready(self) -> None:
        raise ValueError("SECRET")
