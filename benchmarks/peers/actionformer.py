# SPDX-License-Identifier: Apache-2.0
"""Local attention of the official ActionFormer (github.com/happyharrycn/actionformer_release).

Its file unchanged, without the package around it.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from peers import checkout, load_file

__all__ = ["local_attn"]


class _Given(nn.Module):
    """In place of a convolution: a tensor that is there already."""

    def __init__(self) -> None:
        super().__init__()
        self.tensor: Tensor | None = None

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor | None, Tensor]:
        return self.tensor, mask


def local_attn(heads: int, channels: int, window: int) -> Callable[..., Tensor]:
    """Returns its attention in overlapping chunks as a function of query, key, value and mask.

    The function is the forward of its layer with the tensors in place of its convolutions, and no
    linear layers. T must be a multiple of ``2 * (window // 2)``. For a batch of one: there our
    layout suits it, and better than its own.

    Raises:
        PeerMissingError: the checkout is not there.
    """
    folder = checkout("actionformer_release") / "libs/modeling"
    package = "peer_actionformer"
    weight_init = load_file(folder / "weight_init.py", f"{package}.weight_init")
    blocks = load_file(
        folder / "blocks.py",
        f"{package}.blocks",
        {package: types.ModuleType(package), f"{package}.weight_init": weight_init},
    )
    layer: Any = blocks.LocalMaskedMHCA(heads * channels, heads, window)
    given = {name: _Given() for name in ("query", "key", "value")}
    for name, tensor in given.items():
        setattr(layer, f"{name}_conv", tensor)
        setattr(layer, f"{name}_norm", nn.Identity())
        setattr(layer, name, nn.Identity())
    layer.proj = nn.Identity()

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        for name, tensor in zip(given, (query, key, value), strict=True):
            given[name].tensor = tensor.flatten(2).transpose(1, 2)  # [B, H * D, T]
        x = torch.empty(query.shape[0], heads * channels, query.shape[1])
        out, _ = layer(x, ~mask[:, None])
        return out.transpose(1, 2).unflatten(-1, (heads, channels))

    return attend
