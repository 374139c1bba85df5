"""From a checkpoint file to an engine that is ready for its first request.

This module imports torch and the engine, which takes seconds: a replica imports it in the thread
that loads the model.
"""

import contextlib
import threading
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
from deployments.contract.errors import CheckpointError, DeviceError
from deployments.cpus import cpu_threads
from deployments.engine import Engine, own_process
from deployments.engine.upstream.model_facts import set_official_alignment_heads
from deployments.engine.upstream.timing import compile_dtw
from deployments.logs import Stages

# Warming up is one decode. On a CPU it costs more than it saves the first request.
_WARMED_UP_DEVICES = ("cuda",)
# How long to wait for the engine's thread to end; it may be in the middle of a step.
_ENGINE_END_S = 60


def load_engine(
    path: Path, official: OfficialModel | None, gpu_share: float, stages: Stages
) -> Engine:
    """Load a checkpoint and start an engine on it.

    gpu_share: what the engine may take of the GPU's memory; 0: it runs on the CPU
    stages: notes how long reading, preparing and warming up take

    Raises CheckpointError as `load_model` does, DeviceError as `card_memory` does, MemoryError
    where the model does not fit, and whatever else goes wrong; call `empty_gpu_cache` once the
    error's traceback is gone.
    """
    own_process()
    try:
        memory_bytes = int(gpu_share * card_memory()) if gpu_share else None
        model = load_model(path, official)
        stages.done("read")
        device = "cuda" if gpu_share else "cpu"
        engine = Engine(model, memory_bytes=memory_bytes, device=device)
        # The engine has its own copy of the weights.
        del model
        empty_gpu_cache()
        stages.done("prepare")
        if device in _WARMED_UP_DEVICES:
            try:
                warm_up(engine)
            except BaseException:
                engine.close()
                # The engine's thread holds weights and slots until it ends.
                engine.join(_ENGINE_END_S)
                raise
            stages.done("warm_up")
    except torch.OutOfMemoryError as error:
        raise MemoryError from error
    # The first request for word timestamps would wait for this; it needs no model.
    threading.Thread(target=compile_dtw, daemon=True).start()
    return engine


def load_model(path: Path, official: OfficialModel | None) -> Whisper:
    """Load a checkpoint in OpenAI's layout, on the CPU.

    official: the model that these weights are or started from, which names the alignment heads for
        word times; None: upstream's default, every head in the upper half of the decoder

    Raises CheckpointError if the file is no checkpoint or not of the official model's shape, and
    MemoryError where the model does not fit.
    """
    _limit_threads(cpu_threads())
    model = _read(path)
    if official is not None:
        try:
            set_official_alignment_heads(model, official.name)
        except RuntimeError:
            raise _wrong_shape(path, official) from None
        if model.dims.n_vocab != official.n_vocab:
            raise _wrong_shape(path, official)
    return model.eval()


def card_memory() -> int:
    """Bytes of the first GPU of this process.

    Ask `nvidia.problem` first: it knows more of the reasons, and says what to change.

    Raises DeviceError where PyTorch cannot use the GPU.
    """
    try:
        card = torch.cuda.get_device_properties(0)
        architectures = torch.cuda.get_arch_list()
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, RuntimeError) as error:
        raise DeviceError(_cuda_failure(error)) from None
    if not has_code_for((card.major, card.minor), architectures):
        raise DeviceError(
            f"this build of PyTorch ({torch.__version__}) has no code for the card {card.name}"
            f" (compute capability {card.major}.{card.minor}; it has {' '.join(architectures)})"
        )
    return int(card.total_memory)


def has_code_for(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Whether one of the architectures that PyTorch was built for runs on a card.

    architectures: of `torch.cuda.get_arch_list()`. Machine code (`sm_86`) runs on cards of the same
        major version that are not older; intermediate code (`compute_120`) on all that are not
        older. Code for one card alone (`sm_90a`) does not count. An empty list says
        nothing about the build, and counts as suitable.
    """
    for architecture in architectures:
        kind, _, number = architecture.partition("_")
        if not number.isdigit():
            continue
        built = int(number[:-1]), int(number[-1])
        if built <= capability and (kind == "compute" or built[0] == capability[0]):
            return True
    return not architectures


def warm_up(engine: Engine) -> None:
    """A tiny decode, so that the first request does not pay for lazy initialisation."""
    silence = np.zeros(SAMPLE_RATE, dtype=np.float32)
    engine.transcribe(
        silence, language="en", temperature=0.0, beam_size=5, sample_len=2
    )


def empty_gpu_cache() -> None:
    """Give memory of the GPU that PyTorch holds and does not use to other processes."""
    # Where an earlier error has broken this process's CUDA context, it is raised again here.
    with contextlib.suppress(Exception):
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def breaks_gpu(error: BaseException) -> bool:
    """Whether every further CUDA call of this process fails: a kernel has failed."""
    return isinstance(error, torch.AcceleratorError)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the GPU's memory did not suffice, which a later request may find otherwise."""
    return isinstance(error, torch.OutOfMemoryError)


def _cuda_failure(error: Exception) -> str:
    """What CUDA says at its first call, before it has seen any request."""
    line = str(error).partition("\n")[0]
    # What follows is where to download a driver.
    said = line.partition(" Please ")[0].rstrip(".")
    return (
        f"PyTorch {torch.__version__}, built for CUDA {torch.version.cuda},"
        f" cannot use the GPU: {said}"
    )


def _limit_threads(threads: int) -> None:
    # Ray sets OMP_NUM_THREADS=1 for actors that reserve no CPU.
    torch.set_num_threads(threads)
    # PyTorch refuses a second call, of a second attempt to load, once such threads run.
    with contextlib.suppress(RuntimeError):
        torch.set_num_interop_threads(threads)


def _read(path: Path) -> Whisper:
    try:
        # The checkpoint replaces random weights, whose drawing takes seconds: eight for turbo.
        with _WithoutInitialisation():
            return whisper.load_model(str(path.resolve()), device="cpu")
    except (MemoryError, PermissionError, FileNotFoundError):
        raise
    except Exception as error:  # noqa: BLE001 - torch.load raises a type of its own for each way to be broken
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
