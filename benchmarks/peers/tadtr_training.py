# SPDX-License-Identifier: Apache-2.0
"""The official TadTR (github.com/xlliu7/TadTR, commit 983ae14), as it runs on a CPU.

Set from outside, its files unchanged: ``disable_cuda``, no actionness head (it exists for CUDA
only) and the channels of the input projection, which its model fixes at 2048. It needs
``easydict``; of torchvision it reads the version alone, so an empty module serves where none is
installed.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from typing import Any

import torch
from torch import Tensor, nn

from peers import checkout

__all__ = ["OfficialTadTR"]


class OfficialTadTR:
    """The peer's model, criterion and optimiser behind one method per phase of a step.

    Args:
        in_channels: channels of a feature row.
        num_classes: at most 20 are used by the targets; its THUMOS14 setting has 20.
        d_model: width.
        encoder_layers: number of encoder layers.
        decoder_layers: number of decoder layers.
        feedforward: hidden width of the feed-forward blocks.
    """

    def __init__(
        self, in_channels: int, d_model: int, encoder_layers: int, decoder_layers: int,
        feedforward: int,
    ) -> None:  # fmt: skip
        folder = str(checkout("TadTR"))
        if folder not in sys.path:
            sys.path.insert(0, folder)
        if importlib.util.find_spec("torchvision") is None:
            module = types.ModuleType("torchvision")
            module.__version__ = "0.20"  # type: ignore[attr-defined]
            module.__spec__ = importlib.machinery.ModuleSpec("torchvision", None)
            sys.modules["torchvision"] = module
        from opts import cfg  # type: ignore[import-not-found]

        cfg.disable_cuda = True
        cfg.act_reg = False
        cfg.dataset_name = "thumos14"
        cfg.enc_layers, cfg.dec_layers = encoder_layers, decoder_layers
        cfg.hidden_dim, cfg.dim_feedforward, cfg.num_queries = d_model, feedforward, 40
        from models.tadtr import build  # type: ignore[import-not-found]

        self.model, self.criterion, _ = build(cfg)
        self.model.input_proj[0][0] = nn.Conv1d(in_channels, d_model, kernel_size=1)
        self.model.train()
        slow = ("reference_points", "sampling_offsets")
        groups: list[dict[str, Any]] = [
            {"params": [p for n, p in self.model.named_parameters() if not _any(slow, n)]},
            {
                "params": [p for n, p in self.model.named_parameters() if _any(slow, n)],
                "lr": 2e-5,
            },
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=2e-4, weight_decay=1e-4)

    def forward(self, features: Tensor, mask: Tensor) -> Any:
        """Runs the model; the peer wants channels first, which its loader gives it."""
        return self.model((features, mask))

    def loss(self, output: Any, labels: list[Tensor], segments: list[Tensor]) -> Tensor:
        """Returns the weighted loss as its engine sums it, checked for being finite as there."""
        targets = [
            {"labels": label, "segments": segment}
            for label, segment in zip(labels, segments, strict=True)
        ]
        losses = self.criterion(output, targets)
        weights = self.criterion.weight_dict
        total = sum(losses[key] * weights[key] for key in losses if key in weights)
        assert isinstance(total, Tensor)
        if not bool(torch.isfinite(total)):
            raise RuntimeError("the peer's loss is not finite")
        return total

    def update(self) -> None:
        """Clips, steps and clears the gradients as its engine does."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.1)
        self.optimizer.step()
        self.optimizer.zero_grad()


def _any(parts: tuple[str, ...], name: str) -> bool:
    return any(part in name for part in parts)
