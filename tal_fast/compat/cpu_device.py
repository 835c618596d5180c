# SPDX-License-Identifier: Apache-2.0
"""``--device cpu``: what a script sends to CUDA stays on the CPU. For tests and small work.

Calls of torch with a CUDA device are given the CPU, ``.cuda()`` returns what it is called on,
``DataParallel`` is the module alone, NCCL is Gloo, and what asks a GPU to wait, count or forget
does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

__all__ = ["put_on_cpu"]

#: Of ``torch.cuda``: what they return. Scripts divide by the number of devices, so the CPU is one.
_NOTHING: dict[str, Any] = {
    "current_device": 0,
    "device_count": 1,
    "empty_cache": None,
    "is_available": False,
    "manual_seed": None,
    "manual_seed_all": None,
    "max_memory_allocated": 0,
    "max_memory_reserved": 0,
    "memory_allocated": 0,
    "memory_reserved": 0,
    "reset_peak_memory_stats": None,
    "set_device": None,
    "synchronize": None,
}


def put_on_cpu(torch: ModuleType) -> Callable[[], None]:
    """Changes a loaded torch, and returns what undoes that."""
    undoes: list[Callable[[], None]] = []

    def put(owner: Any, name: str, value: Any) -> None:
        before = vars(owner).get(name)
        missing = name not in vars(owner)
        setattr(owner, name, value)
        undoes.append(lambda: delattr(owner, name) if missing else setattr(owner, name, before))

    mode = _mode_of(torch)
    mode.__enter__()
    undoes.append(lambda: mode.__exit__(None, None, None))
    for name, value in _NOTHING.items():
        put(torch.cuda, name, _constant(value))
    for owner in (torch.UntypedStorage, torch.TypedStorage):
        put(owner, "cuda", lambda self, *args, **kwargs: self)
    put(torch.nn, "DataParallel", _data_parallel(torch))
    parallel = torch.nn.parallel
    put(parallel, "DataParallel", torch.nn.DataParallel)
    put(parallel, "DistributedDataParallel", _distributed(parallel.DistributedDataParallel))
    original_load = torch.load

    def load(f: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        if map_location is None or isinstance(map_location, (str, torch.device)):
            map_location = "cpu"
        return original_load(f, map_location, *args, **kwargs)

    put(torch, "load", load)
    if torch.distributed.is_available():
        begin = torch.distributed.init_process_group

        def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> Any:
            kwargs.pop("device_id", None)
            return begin("gloo" if backend in (None, "nccl") else backend, *args, **kwargs)

        put(torch.distributed, "init_process_group", init_process_group)

    def undo() -> None:
        for step in reversed(undoes):
            step()

    return undo


def _constant(value: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: value


def _mode_of(torch: ModuleType) -> Any:
    from torch.overrides import TorchFunctionMode

    cpu = torch.device("cpu")

    def of_cpu(value: Any) -> Any:
        if isinstance(value, torch.device):
            return cpu if value.type == "cuda" else value
        return cpu if isinstance(value, str) and value.partition(":")[0] == "cuda" else value

    def named(value: Any) -> Any:
        # A number is a GPU's, too.
        whole = isinstance(value, int) and not isinstance(value, bool)
        return cpu if whole else of_cpu(value)

    # Function -> place of what may be a device among its arguments.
    moving = {torch.Tensor.to: 1, torch._C._nn._parse_to: 0}
    staying = {torch.Tensor.cuda, torch.Tensor.pin_memory}

    class OnCPU(TorchFunctionMode):
        # Called for every use of a tensor, its attributes included: most have nothing to change.
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if function in staying:
                return args[0]
            place = moving.get(function)
            if place is not None and len(args) > place:
                args = (*args[:place], named(args[place]), *args[place + 1 :])
            if not kwargs:
                return function(*args)
            if "device" in kwargs:
                kwargs = {**kwargs, "device": named(kwargs["device"])}
            if kwargs.get("pin_memory"):
                kwargs = {**kwargs, "pin_memory": False}
            return function(*args, **kwargs)

    return OnCPU()


def _data_parallel(torch: ModuleType) -> type:
    class DataParallel(torch.nn.DataParallel):  # type: ignore[name-defined]
        """The module alone, under the name ``module``."""

        def __init__(self, module: Any, *args: Any, **kwargs: Any) -> None:
            torch.nn.Module.__init__(self)
            self.module = module
            self.device_ids: list[int] = []
            self.dim = 0

        def forward(self, *inputs: Any, **kwargs: Any) -> Any:
            return self.module(*inputs, **kwargs)

    return DataParallel


def _distributed(original: type) -> type:
    class DistributedDataParallel(original):
        """On the CPU whatever devices are named."""

        def __init__(
            self,
            module: Any,
            device_ids: Any = None,
            output_device: Any = None,
            *args: Any,
            **kwargs: Any,
        ) -> None:
            super().__init__(module, None, None, *args, **kwargs)

    return DistributedDataParallel
