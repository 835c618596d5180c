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
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tal_fast import ops
from tal_fast.data.dataset import TALDataset
from tal_fast.data.windows import WindowSet
from tal_fast.errors import counted
from tal_fast.models.base import (
    Candidates,
    Detector,
    ParameterGroup,
    Targets,
    Whole,
    next_power,
)
from tal_fast.models.layers import MLP, sine_position_encoding
from tal_fast.models.segments import center_width_to_start_end, inverse_sigmoid
from tal_fast.models.tadtr.config import GROUPS, PRESETS, TIMING, TadTRConfig, TadTRSizes
from tal_fast.models.tadtr.loss import TadTROutput, tadtr_loss
from tal_fast.ops.nn import DeformableAttention

__all__ = ["TadTR", "TadTROutput"]

_CLASS_PRIOR = 0.01  # start of the class probabilities (focal loss, Lin et al. 2017, section 3.3)


class _EncoderLayer(nn.Module):
    """Deformable self-attention and feed-forward, normalised after each residual."""

    def __init__(self, sizes: TadTRSizes) -> None:
        super().__init__()
        width, hidden = sizes.d_model, sizes.feedforward
        self.self_attn = DeformableAttention(width, sizes.num_heads, 1, sizes.num_points)
        self.norm1 = nn.LayerNorm(width, dtype=torch.float32)
        self.linear1 = nn.Linear(width, hidden, dtype=torch.float32)
        self.linear2 = nn.Linear(hidden, width, dtype=torch.float32)
        self.norm2 = nn.LayerNorm(width, dtype=torch.float32)
        self.dropout = sizes.dropout

    def forward(self, x: Tensor, position: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
        p, training = self.dropout, self.training
        attended = self.self_attn(x + position, reference, x, (x.shape[1],), mask)
        x = self.norm1(ops.dropout(attended, p, training, residual=x))
        hidden = ops.dropout(self.linear1(x), p, training, relu=True)
        return self.norm2(ops.dropout(self.linear2(hidden), p, training, residual=x))


class _DecoderLayer(nn.Module):
    """Self-attention among queries, deformable cross-attention to the rows, feed-forward."""

    def __init__(self, sizes: TadTRSizes) -> None:
        super().__init__()
        width, hidden = sizes.d_model, sizes.feedforward
        self.cross_attn = DeformableAttention(width, sizes.num_heads, 1, sizes.num_points)
        self.norm1 = nn.LayerNorm(width, dtype=torch.float32)
        self.self_attn = nn.MultiheadAttention(
            width, sizes.num_heads, dropout=sizes.dropout, batch_first=True, dtype=torch.float32
        )
        self.norm2 = nn.LayerNorm(width, dtype=torch.float32)
        self.linear1 = nn.Linear(width, hidden, dtype=torch.float32)
        self.linear2 = nn.Linear(hidden, width, dtype=torch.float32)
        self.norm3 = nn.LayerNorm(width, dtype=torch.float32)
        self.dropout = sizes.dropout

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

    def __init__(self, sizes: TadTRSizes) -> None:
        super().__init__()
        self.encoder = _LayerStack([_EncoderLayer(sizes) for _ in range(sizes.encoder_layers)])
        self.decoder = _LayerStack([_DecoderLayer(sizes) for _ in range(sizes.decoder_layers)])
        self.level_embed = nn.Parameter(torch.empty(1, sizes.d_model, dtype=torch.float32))
        self.reference_points = nn.Linear(sizes.d_model, 1, dtype=torch.float32)
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


class TadTR(Detector):
    """TadTR over windows of feature rows.

    Args:
        in_channels: channels of a feature row.
        num_classes: number of action classes.
        config: all its settings; those of the recipe for THUMOS14 when omitted.
    """

    Config = TadTRConfig
    presets = PRESETS
    timing = TIMING

    def __init__(
        self, in_channels: int, num_classes: int, config: TadTRConfig | None = None
    ) -> None:
        super().__init__(in_channels, num_classes, config)
        sizes: TadTRSizes = self.config.model
        width = sizes.d_model
        self.input_proj = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv1d(in_channels, width, kernel_size=1, dtype=torch.float32),
                    nn.GroupNorm(GROUPS, width, dtype=torch.float32),
                )
            ]
        )
        self.query_embed = nn.Embedding(sizes.num_queries, 2 * width, dtype=torch.float32)
        self.transformer = _Transformer(sizes)
        class_head = nn.Linear(width, num_classes, dtype=torch.float32)
        segment_head = MLP(width, width, 2, 3)
        nn.init.constant_(class_head.bias, -math.log((1 - _CLASS_PRIOR) / _CLASS_PRIOR))
        nn.init.zeros_(segment_head.layers[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(segment_head.layers[-1].bias)  # type: ignore[arg-type]
        self.class_embed = nn.ModuleList(
            copy.deepcopy(class_head) for _ in range(sizes.decoder_layers)
        )
        self.segment_embed = nn.ModuleList(
            copy.deepcopy(segment_head) for _ in range(sizes.decoder_layers)
        )
        with torch.no_grad():  # first guess of a width: sigmoid(-2) = 0.12 of the window
            self.segment_embed[0].layers[-1].bias[1] = -2.0  # type: ignore[index,union-attr]
        nn.init.xavier_uniform_(self.input_proj[0][0].weight)  # type: ignore[index]
        nn.init.zeros_(self.input_proj[0][0].bias)  # type: ignore[index]
        if sizes.actionness:
            self.actionness_pred = nn.Sequential(
                nn.Linear(sizes.roi_bins * width, width, dtype=torch.float32),
                nn.ReLU(inplace=True),
                nn.Linear(width, width, dtype=torch.float32),
                nn.ReLU(inplace=True),
                nn.Linear(width, 1, dtype=torch.float32),
                nn.Sigmoid(),
            )

    @classmethod
    def clips(
        cls, config: TadTRConfig, dataset: TALDataset, videos: Sequence[str], *, training: bool
    ) -> WindowSet:
        """Returns overlapping windows; in training those with an instance."""
        clips = config.data
        return WindowSet(
            dataset,
            videos,
            length=clips.window,
            overlap=clips.train_overlap if training else clips.test_overlap,
            min_inside=clips.min_inside,
            drop_empty=training,
        )

    @classmethod
    def rows_needed(cls, config: TadTRConfig, rows: int) -> int:
        """Returns the rows of a window, at least: a shorter video is padded to one."""
        return max(rows, config.data.window)

    @classmethod
    def overlap(cls, config: TadTRConfig) -> float:
        """Returns the share of a window that the next one repeats in prediction."""
        return config.data.test_overlap

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
        self.check_input(features)
        memory, valid_ratio = self._encode(features, mask)
        logits, segments = self._decode(memory, mask, valid_ratio)
        actionness = None
        if self.config.model.actionness:
            actionness = self._actionness(memory, segments[-1])
        return TadTROutput(logits, segments, actionness)

    def _encode(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        stem = self.input_proj[0]
        projection, normalisation = stem[0], stem[1]  # type: ignore[index]
        # A 1x1 convolution over [B, T, C] is a matrix product; only its small result is transposed.
        x = F.linear(features, projection.weight[:, :, 0], projection.bias)
        x = normalisation(x.transpose(1, 2)).transpose(1, 2)
        position = sine_position_encoding(mask, self.config.model.d_model)
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
        position, x = self.query_embed.weight.split(self.config.model.d_model, dim=1)
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
        sizes = self.config.model
        # No gradient to the segments: the head rates them, the decoder moves them.
        center, width_of_segment = segments.detach().unbind(-1)
        wider = torch.stack((center, width_of_segment * sizes.roi_scale), dim=-1)
        rows = center_width_to_start_end(wider) * num_rows
        rows = rows.clamp(0.0, float(num_rows))
        index = torch.arange(batch, device=memory.device, dtype=rows.dtype)
        index = index[:, None, None].expand(-1, sizes.num_queries, 1)
        rois = torch.cat((index, rows), dim=-1).flatten(0, 1)  # [B·Q, 3]
        bins = ops.segment_roi_align(memory.transpose(1, 2), rois, sizes.roi_bins)
        rated = self.actionness_pred(bins.reshape(batch, sizes.num_queries, width * bins.shape[2]))
        return rated.float().squeeze(-1)

    def static_sizes(self, rows: int, instances: int) -> tuple[int, int] | str:
        """Returns the rows as they are, and a power of two of instances, or as many as queries."""
        queries = self.config.model.num_queries
        if instances > queries:
            # Every instance needs a query of its own, one that only fills room, too.
            return (
                f"a clip has {counted(instances, 'instance')}, and TadTR has "
                f"{counted(queries, 'query')}"
            )
        return rows, min(next_power(instances), queries)

    def loss(self, output: TadTROutput, targets: Targets, whole: Whole) -> dict[str, Tensor]:
        """Returns the set loss (:func:`~tal_fast.models.tadtr.loss.tadtr_loss`)."""
        return tadtr_loss(output, targets, self.config.loss, whole)

    def candidates(self, output: TadTROutput, mask: Tensor) -> Candidates:
        """Returns the best (query, class) pairs by class probability times actionness."""
        probability = output.logits[-1].sigmoid()
        if output.actionness is not None:
            probability = probability * output.actionness[..., None]
        num_classes = probability.shape[-1]
        flat = probability.flatten(1)
        top_k = min(self.config.postprocess.top_k, flat.shape[1])
        scores, index = flat.topk(top_k, dim=1)
        segments = center_width_to_start_end(output.segments[-1])
        query = (index // num_classes)[..., None].expand(-1, -1, 2)
        # In float64: the seconds of a detection are those of its float32 share of the window.
        rows = segments.gather(1, query).double() * mask.shape[1]
        return Candidates(scores, index % num_classes, rows)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Returns all but what steers where attention looks, and that, which learns slowly."""
        steering = ("reference_points", "sampling_offsets")
        slow: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            (slow if any(key in name for key in steering) else rest).append(parameter)
        return [ParameterGroup(rest), ParameterGroup(slow, slow=True)]

    def flops(self, rows: int) -> dict[str, int]:
        """Returns the multiply-adds of matrix products and of attention's samples, by part."""
        sizes = self.config.model
        width, hidden, queries = sizes.d_model, sizes.feedforward, sizes.num_queries
        samples = sizes.num_heads * sizes.num_points

        def deformable(asking: int) -> int:
            projections = rows * width**2 + asking * (width**2 + 2 * samples * width)
            return projections + 2 * asking * sizes.num_points * width  # two rows per sample

        feedforward = 2 * width * hidden
        of_queries = 4 * queries * width**2 + 2 * queries**2 * width
        heads = queries * (width * self.num_classes + 2 * width**2 + 2 * width)
        parts = {
            "input": rows * self.in_channels * width,
            "encoder": sizes.encoder_layers * (deformable(rows) + rows * feedforward),
            "decoder": sizes.decoder_layers
            * (of_queries + deformable(queries) + queries * feedforward)
            + queries * width,
            "heads": sizes.decoder_layers * heads,
        }
        if sizes.actionness:
            bins = sizes.roi_bins * width
            parts["actionness"] = queries * (bins * width + width**2 + width)
        return parts

    @classmethod
    def sizes_of(cls, weights: Mapping[str, Tensor]) -> tuple[int, int] | None:
        """Returns channels and classes, by the input projection and the first class head."""
        stem, head = weights.get("input_proj.0.0.weight"), weights.get("class_embed.0.bias")
        return None if stem is None or head is None else (stem.shape[1], len(head))

    @classmethod
    def is_repeated(cls, key: str) -> bool:
        """Tells whether a key is of the segment heads as the decoder lists them again."""
        return key.startswith("transformer.decoder.segment_embed.")

    def load_state_dict(self, state_dict, strict=True, assign=False):  # type: ignore[no-untyped-def]
        """Loads weights; those of the official code, too.

        Its checkpoints list the segment heads twice, once under the decoder.

        Raises:
            TrainingError: all keys carry the prefix of a wrapper.
            RuntimeError: keys or shapes do not fit, as torch says it.
        """
        state_dict = {k: v for k, v in state_dict.items() if not self.is_repeated(k)}
        return super().load_state_dict(state_dict, strict=strict, assign=assign)
