# SPDX-License-Identifier: Apache-2.0
"""TadTR: temporal action detection with a transformer.

Liu, Wang, Hu, Tang, Zhang, Bai, Bai: "End-to-End Temporal Action Detection With Transformer", IEEE
Transactions on Image Processing 31, 2022 (arXiv 2106.10271). Parameter names are those of the
official model, so that its checkpoints load.

A window of feature rows goes through an encoder of deformable self-attention; a fixed set of
learned queries looks at the result through a decoder that refines one segment per query, layer by
layer; an actionness head looks once more at the rows under each final segment.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tal_fast import ops
from tal_fast.errors import TrainingError
from tal_fast.models.layers import MLP, DeformableAttention, sine_position_encoding
from tal_fast.models.segments import center_width_to_start_end, inverse_sigmoid

__all__ = ["TadTR", "TadTRConfig", "TadTROutput"]

# Prefixes of keys in the state dict of a model that another one holds.
_WRAPPERS = {
    "module.": "DataParallel or DistributedDataParallel",
    "_orig_mod.": "torch.compile",
}
_GROUPS = 32  # of the input projection's group normalisation
_CLASS_PRIOR = 0.01  # start of the class probabilities (focal loss, Lin et al. 2017, section 3.3)


@dataclass(frozen=True)
class TadTRConfig:
    """Sizes of a TadTR; the defaults are the paper's for THUMOS14.

    Attributes:
        d_model: width of the transformer.
        num_heads: attention heads.
        num_points: sampling points per head of deformable attention.
        encoder_layers: number of encoder layers.
        decoder_layers: number of decoder layers.
        feedforward: hidden width of the feed-forward blocks.
        num_queries: most segments that one window can give.
        dropout: probability of zeroing an activation.
        actionness: whether to rate each segment by the rows under it.
        roi_bins: bins that the actionness head divides a segment into.
        roi_scale: how far the actionness head looks beyond the segment, in segment widths.
    """

    d_model: int = 256
    num_heads: int = 8
    num_points: int = 4
    encoder_layers: int = 4
    decoder_layers: int = 4
    feedforward: int = 1024
    num_queries: int = 40
    dropout: float = 0.1
    actionness: bool = True
    roi_bins: int = 16
    roi_scale: float = 1.5

    def __post_init__(self) -> None:
        """Checks what the sizes must fulfil together.

        Raises:
            ValueError: a size is not positive, or does not divide what it must.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "dropout" and not isinstance(value, bool) and value <= 0:
                raise ValueError(f"expected {field.name} > 0, got {value}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"expected dropout in [0, 1), got {self.dropout}")
        if self.d_model % self.num_heads:
            raise ValueError(
                f"expected num_heads to divide d_model = {self.d_model}, got {self.num_heads}"
            )
        if self.d_model % _GROUPS:
            raise ValueError(f"expected d_model to be a multiple of {_GROUPS}, got {self.d_model}")


class TadTROutput(NamedTuple):
    """What one forward pass gives, for every decoder layer (K of them, the last one counts).

    Attributes:
        logits: ``Tensor[K, B, Q, classes]``.
        segments: ``Tensor[K, B, Q, 2]``, (centre, width) in [0, 1] of the window.
        actionness: ``Tensor[B, Q]`` in [0, 1] for the last layer's segments, or None.
    """

    logits: Tensor
    segments: Tensor
    actionness: Tensor | None


class _EncoderLayer(nn.Module):
    """Deformable self-attention and feed-forward, normalised after each residual."""

    def __init__(self, config: TadTRConfig) -> None:
        super().__init__()
        width, hidden = config.d_model, config.feedforward
        self.self_attn = DeformableAttention(width, config.num_heads, 1, config.num_points)
        self.norm1 = nn.LayerNorm(width, dtype=torch.float32)
        self.linear1 = nn.Linear(width, hidden, dtype=torch.float32)
        self.linear2 = nn.Linear(hidden, width, dtype=torch.float32)
        self.norm2 = nn.LayerNorm(width, dtype=torch.float32)
        self.dropout = config.dropout

    def forward(self, x: Tensor, position: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
        p, training = self.dropout, self.training
        attended = self.self_attn(x + position, reference, x, (x.shape[1],), mask)
        x = self.norm1(ops.dropout(attended, p, training, residual=x))
        hidden = ops.dropout(self.linear1(x), p, training, relu=True)
        return self.norm2(ops.dropout(self.linear2(hidden), p, training, residual=x))


class _DecoderLayer(nn.Module):
    """Self-attention among queries, deformable cross-attention to the rows, feed-forward."""

    def __init__(self, config: TadTRConfig) -> None:
        super().__init__()
        width, hidden = config.d_model, config.feedforward
        self.cross_attn = DeformableAttention(width, config.num_heads, 1, config.num_points)
        self.norm1 = nn.LayerNorm(width, dtype=torch.float32)
        self.self_attn = nn.MultiheadAttention(
            width, config.num_heads, dropout=config.dropout, batch_first=True, dtype=torch.float32
        )
        self.norm2 = nn.LayerNorm(width, dtype=torch.float32)
        self.linear1 = nn.Linear(width, hidden, dtype=torch.float32)
        self.linear2 = nn.Linear(hidden, width, dtype=torch.float32)
        self.norm3 = nn.LayerNorm(width, dtype=torch.float32)
        self.dropout = config.dropout

    def forward(
        self, x: Tensor, position: Tensor, reference: Tensor, memory: Tensor, mask: Tensor
    ) -> Tensor:
        p, training = self.dropout, self.training
        query = x + position
        attended = self.self_attn(query, query, x, need_weights=False)[0]
        x = self.norm2(ops.dropout(attended, p, training, residual=x))
        attended = self.cross_attn(x + position, reference, memory, (memory.shape[1],), mask)
        x = self.norm1(ops.dropout(attended, p, training, residual=x))
        hidden = ops.dropout(self.linear1(x), p, training, relu=True)
        return self.norm3(ops.dropout(self.linear2(hidden), p, training, residual=x))


class _LayerStack(nn.Module):
    """Holds layers under the name ``layers``, as the official parameter names have it."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class _Transformer(nn.Module):
    """Encoder, decoder and the projections between them."""

    def __init__(self, config: TadTRConfig) -> None:
        super().__init__()
        self.encoder = _LayerStack([_EncoderLayer(config) for _ in range(config.encoder_layers)])
        self.decoder = _LayerStack([_DecoderLayer(config) for _ in range(config.decoder_layers)])
        self.level_embed = nn.Parameter(torch.empty(1, config.d_model, dtype=torch.float32))
        self.reference_points = nn.Linear(config.d_model, 1, dtype=torch.float32)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.reset_parameters()
        nn.init.zeros_(self.reference_points.bias)
        nn.init.normal_(self.level_embed)


class TadTR(nn.Module):
    """TadTR over windows of feature rows.

    Args:
        in_channels: channels of a feature row.
        num_classes: number of action classes.
        config: sizes; the paper's when omitted.
    """

    def __init__(
        self, in_channels: int, num_classes: int, config: TadTRConfig | None = None
    ) -> None:
        super().__init__()
        self.config = config = config or TadTRConfig()
        self.in_channels = in_channels
        self.num_classes = num_classes
        width = config.d_model
        self.input_proj = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv1d(in_channels, width, kernel_size=1, dtype=torch.float32),
                    nn.GroupNorm(_GROUPS, width, dtype=torch.float32),
                )
            ]
        )
        self.query_embed = nn.Embedding(config.num_queries, 2 * width, dtype=torch.float32)
        self.transformer = _Transformer(config)
        class_head = nn.Linear(width, num_classes, dtype=torch.float32)
        segment_head = MLP(width, width, 2, 3)
        nn.init.constant_(class_head.bias, -math.log((1 - _CLASS_PRIOR) / _CLASS_PRIOR))
        nn.init.zeros_(segment_head.layers[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(segment_head.layers[-1].bias)  # type: ignore[arg-type]
        self.class_embed = nn.ModuleList(
            copy.deepcopy(class_head) for _ in range(config.decoder_layers)
        )
        self.segment_embed = nn.ModuleList(
            copy.deepcopy(segment_head) for _ in range(config.decoder_layers)
        )
        with torch.no_grad():  # first guess of a width: sigmoid(-2) = 0.12 of the window
            self.segment_embed[0].layers[-1].bias[1] = -2.0  # type: ignore[index,union-attr]
        nn.init.xavier_uniform_(self.input_proj[0][0].weight)  # type: ignore[index]
        nn.init.zeros_(self.input_proj[0][0].bias)  # type: ignore[index]
        if config.actionness:
            self.actionness_pred = nn.Sequential(
                nn.Linear(config.roi_bins * width, width, dtype=torch.float32),
                nn.ReLU(inplace=True),
                nn.Linear(width, width, dtype=torch.float32),
                nn.ReLU(inplace=True),
                nn.Linear(width, 1, dtype=torch.float32),
                nn.Sigmoid(),
            )

    def forward(self, features: Tensor, mask: Tensor) -> TadTROutput:
        """Detects actions in a batch of windows.

        Args:
            features: ``Tensor[B, T, in_channels]``.
            mask: ``BoolTensor[B, T]``, True where the row is padding.

        Returns:
            :class:`TadTROutput`.

        Raises:
            ValueError: the features do not have ``in_channels`` channels.
        """
        if features.dim() != 3 or features.shape[-1] != self.in_channels:
            raise ValueError(
                f"TadTR: expected features of shape [B, T, {self.in_channels}], "
                f"got {list(features.shape)}"
            )
        memory, valid_ratio = self._encode(features, mask)
        logits, segments = self._decode(memory, mask, valid_ratio)
        actionness = self._actionness(memory, segments[-1]) if self.config.actionness else None
        return TadTROutput(logits, segments, actionness)

    def _encode(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        stem = self.input_proj[0]
        projection, normalisation = stem[0], stem[1]  # type: ignore[index]
        # A 1x1 convolution over [B, T, C] is a matrix product; only its small result is transposed.
        x = F.linear(features, projection.weight[:, :, 0], projection.bias)
        x = normalisation(x.transpose(1, 2)).transpose(1, 2)
        position = sine_position_encoding(mask, self.config.d_model)
        position = position + self.transformer.level_embed[0]
        num_rows = features.shape[1]
        reference = (
            torch.arange(num_rows, device=features.device, dtype=torch.float32) + 0.5
        ) / num_rows
        reference = reference[None, :, None, None].expand(len(features), -1, -1, -1)
        for layer in self.transformer.encoder.layers:
            x = layer(x, position, reference, mask)
        valid_ratio = (~mask).sum(1, dtype=torch.float32) / num_rows
        return x, valid_ratio

    def _decode(self, memory: Tensor, mask: Tensor, valid_ratio: Tensor) -> tuple[Tensor, Tensor]:
        position, x = self.query_embed.weight.split(self.config.d_model, dim=1)
        position = position.expand(len(memory), -1, -1)
        x = x.expand(len(memory), -1, -1)
        reference = self.transformer.reference_points(position).float().sigmoid()  # [B, Q, 1]
        logits, segments = [], []
        for layer, class_head, segment_head in zip(
            self.transformer.decoder.layers, self.class_embed, self.segment_embed, strict=True
        ):
            # The official model scales references to the valid part of a padded window.
            scaled = (reference * valid_ratio[:, None, None])[:, :, None]
            x = layer(x, position, scaled, memory, mask)
            delta = segment_head(x).float()
            known = inverse_sigmoid(reference)
            if reference.shape[-1] == 1:  # first layer: only a centre is known
                known = F.pad(known, (0, 1))
            segment = (delta + known).sigmoid()
            logits.append(class_head(x).float())
            segments.append(segment)
            reference = segment.detach()
        return torch.stack(logits), torch.stack(segments)

    def _actionness(self, memory: Tensor, segments: Tensor) -> Tensor:
        batch, num_rows, width = memory.shape
        config = self.config
        # No gradient to the segments: the head rates them, the decoder moves them.
        center, width_of_segment = segments.detach().unbind(-1)
        wider = torch.stack((center, width_of_segment * config.roi_scale), dim=-1)
        rows = center_width_to_start_end(wider) * num_rows
        rows = rows.clamp(0.0, float(num_rows))
        index = torch.arange(batch, device=memory.device, dtype=rows.dtype)
        index = index[:, None, None].expand(-1, config.num_queries, 1)
        rois = torch.cat((index, rows), dim=-1).flatten(0, 1)  # [B·Q, 3]
        bins = ops.segment_roi_align(memory.transpose(1, 2), rois, config.roi_bins)
        rated = self.actionness_pred(bins.reshape(batch, config.num_queries, width * bins.shape[2]))
        return rated.float().squeeze(-1)

    def load_state_dict(self, state_dict, strict=True, assign=False):  # type: ignore[no-untyped-def]
        """Loads weights; those of the official code, too.

        Its checkpoints list the segment heads twice, once under the decoder.

        Raises:
            TrainingError: all keys carry the prefix of a wrapper.
            RuntimeError: keys or shapes do not fit, as torch says it.
        """
        for prefix, wrapper in _WRAPPERS.items():
            if state_dict and all(key.startswith(prefix) for key in state_dict):
                raise TrainingError(
                    f"TadTR: the keys carry the prefix {prefix!r} of {wrapper}: load "
                    f"{{key.removeprefix({prefix!r}): value for key, value in weights.items()}}"
                )
        twice = "transformer.decoder.segment_embed."
        state_dict = {k: v for k, v in state_dict.items() if not k.startswith(twice)}
        return super().load_state_dict(state_dict, strict=strict, assign=assign)
