"""A device that is not the CPU, for machines without a GPU.

The CPU's kernels do its work, but its tensors are as far from the CPU's as those of a GPU: an operation on both
fails, and only copies cross over. Every operation can be watched, with the thread that asked for it and whether a
host would have to wait for its result.

Built on PyTorch's registration of a backend in Python (`torch.utils.backend_registration`).
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "emulated"

aten = torch.ops.aten
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


@dataclass(frozen=True)
class Operation:
    """Something that was asked of the device.

    launches: whether a GPU would have something to do for it, which a view of a tensor is not
    waits: whether the host would wait until the GPU has done all that it was asked for before
    thread: the name of the thread that asked
    """

    name: str
    launches: bool
    waits: bool
    thread: str


class EmulatedTensor(Tensor):
    """A tensor on the device. here: the same as the CPU sees it, which views and their origins share."""

    here: Tensor

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, here: Tensor) -> Self:
        # PyTorch demands that a view of a tensor from outside the inference mode is such a tensor too.
        with torch.inference_mode(here.is_inference()):
            tensor = Tensor._make_wrapper_subclass(
                cls,
                here.shape,
                strides=here.stride(),
                storage_offset=here.storage_offset(),
                dtype=here.dtype,
                device=torch.device(NAME, 0),
            )
        tensor.here = here
        return tensor

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(function, *args, **(kwargs or {}))

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __deepcopy__(self, _: Any) -> Self:
        return type(self)(self.here.clone())


_watchers: list[Callable[[Operation], None]] = []


@contextlib.contextmanager
def watched() -> Iterator[list[Operation]]:
    """All that is asked of the device meanwhile, by any thread."""
    operations: list[Operation] = []
    watcher = operations.append
    _watchers.append(watcher)
    try:
        yield operations
    finally:
        _watchers.remove(watcher)


def install() -> None:
    """Let `torch.device("emulated")` be such a device, from now on and once in a process."""
    if torch._C._get_privateuse1_backend_name() == NAME:
        return
    memory = 1 << 34
    _setup_privateuseone_for_python_backend(
        NAME,
        backend_module=SimpleNamespace(
            is_available=lambda: True,
            is_initialized=lambda: True,
            _is_in_bad_fork=lambda: False,
            manual_seed_all=lambda seed: None,
            device_count=lambda: 1,
            current_device=lambda: 0,
            synchronize=lambda device=None: None,
            get_device_capability=lambda device=None: (9, 0),
            mem_get_info=lambda device=None: (memory, memory),
            memory_reserved=lambda device=None: 0,
            memory_allocated=lambda device=None: 0,
        ),
    )
    for function in _FACTORIES:
        _library.impl(_name(function), _factory(function), "PrivateUse1")
    _library.impl("_copy_from", _copy_from, "PrivateUse1")


# All others are made of these.
_FACTORIES = (
    aten.empty.memory_format,
    aten.empty_strided.default,
    aten.arange.default,
    aten.arange.start,
    aten.arange.start_step,
    aten.hann_window.default,
)
# Made of operations that change the shape of a tensor in place, which is not supported here.
_WHOLE = {"matmul", "linear", "einsum", "stft", "scaled_dot_product_attention"}
_library = torch.library.Library("aten", "IMPL")


def _factory(function: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: _run(function, *args, **kwargs)


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    # Where PyTorch copies without asking the tensors: the data of `torch.tensor(values, device=...)`.
    _report("aten::copy_", launches=True, waits=not non_blocking)
    _here(target).copy_(_here(source))
    return target


def _run(function: Any, *args: Any, **kwargs: Any) -> Any:
    if _is_composite(function):
        return function._op_dk(_COMPOSITE, *args, **kwargs)
    tensors: list[Tensor] = []
    tree_map(
        lambda x: tensors.append(x) if isinstance(x, Tensor) else None, (args, kwargs)
    )
    name = function._schema.name
    ours = [t for t in tensors if isinstance(t, EmulatedTensor)]
    others = [t for t in tensors if not isinstance(t, EmulatedTensor) and t.dim()]
    if ours and others and name not in _COPIES | _MAY_MIX:
        raise RuntimeError(f"{name}: tensors on {NAME} and on the CPU")
    target = kwargs.get("device")
    if name == "aten::copy_":
        stays = isinstance(args[0], EmulatedTensor)
    elif target is not None:
        stays = torch.device(target).type == NAME
    else:
        stays = bool(ours) and name not in _ANSWERS
    _report(
        name,
        launches=not function.is_view and name not in _COST_NOTHING,
        waits=_waits(name, args, kwargs, crosses=bool(ours) != stays or bool(others)),
    )
    mine = {id(t.here): t for t in ours}
    given, options = tree_map(_translated, (args, kwargs))
    options.pop("pin_memory", None)
    result = _KERNELS.get(name, function)(*given, **options)

    def wrapped(x: Any) -> Any:
        if not stays or not isinstance(x, Tensor) or isinstance(x, EmulatedTensor):
            return x
        # What changes a tensor in place returns that tensor.
        if id(x) not in mine:
            return EmulatedTensor(x)
        assert mine[id(x)].shape == x.shape, f"{name} changes the shape of a tensor"
        return mine[id(x)]

    return tree_map(wrapped, result)


def _is_composite(function: Any) -> bool:
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return has_kernel(function.name(), _COMPOSITE) and _name(function) not in _WHOLE


def _name(function: Any) -> str:
    return str(function.name()).removeprefix("aten::")


def _here(x: Any) -> Any:
    return x.here if isinstance(x, EmulatedTensor) else x


def _translated(x: Any) -> Any:
    return torch.device("cpu") if isinstance(x, torch.device) else _here(x)


def _report(name: str, launches: bool, waits: bool) -> None:
    if _watchers:
        thread = threading.current_thread().name
        operation = Operation(name, launches, waits, thread)
        for watcher in [*_watchers]:
            watcher(operation)


_COPIES = {"aten::copy_", "aten::_to_copy", "aten::_copy_from"}
_MAY_MIX = {"aten::_has_compatible_shallow_copy_type"}
# Their results are no tensors.
_ANSWERS = {"aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero"}
# The size of their results depends on values.
_UNFORESEEABLE = {
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
}
_COST_NOTHING = {
    "aten::empty",
    "aten::empty_strided",
    "aten::empty_like",
    "aten::new_empty",
    "aten::new_empty_strided",
    "aten::_unsafe_view",
    "aten::_reshape_alias",
    "aten::lift_fresh",
    "aten::detach_",
    "aten::_has_compatible_shallow_copy_type",
}


def _waits(name: str, args: Any, kwargs: Any, crosses: bool) -> bool:
    if name in _ANSWERS | _UNFORESEEABLE:
        return True
    if name in ("aten::index", "aten::index_put", "aten::index_put_"):
        # Masks are turned into indices first, of which nobody knows how many there are.
        return any(i is not None and i.dtype == torch.bool for i in args[1])
    if name == "aten::repeat_interleave" and kwargs.get("output_size") is None:
        return True
    if name in _COPIES and crosses:
        asks_not_to = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
        return not asks_not_to
    return False


def _flash(
    q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, causal: bool = False
) -> tuple[Tensor | int, ...]:
    assert q.dtype == torch.float16
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    unused = torch.empty(0)
    return out, unused, unused, unused, 0, 0, unused, unused, unused


def _memory_efficient(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    log_sumexp: bool,
    dropout: float = 0.0,
    causal: bool = False,
) -> tuple[Tensor, ...]:
    if bias is not None:
        # What the kernel demands of it.
        assert bias.shape == (*q.shape[:3], k.shape[2])
        assert bias.dtype == q.dtype
        assert bias.stride(-1) == 1
        assert all(stride % 8 == 0 for stride in bias.stride()[:-1])
    out = F.scaled_dot_product_attention(q, k, v, bias, is_causal=causal)
    unused = torch.empty(0)
    return out, unused, unused, unused


def _reflection_pad(x: Tensor, padding: list[int]) -> Tensor:
    # There is no such kernel for integers on a GPU.
    assert x.dtype.is_floating_point
    return aten.reflection_pad1d.default(x, padding)


_KERNELS = {
    "aten::reflection_pad1d": _reflection_pad,
    "aten::_scaled_dot_product_flash_attention": _flash,
    "aten::_scaled_dot_product_efficient_attention": _memory_efficient,
}
