# SPDX-License-Identifier: Apache-2.0
"""ActionFormer: a pyramid of local self-attention over a whole video.

Zhang, Wu, Li: "ActionFormer: Localizing Moments of Actions with Transformers", ECCV 2022 (arXiv
2202.07925). Parameter names are those of the official model, so that its checkpoints load.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tal_fast import ops
from tal_fast.models.actionformer.config import (
    PRESETS,
    TIMING,
    ActionFormerConfig,
    ActionFormerSizes,
)
from tal_fast.models.pyramid.backbone import Backbone
from tal_fast.models.pyramid.convolution import conv_macs, depthwise_rows, linear_rows
from tal_fast.models.pyramid.detector import PyramidDetector
from tal_fast.models.pyramid.layers import (
    ChannelNorm,
    DropPath,
    LevelNorms,
    MaskedConv,
    Rows,
    max_pool_rows,
)

__all__ = ["ActionFormer"]


class _Attention(nn.Module):
    """Self-attention among near rows, with depthwise convolutions on queries, keys and values."""

    def __init__(self, sizes: ActionFormerSizes, stride: int, window: int) -> None:
        super().__init__()
        width = sizes.width
        self.heads, self.window, self.stride = sizes.heads, window, stride
        for name in ("query", "key", "value"):
            conv = MaskedConv(width, width, 3, bias=False, depthwise=True, stride=stride)
            self.add_module(f"{name}_conv", conv)
            self.add_module(f"{name}_norm", ChannelNorm(width))
        for name in ("key", "query", "value", "proj"):
            linear = nn.Conv1d(width, width, 1, dtype=torch.float32)
            nn.init.zeros_(linear.bias)  # type: ignore[arg-type]
            self.add_module(name, linear)

    def _projected(self, name: str, x: Tensor, rows: Rows) -> Tensor:
        """Returns ``Tensor[B, T', heads, width / heads]``."""
        # Not masked: no real row looks at others than real ones.
        conv: Any = self.get_submodule(f"{name}_conv").conv
        x = depthwise_rows(x, conv.weight, None, self.stride)
        x = linear_rows(self.get_submodule(name), self.get_submodule(f"{name}_norm")(x), rows.host)
        return x.unflatten(-1, (self.heads, -1))

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        query, key, value = (self._projected(name, x, rows) for name in ("query", "key", "value"))
        padding = rows.real[..., 0] == 0
        if self.window > 1:
            attended = ops.local_attn(query, key, value, self.window, padding)
        else:
            seen = ~padding[:, None, None, :]
            query, key, value = (part.transpose(1, 2) for part in (query, key, value))
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
            attended = attended.transpose(1, 2)
        return rows.masked_linear(self.get_submodule("proj"), attended.flatten(2))


class _Block(nn.Module):
    """Attention and feed-forward, each after a normalisation and beside a residual."""

    def __init__(self, sizes: ActionFormerSizes, stride: int, window: int) -> None:
        super().__init__()
        width, hidden = sizes.width, sizes.mlp_ratio * sizes.width
        self.stride = stride
        self.ln1 = ChannelNorm(width)
        self.ln2 = ChannelNorm(width)
        self.attn = _Attention(sizes, stride, window)
        # Of these indices in the official checkpoints: 1, 2 and 4 are activation and dropout.
        first = nn.Conv1d(width, hidden, 1, dtype=torch.float32)
        second = nn.Conv1d(hidden, width, 1, dtype=torch.float32)
        self.mlp = nn.ModuleDict({"0": first, "3": second})
        for linear in self.mlp.values():
            nn.init.zeros_(linear.bias)  # type: ignore[arg-type]
        self.dropout = sizes.dropout
        if sizes.drop_path > 0.0:
            self.drop_path_attn: nn.Module = DropPath(width, sizes.drop_path)
            self.drop_path_mlp: nn.Module = DropPath(width, sizes.drop_path)
        else:
            self.drop_path_attn = self.drop_path_mlp = nn.Identity()

    def forward(self, x: Tensor, rows: Rows) -> tuple[Tensor, Rows]:
        """Maps ``Tensor[B, T, width]`` to ``Tensor[B, T / stride, width]``."""
        normed = rows.zero_outside(self.ln1(x))
        if self.stride > 1:
            rows = rows.halved()
            x = max_pool_rows(x)
        x = x * rows.real + self.drop_path_attn(self.attn(normed, rows))
        hidden = F.gelu(linear_rows(self.mlp["0"], self.ln2(x), rows.host))
        hidden = ops.dropout(hidden, self.dropout, self.training)
        out = ops.dropout(rows.masked_linear(self.mlp["3"], hidden), self.dropout, self.training)
        return x + self.drop_path_mlp(out), rows

    def macs(self, rows: int) -> int:
        """Returns the multiply-adds of the convolutions for a number of output rows."""
        return conv_macs(self, rows)


class ActionFormer(PyramidDetector):
    """ActionFormer over whole videos or crops of them.

    Args:
        in_channels: channels of a feature row.
        num_classes: number of action classes.
        config: all its settings; those of the recipe for THUMOS14 when omitted.
    """

    Config = ActionFormerConfig
    presets = PRESETS
    timing = TIMING

    def __init__(
        self, in_channels: int, num_classes: int, config: ActionFormerConfig | None = None
    ) -> None:
        super().__init__(in_channels, num_classes, config)
        sizes: ActionFormerSizes = self.config.model
        self.backbone = Backbone(
            in_channels,
            sizes,
            self.config.data.max_length,
            stem=[_Block(sizes, 1, sizes.window(0)) for _ in range(sizes.stem_layers)],
            branch=[_Block(sizes, 2, sizes.window(level)) for level in range(1, sizes.levels)],
        )
        self.neck = LevelNorms(sizes.width, sizes.levels)
        self.add_heads()

    @classmethod
    def multiple(cls, config: ActionFormerConfig) -> int:
        """Returns the rows of the coarsest level times those that its chunks of attention need."""
        sizes = config.model
        return max(
            (1 << level) * (2 * (window // 2) if (window := sizes.window(level)) > 1 else 1)
            for level in range(sizes.levels)
        )

    def flops(self, rows: int) -> dict[str, int]:
        """Returns the multiply-adds of convolutions and matrix products over one clip, by part.

        Args:
            rows: rows of the clip, padding included.
        """
        sizes: ActionFormerSizes = self.config.model
        attention = 0
        for level in range(sizes.levels):
            window, level_rows = sizes.window(level), rows >> level
            seen = min(2 * (window // 2) + 1, level_rows) if window > 1 else level_rows
            blocks = sizes.stem_layers if level == 0 else 1
            attention += blocks * 2 * level_rows * seen * sizes.width
        points = sum(rows >> level for level in range(sizes.levels))
        return {
            **self.backbone.macs(rows),
            "attention": attention,
            "class head": conv_macs(self.cls_head, points),
            "offset head": conv_macs(self.reg_head, points),
        }
