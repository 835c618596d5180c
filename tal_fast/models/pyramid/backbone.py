# SPDX-License-Identifier: Apache-2.0
"""Embedding, stem, and the branch that halves the rows block by block."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from tal_fast.models.pyramid.config import PyramidSizes
from tal_fast.models.pyramid.layers import Embedding, Rows, position_code

__all__ = ["Backbone"]


class Backbone(Embedding):
    """A pyramid of levels, each from the one below.

    Args:
        in_channels: channels of the features.
        sizes: of embedding and pyramid.
        longest: rows of the position code, where there is one.
        stem: blocks at full resolution.
        branch: a block per further level. A block maps ``Tensor[B, T, width]`` and its rows to the
            next ones and theirs.
    """

    def __init__(
        self,
        in_channels: int,
        sizes: PyramidSizes,
        longest: int,
        stem: Iterable[nn.Module],
        branch: Iterable[nn.Module],
    ) -> None:
        super().__init__(
            in_channels,
            sizes.width,
            sizes.embed_layers,
            sizes.kernel,
            sizes.inputs,
            sizes.projected,
        )
        self.longest = longest if sizes.position_code else None
        self.stem = nn.ModuleList(stem)
        self.branch = nn.ModuleList(branch)

    def forward(self, x: Tensor, rows: Rows) -> tuple[list[Tensor], list[Rows]]:
        """Returns features and rows of each level."""
        x = self.embed(x, rows)
        if self.longest is not None:
            code = position_code(rows.padded, x.shape[1], x.shape[2], self.longest)
            x = x + code * rows.real
        for block in self.stem:
            x, rows = block(x, rows)
        levels, level_rows = [x], [rows]
        for block in self.branch:
            x, rows = block(x, rows)
            levels.append(x)
            level_rows.append(rows)
        return levels, level_rows

    def macs(self, rows: int) -> dict[str, int]:
        """Returns the multiply-adds of embedding, stem and branch; of a block, its ``macs``."""

        def of_block(block: Any, rows: int) -> int:
            return int(block.macs(rows))

        return {
            "embedding": self.embedding_macs(rows),
            "stem": sum(of_block(block, rows) for block in self.stem),
            "branch": sum(
                of_block(block, rows >> level) for level, block in enumerate(self.branch, start=1)
            ),
        }
