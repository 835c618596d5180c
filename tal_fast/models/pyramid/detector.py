# SPDX-License-Identifier: Apache-2.0
"""A detector of points over a pyramid: clips, heads, targets, losses and decoding."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from tal_fast import ranges
from tal_fast.data.clips import ClipSet, CropSet, VideoSet
from tal_fast.data.dataset import TALDataset
from tal_fast.errors import argument, counted
from tal_fast.models.base import (
    Candidates,
    Detector,
    ParameterGroup,
    Targets,
    Whole,
    next_power,
)
from tal_fast.models.losses import focal_loss
from tal_fast.models.pyramid.config import RECIPE, PyramidConfig
from tal_fast.models.pyramid.heads import ClassHead, OffsetHead
from tal_fast.models.pyramid.layers import Rows
from tal_fast.models.pyramid.losses import offset_diou
from tal_fast.models.pyramid.points import Points, join_levels, make_points
from tal_fast.models.pyramid.targets import PointTargets, point_targets

__all__ = ["PyramidDetector", "PyramidOutput"]


class PyramidOutput(NamedTuple):
    """What a forward pass gives for the P points of each clip, levels side by side.

    Attributes:
        logits: ``Tensor[B, P, classes]``; 0 on points that are no rows of the clip.
        offsets: ``Tensor[B, P, 2]``, distances to start and end, in rows of the point's level.
        valid: ``BoolTensor[B, P]``, False where a point is no row of the clip.
    """

    logits: Tensor
    offsets: Tensor
    valid: Tensor


_DEAD = 1e-3  # rows; the greatest offset of a batch is hundreds of times that where there is one


class PyramidDetector(Detector):
    """What ActionFormer, TriDet and TemporalMaxer have in common.

    Args:
        in_channels: channels of a feature row.
        num_classes: number of action classes.
        config: all settings.
    """

    Config: ClassVar[type[Any]] = PyramidConfig
    recipe = RECIPE
    unofficial = frozenset({"normaliser"})
    normaliser: Tensor
    backbone: Any
    neck: Any
    cls_head: ClassHead
    reg_head: OffsetHead

    def __init__(self, in_channels: int, num_classes: int, config: Any = None) -> None:
        super().__init__(in_channels, num_classes, config)
        # A running number of positives, by which losses are divided. A buffer, so that a resumed
        # training goes on with it.
        self.register_buffer(
            "normaliser", torch.tensor(self.config.loss.normaliser, dtype=torch.float32)
        )
        # The running mean of the greatest offset to the start and to the end in a batch, from which
        # ``remarks`` tells a dead one after some 70 steps. No buffer: weights without a training
        # have none.
        self._reach: Tensor | None = None

    # What clips are, and what of their rows the recipe computes.

    @classmethod
    def clips(
        cls, config: Any, dataset: TALDataset, videos: Sequence[str], *, training: bool
    ) -> ClipSet:
        """Returns random crops in training, whole videos in prediction."""
        clips = config.data
        padding = functools.partial(cls.rows_needed, config)
        if not training:
            return VideoSet(dataset, videos, resize=clips.resize, padding=padding)
        return CropSet(
            dataset,
            videos,
            max_length=clips.max_length,
            crop_ratio=None if clips.resize is not None else clips.crop_ratio,
            min_inside=clips.min_inside,
            margin=clips.margin,
            resize=clips.resize,
            padding=padding,
        )

    @classmethod
    def multiple(cls, config: Any) -> int:
        """Returns what the recipe rounds the rows of a long clip up to."""
        return 1 << (config.model.levels - 1)

    @classmethod
    def rows_needed(cls, config: Any, rows: int) -> int:
        """Returns the least rows in which a clip comes out as in the recipe's own padding.

        On every level at least one padded row must follow the last real one, since it is read.
        """
        coarsest = 1 << (config.model.levels - 1)
        least = coarsest * (-(-rows // coarsest) + config.model.head_kernel // 2)
        return min(least, cls.rows_of_recipe(config, rows))

    @classmethod
    def rows_of_recipe(cls, config: Any, rows: int) -> int:
        """Returns the rows that the recipe pads a clip to."""
        longest, multiple = config.data.max_length, cls.multiple(config)
        return longest if rows <= longest else -(-rows // multiple) * multiple

    def rows(self, mask: Tensor) -> Rows:
        """Returns which rows of a batch are real, and which the recipe computes.

        Args:
            mask: ``BoolTensor[B, L]``, True where the row is padding.

        Raises:
            ValueError: L cannot be halved for every level.
        """
        self.check_length(mask.shape[1])
        self._check_padding(mask)
        padded = self.padded_rows(mask)
        inside = torch.arange(mask.shape[1], device=mask.device) < padded[:, None]
        return Rows.of((~mask).float()[..., None], inside.float()[..., None], padded)

    def check_length(self, length: int) -> None:
        """Checks the rows of a batch.

        Raises:
            ValueError: they cannot be halved for every level.
        """
        coarsest = 1 << (self.config.model.levels - 1)
        if length % coarsest:
            raise ValueError(
                f"{type(self).__name__}: expected rows in multiples of {coarsest} for "
                f"{counted(self.config.model.levels, 'level')}, got {length}"
            )

    def _check_padding(self, mask: Tensor) -> None:
        """Refuses a batch without the padded rows that its longest clip reads.

        Its last rows would come out as other numbers. On a GPU and while a model is traced nobody
        looks, since that would wait for the device; batches of :meth:`clips` have these rows.
        """
        if mask.device.type != "cpu" or torch.compiler.is_compiling() or not len(mask):
            return
        longest = int((~mask).sum(1).max())
        needed = self.rows_needed(self.config, longest)
        if mask.shape[1] < needed:
            raise ValueError(
                f"{type(self).__name__}: expected at least {counted(needed, 'row')} for a clip "
                f"of {longest}, "
                f"padding included, got {mask.shape[1]}"
            )

    def padded_rows(self, mask: Tensor) -> Tensor:
        """Returns ``LongTensor[B]``: the rows that the recipe pads each clip to."""
        longest, multiple = self.config.data.max_length, self.multiple(self.config)
        real = (~mask).sum(1)
        rounded = torch.div(real + (multiple - 1), multiple, rounding_mode="floor") * multiple
        return torch.where(real <= longest, longest, rounded)

    def points(self, length: int, device: torch.device) -> Points:
        """Returns the points of clips in ``length`` rows."""
        return make_points(length, self.config.loss.ranges, device)

    # The network: a backbone and a neck of the model's own, and heads.

    def add_heads(self) -> None:
        """Adds the class head and the offset head that a model without others has."""
        sizes = self.config.model
        widths, layers = (sizes.width, sizes.head_width), sizes.head_layers
        kernel, prior = sizes.head_kernel, sizes.class_prior
        self.cls_head = ClassHead(*widths, self.num_classes, layers, kernel, prior)
        start = sizes.offset_start
        self.reg_head = OffsetHead(*widths, layers, kernel, sizes.levels, start=start)

    def forward(self, features: Tensor, mask: Tensor) -> Any:
        """Rates the points of a batch of clips.

        Args:
            features: ``Tensor[B, L, in_channels]``, zero on padded rows.
            mask: ``BoolTensor[B, L]``, True where the row is padding.

        Raises:
            ValueError: the features do not have ``in_channels`` channels, or L is no multiple of
                the coarsest level's stride.
        """
        self.check_input(features)
        levels, rows = self.backbone(features, self.rows(mask))
        joined = join_levels(self.neck(levels, rows), rows, self.config.model.head_kernel // 2)
        valid = torch.cat([item.real[..., 0] for item in rows], dim=1) > 0
        return PyramidOutput(self.cls_head(joined), self.reg_head(joined), valid)

    # Training.

    def static_sizes(self, rows: int, instances: int) -> tuple[int, int] | str:
        """Returns rows in eighths of the recipe's longest clip, and a power of two of instances."""
        longest, coarsest = self.config.data.max_length, 1 << (self.config.model.levels - 1)
        step = coarsest * -(-longest // (8 * coarsest))
        padded = -(-rows // step) * step
        return min(padded, longest) if rows <= longest else padded, next_power(instances)

    def class_heads(self) -> list[ClassHead]:
        """Returns the heads whose first class probabilities depend on the training data."""
        return [self.cls_head]

    def start(self, instances: Sequence[int]) -> None:
        """Has classes without a training instance start as all but impossible."""
        for head in self.class_heads():
            head.lower_rare(instances)

    def loss(self, output: Any, targets: Targets, whole: Whole) -> dict[str, Tensor]:
        """Returns focal classification and DIoU regression over a running number of positives.

        ActionFormer, Zhang et al., ECCV 2022, equation 4.
        """
        config = self.config.loss
        points = self.points(targets.length, output.logits.device)
        with ranges.range("tal_fast.targets"):
            wanted = self.assign(output, targets, points)
        positive = (wanted.classes.sum(-1) > 0) & output.valid
        positives = self._positives(positive, whole)
        classes = wanted.classes
        if config.smoothing:
            classes = classes * (1 - config.smoothing) + config.smoothing / (self.num_classes + 1)
        classification, regression = self.sums(output, wanted, classes, positive)
        classification, regression = classification / positives, regression / positives
        weight: float | Tensor = config.weight
        if not weight:
            weight = whole.sum(classification.detach()) / whole.sum(regression.detach()).clamp(
                min=0.01
            )
        return {
            "classification": classification,
            "regression": regression,
            "total": classification + weight * regression,
        }

    def assign(self, output: Any, targets: Targets, points: Points) -> PointTargets:
        """Returns what the points of a batch learn.

        Args:
            output: of :meth:`forward`.
            targets: of the same clips.
            points: of every clip.
        """
        return point_targets(targets, points, self.num_classes, self.config.loss.radius)

    def sums(
        self, output: Any, wanted: PointTargets, classes: Tensor, positive: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the sums of both losses over a batch, before they are divided.

        Args:
            output: of :meth:`forward`.
            wanted: what the points learn.
            classes: ``Tensor[B, P, K]``, its classes, smoothed.
            positive: ``BoolTensor[B, P]``, points that have a class and are rows of their clip.
        """
        config = self.config.loss
        focal = focal_loss(output.logits, classes, config.focal_alpha, config.focal_gamma)
        classification = (focal * output.valid[..., None]).sum()
        if self.training:
            offsets = output.offsets.detach().float() * output.valid[..., None]
            if self._reach is None:
                self._reach = torch.ones(2, device=offsets.device)
            self._reach.lerp_(offsets.amax((0, 1)), 0.1)
        # Over all points, those that do not count masked: nothing waits for their number.
        diou = offset_diou(output.offsets.float(), wanted.offsets)
        return classification, diou.masked_fill(~positive, 0.0).sum()

    @torch.no_grad()
    def _positives(self, positive: Tensor, whole: Whole) -> Tensor:
        """Returns the running number of positives, the batch at hand taken in."""
        if self.training:
            momentum = self.config.loss.momentum
            found = whole.sum(positive.sum().float()).clamp(min=1.0)
            self.normaliser.mul_(momentum).add_(found, alpha=1.0 - momentum)
        return self.normaliser.clone()

    def parameter_groups(self) -> list[ParameterGroup]:
        """Returns the weights of convolutions, which decay, and all else, which does not."""
        decaying = {
            f"{name}.weight" for name, part in self.named_modules() if isinstance(part, nn.Conv1d)
        }
        groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for name, parameter in self.named_parameters():
            groups[name not in decaying].append(parameter)
        return [ParameterGroup(groups[0]), ParameterGroup(groups[1], decay=False)]

    def remarks(self) -> tuple[str, ...]:
        """Tells of an offset that is 0 at all points, whose ReLU no step will wake."""
        reaches = () if self._reach is None else self._reach.tolist()
        dead = [end for end, reach in zip(("start", "end"), reaches, strict=False) if reach < _DEAD]
        if not dead:
            return ()
        start = max(1.0, 2 * self.config.model.offset_start)
        return (
            f"the distance to the {' and the '.join(dead)} of an instance is 0 at every point, "
            "where its ReLU has no gradient, so it learned nothing: train with another seed, or "
            f"with {argument('settings', {'model.offset_start': f'{start:g}'}, option='--set')}",
        )

    # Prediction.

    def candidates(self, output: Any, mask: Tensor) -> Candidates:
        """Returns per level the best (point, class) pairs above the threshold."""
        post = self.config.postprocess
        points = self.points(mask.shape[1], output.logits.device)
        scores = output.logits.sigmoid() * output.valid[..., None]
        num_classes = scores.shape[-1]
        kept, first = [], 0
        for size in points.sizes:
            level = scores[:, first : first + size].flatten(1)
            best, index = level.topk(min(post.top_k, level.shape[1]), dim=1)
            kept.append((best, index // num_classes + first, index % num_classes))
            first += size
        score, point, label = (torch.cat(parts, dim=1) for parts in zip(*kept, strict=True))
        offsets = self.offsets_of(output, point, label).float() * points.stride[point][..., None]
        place = points.place[point]
        segments = torch.stack((place - offsets[..., 0], place + offsets[..., 1]), dim=-1)
        length = segments[..., 1] - segments[..., 0]
        valid = (score > post.threshold) & (length > post.min_rows)
        # From the centres of rows to their edges.
        return Candidates(score, label, segments.double() + 0.5, valid)

    def offsets_of(self, output: Any, point: Tensor, label: Tensor) -> Tensor:
        """Returns ``Tensor[B, n, 2]``: the offsets of chosen points for a class of each.

        Args:
            output: of :meth:`forward`.
            point: ``LongTensor[B, n]``.
            label: ``LongTensor[B, n]``, for heads whose offsets depend on the class.
        """
        return output.offsets.gather(1, point[..., None].expand(-1, -1, 2))

    @classmethod
    def sizes_of(cls, weights: Mapping[str, Tensor]) -> tuple[int, int] | None:
        """Returns channels and classes, by the first convolutions and the class head."""
        kinds = [key for key in weights if re.fullmatch(r"backbone\.proj\.\d+\.conv\.weight", key)]
        stems = [weights.get(key) for key in kinds or ["backbone.embd.0.conv.weight"]]
        head = weights.get("cls_head.cls_head.conv.bias")
        if head is None or any(stem is None for stem in stems):
            return None
        return sum(stem.shape[1] for stem in stems if stem is not None), len(head)

    def load_state_dict(self, state_dict, strict=True, assign=False):  # type: ignore[no-untyped-def]
        """Loads weights; those of the official code, too, which leave out the running number."""
        if "normaliser" not in state_dict and "module.normaliser" not in state_dict:
            start = torch.tensor(self.config.loss.normaliser, dtype=torch.float32, device="cpu")
            state_dict = {**state_dict, "normaliser": start}
        return super().load_state_dict(state_dict, strict=strict, assign=assign)
