# SPDX-License-Identifier: Apache-2.0
"""The ops in a model that knows nothing else of tal_fast: plain PyTorch, its own loop.

python examples/ops_in_a_foreign_model.py

Attention among near rows in the place of ``nn.MultiheadAttention``, a segment loss, non-maximum
suppression over a batch of videos, and IoU to rate the result. All work under autograd, autocast
and torch.compile, on a CPU and on a GPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tal_fast import ops


class Block(nn.Module):
    """A pre-norm transformer block whose rows see 9 rows instead of all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = ops.nn.LocalAttention(width, num_heads=4, window=9)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """Maps ``Tensor[B, T, C]`` to the same shape; ``padding`` [B, T] is True on padding."""
        x = x + self.attention(self.norm1(x), padding)
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    """Says of each row how likely something happens, and how far it reaches."""

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Linear(channels, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits [B, T] and segments [B, T, 2] in rows."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, padding)
        logits, reach = self.head(x).split((1, 2), dim=-1)
        rows = torch.arange(x.shape[1]) + 0.5
        reach = 8.0 * F.softplus(reach)
        segments = torch.stack((rows - reach[..., 0], rows + reach[..., 1]), dim=-1)
        return logits[..., 0].masked_fill(padding, -20.0), segments


def made_batch(videos: int = 8, rows: int = 100) -> tuple[Tensor, Tensor, Tensor]:
    """Returns features [B, T, 6], padding [B, T] and one true segment per video [B, 2]."""
    start = torch.randint(5, 50, (videos,)).float()
    truth = torch.stack((start, start + torch.randint(10, 30, (videos,))), dim=-1)
    row = torch.arange(rows) + 0.5
    inside = (row > truth[:, :1]) & (row < truth[:, 1:])
    x = torch.randn(videos, rows, 6) + 2.0 * inside[..., None]
    padding = (torch.arange(rows) >= 90).expand(videos, rows)
    return x, padding, truth


def main(steps: int = 150) -> float:
    """Trains on made-up signals; returns the mean IoU of the best detection of new ones."""
    torch.manual_seed(0)
    model = Model(6)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        x, padding, truth = made_batch()
        logits, segments = model(x, padding)
        row = torch.arange(x.shape[1]) + 0.5
        inside = (row > truth[:, :1]) & (row < truth[:, 1:])
        wanted = truth[:, None].expand_as(segments)[inside]
        loss = F.binary_cross_entropy_with_logits(logits, inside.float())
        loss = loss + ops.diou_loss(segments[inside], wanted, reduction="mean")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    x, padding, truth = made_batch()
    with torch.no_grad():
        logits, segments = model(x, padding)
    videos = torch.arange(len(x))[:, None].expand_as(logits).flatten()
    kept = ops.batched_nms(
        segments.flatten(0, 1),
        logits.sigmoid().flatten(),
        labels=torch.zeros_like(videos),
        videos=videos,
        iou_threshold=0.5,
        max_segments=1,
    )
    iou = ops.segment_iou(kept.segments, truth)[torch.arange(len(truth)), videos[kept.indices]]
    print(f"mean IoU of the best detection per video: {iou.mean():.2f}")
    return iou.mean().item()


if __name__ == "__main__":
    main()
