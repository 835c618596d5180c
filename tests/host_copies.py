# SPDX-License-Identifier: Apache-2.0
"""A guard that sees what comes from the host, with torch's ``meta`` device in place of a GPU.

A step runs there with shapes alone, and whatever asks for a value fails.
"""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("meta")


class _Copies(TorchDispatchMode):
    """Names operations that take tensors of the host and of the device."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        if len({tensor.device.type for tensor in tensors}) > 1:
            self.seen.append(str(function))
        return result


class _Made(TorchFunctionMode):
    """Names functions that make a tensor of the device from Python's numbers."""

    MAKERS = (torch.tensor, torch.as_tensor, torch.from_numpy, torch.Tensor.new_tensor)

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in self.MAKERS and result.device == DEVICE:
            self.seen.append(function.__name__)
        return result


def from_host(step):
    with _Copies() as copies, _Made() as made:
        step()
    return copies.seen + made.seen
