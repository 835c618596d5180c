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
from tal_fast.models.actionformer.config import PRESETS, ActionFormerConfig, ActionFormerSizes
from tal_fast.models.pyramid.detector import PyramidDetector, PyramidOutput
from tal_fast.models.pyramid.heads import ClassHead, OffsetHead
from tal_fast.models.pyramid.layers import (
    ChannelNorm,
    DropPath,
    Embedding,
    MaskedConv,
    Rows,
    max_pool_rows,
    position_code,
)
from tal_fast.models.pyramid.points import join_levels

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
        x = self.get_submodule(f"{name}_norm")(self.get_submodule(f"{name}_conv")(x, rows))
        x = _linear(self.get_submodule(name), x)
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
        return _linear(self.get_submodule("proj"), attended.flatten(2)) * rows.real


def _linear(conv: Any, x: Tensor) -> Tensor:
    """Applies a convolution of one row to ``Tensor[B, T, C]``."""
    return F.linear(x, conv.weight[:, :, 0], conv.bias)


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
        normed = self.ln1(x) * rows.inside
        if self.stride > 1:
            rows = rows.halved()
            x = max_pool_rows(x)
        x = x * rows.real + self.drop_path_attn(self.attn(normed, rows))
        hidden = F.gelu(_linear(self.mlp["0"], self.ln2(x)))
        hidden = ops.dropout(hidden, self.dropout, self.training)
        out = ops.dropout(_linear(self.mlp["3"], hidden), self.dropout, self.training)
        return x + self.drop_path_mlp(out * rows.real), rows


class _Backbone(Embedding):
    """Embedding, stem and the branch that halves the rows."""

    def __init__(self, in_channels: int, sizes: ActionFormerSizes, longest: int) -> None:
        super().__init__(
            in_channels,
            sizes.width,
            sizes.embed_layers,
            sizes.kernel,
            sizes.inputs,
            sizes.projected,
        )
        self.longest = longest if sizes.position_code else None
        self.stem = nn.ModuleList(
            _Block(sizes, 1, sizes.window(0)) for _ in range(sizes.stem_layers)
        )
        self.branch = nn.ModuleList(
            _Block(sizes, 2, sizes.window(level)) for level in range(1, sizes.levels)
        )

    def forward(self, x: Tensor, rows: Rows, padded: Tensor) -> tuple[list[Tensor], list[Rows]]:
        """Returns features and rows of each level."""
        x = self.embed(x, rows)
        if self.longest is not None:
            code = position_code(padded, x.shape[1], x.shape[2], self.longest)
            x = x + code * rows.real
        for block in self.stem:
            x, rows = block(x, rows)
        levels, level_rows = [x], [rows]
        for block in self.branch:
            x, rows = block(x, rows)
            levels.append(x)
            level_rows.append(rows)
        return levels, level_rows


class _Neck(nn.Module):
    """A normalisation per level."""

    def __init__(self, sizes: ActionFormerSizes) -> None:
        super().__init__()
        self.fpn_norms = nn.ModuleList(ChannelNorm(sizes.width) for _ in range(sizes.levels))

    def forward(self, levels: list[Tensor], rows: list[Rows]) -> list[Tensor]:
        return [
            norm(level) * item.inside
            for norm, level, item in zip(self.fpn_norms, levels, rows, strict=True)
        ]


class ActionFormer(PyramidDetector):
    """ActionFormer over whole videos or crops of them.

    Args:
        in_channels: channels of a feature row.
        num_classes: number of action classes.
        config: all its settings; those of the recipe for THUMOS14 when omitted.
    """

    Config = ActionFormerConfig
    presets = PRESETS

    def __init__(
        self, in_channels: int, num_classes: int, config: ActionFormerConfig | None = None
    ) -> None:
        super().__init__(in_channels, num_classes, config)
        sizes: ActionFormerSizes = self.config.model
        self.backbone = _Backbone(in_channels, sizes, self.config.data.max_length)
        self.neck = _Neck(sizes)
        head = (sizes.width, sizes.head_width)
        layers, kernel = sizes.head_layers, sizes.head_kernel
        self.cls_head = ClassHead(*head, num_classes, layers, kernel, sizes.class_prior)
        self.reg_head = OffsetHead(*head, layers, kernel, sizes.levels)

    @classmethod
    def multiple(cls, config: ActionFormerConfig) -> int:
        """Returns the rows of the coarsest level times those that its chunks of attention need."""
        sizes = config.model
        return max(
            (1 << level) * (2 * (window // 2) if (window := sizes.window(level)) > 1 else 1)
            for level in range(sizes.levels)
        )

    def class_heads(self) -> list[ClassHead]:
        """Returns the class head."""
        return [self.cls_head]

    def forward(self, features: Tensor, mask: Tensor) -> PyramidOutput:
        """Rates the points of a batch of clips.

        Args:
            features: ``Tensor[B, L, in_channels]``, zero on padded rows.
            mask: ``BoolTensor[B, L]``, True where the row is padding.

        Raises:
            ValueError: the features do not have ``in_channels`` channels, or L is no multiple of
                the coarsest level's stride.
        """
        self.check_input(features)
        levels, rows = self.backbone(features, self.rows(mask), self.padded_rows(mask))
        half = self.config.model.head_kernel // 2
        joined = join_levels(self.neck(levels, rows), rows, half)
        valid = torch.cat([item.real[..., 0] for item in rows], dim=1) > 0
        return PyramidOutput(self.cls_head(joined), self.reg_head(joined), valid)
