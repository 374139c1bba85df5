"""A device that is not the CPU, for machines without a GPU.

The CPU's kernels do the work, but the device's tensors cannot be mixed with the CPU's: only copies
cross over, as with a GPU. A test can watch every operation, the thread that asked for it, and
whether a host would have to wait.

This module uses PyTorch's registration of a backend in Python (`torch.utils.backend_registration`).
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
    """One operation on the device.

    launches: whether a GPU would launch a kernel or a copy for it; a view of a tensor needs neither
    waits: whether the host would wait until the GPU has finished all earlier work
    thread: name of the thread that called the operation
    """

    name: str
    launches: bool
    waits: bool
    thread: str


class EmulatedTensor(Tensor):
    """A tensor on the device.

    here: the CPU tensor that holds its values; a view's shares those of its base
    """

    here: Tensor

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, here: Tensor) -> Self:
        # A view must be an inference tensor exactly when its base is one.
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
    """Record the operations of all threads."""
    operations: list[Operation] = []
    watcher = operations.append
    _watchers.append(watcher)
    try:
        yield operations
    finally:
        _watchers.remove(watcher)


def install() -> None:
    """Make `torch.device("emulated")` such a device for the rest of the process."""
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


# PyTorch makes all other new tensors from these.
_FACTORIES = (
    aten.empty.memory_format,
    aten.empty_strided.default,
    aten.arange.default,
    aten.arange.start,
    aten.arange.start_step,
    aten.hann_window.default,
)
# These are not taken apart: their parts change the shape of a tensor in place, which is not
# supported here.
_WHOLE = {"matmul", "linear", "einsum", "stft", "scaled_dot_product_attention"}
_library = torch.library.Library("aten", "IMPL")


def _factory(function: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: _run(function, *args, **kwargs)


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    # `torch.tensor(values, device=...)` copies its data by this operator, below
    # `__torch_dispatch__`.
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
        # An operation in place returns the tensor that it was given.
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
# These do not return tensors.
_ANSWERS = {"aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero"}
# The size of their results depends on values on the device.
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
        # A mask is turned into indices first, whose number depends on values on the device.
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
        # The kernel of a GPU demands this.
        assert bias.shape == (*q.shape[:3], k.shape[2])
        assert bias.dtype == q.dtype
        assert bias.stride(-1) == 1
        assert all(stride % 8 == 0 for stride in bias.stride()[:-1])
    out = F.scaled_dot_product_attention(q, k, v, bias, is_causal=causal)
    unused = torch.empty(0)
    return out, unused, unused, unused


def _reflection_pad(x: Tensor, padding: list[int]) -> Tensor:
    # A GPU has this kernel for floating-point numbers only.
    assert x.dtype.is_floating_point
    return aten.reflection_pad1d.default(x, padding)


_KERNELS = {
    "aten::reflection_pad1d": _reflection_pad,
    "aten::_scaled_dot_product_flash_attention": _flash,
    "aten::_scaled_dot_product_efficient_attention": _memory_efficient,
}
