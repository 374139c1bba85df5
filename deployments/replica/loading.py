"""From a checkpoint file to a model that is ready for its first request."""

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import whisper
from torch.overrides import TorchFunctionMode
from whisper.audio import SAMPLE_RATE
from whisper.model import Whisper

from deployments.catalog import OfficialModel
from deployments.contract.errors import CheckpointError
from deployments.engine import Engine


def load_model(path: Path, official: OfficialModel | None) -> Whisper:
    """Load a checkpoint in OpenAI's layout, on the CPU.

    official: the model that these weights are or started from, which tells the alignment heads for word
        times; None: upstream's default, every head in the upper half of the decoder

    Raises CheckpointError if the file is no checkpoint or not of the official model's shape, and
    MemoryError where the model does not fit.
    """
    # Ray sets OMP_NUM_THREADS=1 for actors that reserve no CPU.
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = _read(path)
    if official is not None:
        try:
            model.set_alignment_heads(whisper._ALIGNMENT_HEADS[official.name])
        except RuntimeError:
            raise _wrong_shape(path, official) from None
        if model.dims.n_vocab != official.n_vocab:
            raise _wrong_shape(path, official)
    return model.eval()


def card_memory() -> int:
    """Bytes of this machine's first GPU."""
    return int(torch.cuda.get_device_properties(0).total_memory)


def _read(path: Path) -> Whisper:
    try:
        # Drawing random weights for the checkpoint to replace takes seconds: eight for turbo.
        with _WithoutInitialisation():
            return whisper.load_model(str(path.resolve()), device="cpu")
    except (MemoryError, PermissionError, FileNotFoundError):
        raise
    except Exception as error:  # noqa: BLE001 - torch.load has one for every way to be broken
        if "can't allocate memory" in str(error):
            raise MemoryError from None
        raise CheckpointError(
            f"'{path.name}' is not a Whisper checkpoint ({type(error).__name__})"
        ) from None


class _WithoutInitialisation(TorchFunctionMode):
    """Leaves alone what torch.nn.init would fill, in this thread."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == torch.nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def _wrong_shape(path: Path, official: OfficialModel) -> CheckpointError:
    return CheckpointError(
        f"the weights in '{path.name}' are not of the shape of model '{official.name}'"
    )


def warm_up(engine: Engine) -> None:
    """A tiny decode, so that the first request does not pay for lazy initialisation."""
    silence = np.zeros(SAMPLE_RATE, dtype=np.float32)
    engine.transcribe(
        silence, language="en", temperature=0.0, beam_size=5, sample_len=2
    )
