# SPDX-License-Identifier: Apache-2.0
"""What training, prediction, profiling and studies need of a model: one class, :class:`Detector`.

They know nothing else of it. A model of one's own is a class in any file that derives from it
(``--model package.module:Class``); ``docs/adding-a-model.md`` walks through one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from tal_fast.data.clips import ClipSet, VideoSet
from tal_fast.data.dataset import TALDataset
from tal_fast.errors import TrainingError

__all__ = [
    "Candidates",
    "ClipSettings",
    "Detector",
    "DetectorConfig",
    "Section",
    "ParameterGroup",
    "PostprocessConfig",
    "Targets",
    "Whole",
    "next_power",
    "plain_defaults",
]

# Prefixes of keys in the state dict of a model that another one holds.
_WRAPPERS = {
    "module.": "DataParallel or DistributedDataParallel",
    "_orig_mod.": "torch.compile",
}
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Positive = Annotated[int, Field(gt=0, lt=2**63)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]


class Targets(NamedTuple):
    """The instances of a batch's clips.

    Attributes:
        labels: ``LongTensor[N]``, classes, clip after clip.
        edges: ``Tensor[N, 2]`` float64, start and end in rows of the clip; row i covers [i, i + 1).
        counts: instances of each of the B clips; they sum up to N. On the host, so that nothing
            waits for a device.
        length: rows L of the batch, padding included.
        real: ``BoolTensor[N]``, False for an instance that only fills the room of its clip: it lies
            before the clip, has length zero and class 0, and teaches nothing. None: all are real.
    """

    labels: Tensor
    edges: Tensor
    counts: Sequence[int]
    length: int
    real: Tensor | None = None


class Whole:
    """What a loss has to know of a batch of which it sees a part.

    In several processes each has its part, and the parts' losses add up to the loss of the whole:
    sums are divided by numbers of the whole batch. This class is the case of one process.

    Attributes:
        clips: number of clips in the whole batch.
        instances: number of their instances; a scalar tensor where some only fill room.
    """

    def __init__(self, targets: Targets) -> None:
        self.clips = len(targets.counts)
        self.instances: int | Tensor = (
            sum(targets.counts) if targets.real is None else targets.real.sum()
        )
        self._targets = targets

    def sum(self, values: Tensor) -> Tensor:
        """Returns the element-wise sum over the parts; every part must ask in the same order."""
        return values

    def targets(self) -> Targets:
        """Returns the targets of all parts, one after the other."""
        return self._targets


def next_power(number: int, least: int = 8) -> int:
    """Returns the least power of two that is no smaller than both numbers."""
    return 1 << (max(number, least) - 1).bit_length()


class Candidates(NamedTuple):
    """What a model proposes for each clip before suppression, padded to K.

    Attributes:
        scores: ``Tensor[B, K]``.
        labels: ``LongTensor[B, K]``.
        segments: ``Tensor[B, K, 2]``, start and end in rows of the clip, in edge coordinates.
        valid: ``BoolTensor[B, K]``, False where there is none; None where there are K everywhere.
    """

    scores: Tensor
    labels: Tensor
    segments: Tensor
    valid: Tensor | None = None


class ParameterGroup(NamedTuple):
    """Parameters that learn alike.

    Attributes:
        parameters: the tensors.
        slow: whether ``training.sampling_lr_scale`` applies to their learning rate.
        decay: whether ``training.weight_decay`` applies to them.
    """

    parameters: list[nn.Parameter]
    slow: bool = False
    decay: bool = True


@dataclass(frozen=True, config=STRICT)
class Section:
    """A section of settings, a frozen dataclass; this one has none."""


@dataclass(frozen=True, config=STRICT)
class ClipSettings(Section):
    """How videos become clips.

    Attributes:
        threads: reader threads.
    """

    threads: Positive = 1


@dataclass(frozen=True, config=STRICT)
class PostprocessConfig(Section):
    """From candidates to detections.

    Attributes:
        top_k: candidates kept per clip (of each level, where a model has levels).
        threshold: candidates with a score up to it are dropped before suppression.
        nms: ``hard`` drops what overlaps a better detection of its class, ``gaussian`` lowers its
            score (soft-NMS).
        nms_threshold: ``hard``: largest IoU that two detections of a class in a video may have.
        nms_sigma: ``gaussian``: width of the decay exp(-IoU² / sigma).
        nms_scope: ``all`` detections of a video suppress each other, or only those that touch
            ``overlaps`` of its clips (TadTR).
        nms_classes: ``each`` class by itself, or ``all`` classes together.
        nms_clipped: whether segments are cut to the video before suppression, or after it.
        voting: least IoU of the detections whose weighted mean a kept segment becomes; 0 turns
            voting off. Official codes take no votes where ``nms_classes`` is ``each``, whatever
            their settings say; here they are taken within each class.
        voting_weight: what a vote weighs: its ``score``, or that times the IoU (``score_iou``).
        min_score: detections below it are dropped, after suppression.
        min_rows: candidates of at most this many rows are dropped, where a model
            has points that may give such ones.
        max_detections: most detections per video.
    """

    top_k: Positive = 100
    threshold: NonNegative = 0.0
    nms: Literal["hard", "gaussian"] = "hard"
    nms_threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.4
    nms_sigma: Annotated[float, Field(gt=0.0)] = 0.5
    nms_scope: Literal["all", "overlaps"] = "all"
    nms_classes: Literal["each", "all"] = "each"
    nms_clipped: bool = True
    voting: Share = 0.0
    voting_weight: Literal["score", "score_iou"] = "score"
    min_score: NonNegative = 0.0
    min_rows: NonNegative = 0.0
    max_detections: Positive = 1000


@dataclass(frozen=True, config=STRICT)
class DetectorConfig:
    """The settings of a model; each field is a section of a settings file.

    A model with settings of its own derives from this and declares the sections that it has
    something to say about, with the defaults of its recipe.

    Attributes:
        model: sizes.
        data: how videos become clips.
        loss: weights of the losses.
        postprocess: from candidates to detections.
    """

    model: Section = Section()
    data: ClipSettings = ClipSettings()
    loss: Section = Section()
    postprocess: PostprocessConfig = PostprocessConfig()


@contextmanager
def plain_defaults(device: str | None = "cpu") -> Iterator[None]:
    """Has new weights be float32 and on a device, whatever torch's defaults are set to.

    Args:
        device: ``cpu``, for the same first weights on every machine; ``meta`` for none; None leaves
            it to torch.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with nullcontext() if device is None else torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


class Detector(nn.Module, ABC):
    """A model that finds actions in clips of feature rows.

    Args:
        in_channels: channels of a feature row.
        num_classes: number of action classes.
        config: its settings; the defaults when omitted.

    Attributes:
        Config: dataclass of the settings, :class:`DetectorConfig` or one that derives from it.
        presets: settings by name, over the defaults: ``{name: {section: {field: value}}}``, where
            the section ``training`` is that of :class:`tal_fast.training.config.TrainingConfig`.
        timing: of presets made for features of known timing: frames per second of the videos, and
            frames between two rows.
        recipe: settings over the defaults that all presets start from.
        unofficial: keys of the state dict that checkpoints of the model's official code lack.
    """

    Config: ClassVar[type[Any]] = DetectorConfig
    unofficial: ClassVar[frozenset[str]] = frozenset()
    presets: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {}
    timing: ClassVar[Mapping[str, tuple[float, float]]] = {}
    recipe: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(self, in_channels: int, num_classes: int, config: Any = None) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.config = self.Config() if config is None else config

    @classmethod
    def clips(
        cls, config: Any, dataset: TALDataset, videos: Sequence[str], *, training: bool
    ) -> ClipSet:
        """Returns what the model learns from, or looks at in prediction; reads no features.

        Whole videos, unless a model says otherwise.

        Args:
            config: the settings, of :attr:`Config`.
            dataset: an open data set.
            videos: names of the videos.
            training: learn from (True) or look at.
        """
        return VideoSet(dataset, videos)

    @classmethod
    def rows_needed(cls, config: Any, rows: int) -> int:
        """Returns the least rows of a batch in which a clip comes out right, padding included.

        Args:
            config: the settings, of :attr:`Config`.
            rows: real rows of the clip.
        """
        return rows

    @classmethod
    def rows_of_recipe(cls, config: Any, rows: int) -> int:
        """Returns the rows that the model's own recipe pads a clip to.

        Args:
            config: the settings, of :attr:`Config`.
            rows: real rows of the clip.
        """
        return cls.rows_needed(config, rows)

    @classmethod
    def overlap(cls, config: Any) -> float:
        """Returns the share of a clip that the next one repeats in prediction; 0 for videos."""
        return 0.0

    def static_sizes(self, rows: int, instances: int) -> tuple[int, int] | str:
        """Returns what the clips of a training batch may be padded to, their losses unchanged.

        Steps of equal sizes can be recorded as a CUDA graph, so there should be few of them. A
        model that says some has a :meth:`loss` that minds :attr:`Targets.real`, and in training
        runs the same ops for all batches of a shape.

        Args:
            rows: of the batch, padding included.
            instances: of the clip that has most of them.

        Returns:
            rows and instances of each clip; or the reason why there are none.
        """
        return f"{type(self).__name__} says no sizes that all its batches could have"

    def start(self, instances: Sequence[int]) -> None:
        """Adapts fresh weights to the training data.

        Args:
            instances: number of training instances of each class.
        """

    def remarks(self) -> tuple[str, ...]:
        """Returns what is wrong with the trained weights that neither losses nor scores explain."""
        return ()

    @abstractmethod
    def forward(self, features: Tensor, mask: Tensor) -> Any:
        """Computes what :meth:`loss` and :meth:`candidates` start from.

        Tensors in, a NamedTuple of tensors out, and no Python state: it can be traced.

        Args:
            features: ``Tensor[B, L, in_channels]``, zero on padded rows.
            mask: ``BoolTensor[B, L]``, True where the row is padding.
        """

    @abstractmethod
    def loss(self, output: Any, targets: Targets, whole: Whole) -> dict[str, Tensor]:
        """Returns scalars, ``total`` among them, the one to differentiate.

        Args:
            output: of :meth:`forward`.
            targets: of the same clips.
            whole: the batch that these clips are a part of; the parts' losses add up to those of
                the whole batch.
        """

    @abstractmethod
    def candidates(self, output: Any, mask: Tensor) -> Candidates:
        """Returns what the model proposes, before suppression; stays on the device.

        Args:
            output: of :meth:`forward`.
            mask: ``BoolTensor[B, L]``, True where the row is padding.
        """

    def parameter_groups(self) -> list[ParameterGroup]:
        """Returns who learns how fast, and who decays: all alike, unless a model says otherwise."""
        return [ParameterGroup(list(self.parameters()))]

    def flops(self, rows: int) -> dict[str, int]:
        """Returns the multiply-adds of a forward pass over one clip, by part.

        Args:
            rows: rows of the clip, padding included.

        Raises:
            NotImplementedError: the model does not say.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how much it computes")

    @classmethod
    def sizes_of(cls, weights: Mapping[str, Tensor]) -> tuple[int, int] | None:
        """Returns channels of the features and number of classes of an official checkpoint.

        Args:
            weights: a state dict of the model's official code.

        Returns:
            (in_channels, num_classes), or None if the weights are of something else.
        """
        return None

    @classmethod
    def is_repeated(cls, key: str) -> bool:
        """Tells whether official checkpoints list under this key what is elsewhere, too."""
        return False

    def load_state_dict(self, state_dict, strict=True, assign=False):  # type: ignore[no-untyped-def]
        """Loads weights.

        Raises:
            TrainingError: all keys carry the prefix of a wrapper.
            RuntimeError: keys or shapes do not fit, as torch says it.
        """
        for prefix, wrapper in _WRAPPERS.items():
            if state_dict and all(key.startswith(prefix) for key in state_dict):
                raise TrainingError(
                    f"{type(self).__name__}: the keys carry the prefix {prefix!r} of {wrapper}: "
                    f"load {{key.removeprefix({prefix!r}): value for key, value in "
                    "weights.items()}"
                )
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def check_input(self, features: Tensor) -> None:
        """Checks the shape of the features.

        Raises:
            ValueError: they do not have ``in_channels`` channels.
        """
        if features.dim() != 3 or features.shape[-1] != self.in_channels:
            raise ValueError(
                f"{type(self).__name__}: expected features of shape [B, T, {self.in_channels}], "
                f"got {list(features.shape)}"
            )
