# SPDX-License-Identifier: Apache-2.0
"""Records the calls of a step on a CPU and replays them: what a CUDA graph does, without a GPU.

A graph holds the kernels that ran and the addresses that they read and wrote, and no Python. So
does a :class:`CallRecorder`: the calls that reached the dispatcher, with the very tensors. What a
step has decided in Python (a learning rate, a count of steps, a seed) is as frozen as in a graph.
"""

from __future__ import annotations

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

# A graph cannot hold what these give to the host.
READ_BACK = (
    "aten._local_scalar_dense", "aten.item", "aten.is_nonzero", "aten.nonzero.default",
    "aten.equal", "aten.masked_select", "aten.unique", "aten._unique2", "aten.index.Tensor_mask",
)  # fmt: skip


class Recording(TorchDispatchMode):
    """Keeps every call below autograd; refuses those that hand a value to the host."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if str(function).startswith(READ_BACK):
            raise RuntimeError(f"operation not permitted when stream is capturing: {function}")
        result = function(*args, **kwargs)
        self.calls.append((function, args, kwargs, result))
        return result


def _storages(tree):
    return {
        item.untyped_storage().data_ptr()
        for item in pytree.tree_leaves(tree)
        if isinstance(item, torch.Tensor)
    }


class CallRecorder:
    """Stands in for CUDA graphs; ``replays`` counts how often a recorded step has run."""

    def __init__(self):
        self.replays = 0
        self.recorded = 0
        self.warmed = 0

    def warm_up(self, function):
        self.warmed += 1
        return function()

    def record(self, function):
        # Recording runs the step, which a CUDA graph does not: the first replay is that run.
        with Recording() as recording:
            found = function()
        self.recorded += 1
        state = {"ran": True}

        @torch.no_grad()
        def replay():
            self.replays += 1
            if state.pop("ran", False):
                return
            for function, args, kwargs, result in recording.calls:
                again = function(*args, **kwargs)
                given = _storages((args, kwargs))
                pairs = zip(pytree.tree_leaves(result), pytree.tree_leaves(again), strict=True)
                for old, new in pairs:
                    # A view, or what was changed in place, is there already.
                    if isinstance(old, torch.Tensor) and not _storages(old) & given:
                        old.copy_(new)

        return replay, found


class AsItIs:
    """Runs every step of a shape on its static batch, and records nothing."""

    def warm_up(self, function):
        return function()

    def record(self, function):
        result = {}

        def replay():
            found = function()
            for key, value in found.items():
                result.setdefault(key, torch.empty_like(value)).copy_(value)

        return replay, result
