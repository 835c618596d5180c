# SPDX-License-Identifier: Apache-2.0
"""From a trained model to detections in seconds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tal_fast import ops, ranges
from tal_fast.data.batches import Batch
from tal_fast.data.clips import ClipSet
from tal_fast.data.dataset import TALDataset
from tal_fast.data.files import write_error
from tal_fast.data.loader import FeatureLoader
from tal_fast.data.row_meaning import row_meaning
from tal_fast.errors import DataError, TrainingError, argument, counted
from tal_fast.evaluation import Detections, write_results
from tal_fast.models.base import Candidates, Detector, PostprocessConfig
from tal_fast.models.called import (
    check_proposals,
    clip_set_of,
    not_finite,
    output_of,
    proposals_of,
)
from tal_fast.training.checkpoint import Trained, load_trained
from tal_fast.training.config import TrainingConfig
from tal_fast.training.device import autocast, resolve_device
from tal_fast.training.finite import clips_of, first_not_finite
from tal_fast.typing import Floats

__all__ = ["detect", "predict", "suppressed"]


def predict(
    checkpoint: str | Path,
    data: TALDataset,
    videos: Sequence[str],
    out: str | Path | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
    device: str | None = None,
    other_rows: bool = False,
    said: Callable[[str], None] = lambda note: None,
) -> Detections:
    """Runs a checkpoint over videos; writes the detections as ActivityNet results JSON if told.

    Args:
        checkpoint: written by training.
        data: where the videos' features lie.
        videos: names of the videos.
        out: results file; its folder is made when missing. None writes nothing.
        progress: called with (clips done, clips in all).
        threads: torch threads; as they are when None.
        device: ``auto``, ``cpu`` or ``cuda``; the training's when None.
        other_rows: predict although a row of the features stands for something else than in
            training (:mod:`tal_fast.data.row_meaning`).
        said: called with what there is to say about checkpoint and data.

    Returns:
        The detections.

    Raises:
        DataError: the data's channels or classes are not those of the checkpoint, or its rows
            stand for something else.
        TrainingError: the checkpoint cannot be read, or what it gives is not finite.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if out is not None:
        try:  # before what takes long
            Path(out).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(Path(out).parent, error) from error
    trained = load_trained(checkpoint)
    model, config, classes, _ = trained
    if data.channels != model.in_channels:
        raise DataError(
            f"{checkpoint} was trained on features of {counted(model.in_channels, 'channel')}, "
            f"{data.name} has {data.channels}"
        )
    if data.annotations.classes != classes:
        raise DataError(
            f"{checkpoint} knows the classes {list(classes)}, "
            f"{data.name} has {list(data.annotations.classes)}"
        )
    clips = clip_set_of(type(model), model.config, data, videos, training=False)
    note = _checked_rows(checkpoint, trained, clips, other_rows)
    if note is not None:
        said(note)
    model.to(resolve_device(device or config.training.device))
    detections = _detected(model, clips, videos, config.training, progress)
    if out is not None:
        write_results(out, detections, model=config.name)
    return detections


def _checked_rows(
    checkpoint: str | Path, trained: Trained, clips: ClipSet, accepted: bool
) -> str | None:
    """Compares the rows of clips with those that a model has learned from.

    Returns:
        What there is to say although they may be predicted; often nothing.

    Raises:
        DataError: they stand for something else, and that is not ``accepted``.
    """
    data, rows = clips.dataset, row_meaning(clips)
    file = data.path / "dataset.yaml"
    if trained.rows is None:
        return (
            f"{checkpoint} does not say how the rows of its training lie in time; those of {file} "
            f"must lie alike: {rows}"
        )
    fault = trained.rows.difference(rows)
    if fault is not None and not accepted:
        raise DataError(
            f"{checkpoint} was trained on {fault} in {data.name} ({file}: {data.spec.timing}); "
            "correct that file where it is wrong, else take features like those of the training, "
            f"or train on these; {argument('other_rows', True)} predicts all the same"
        )
    beyond = fault or trained.rows.beyond(rows)
    return beyond and f"{checkpoint} was trained on {beyond} in {data.name} ({file})"


def detect(
    model: Detector,
    data: TALDataset,
    videos: Sequence[str],
    config: TrainingConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
    batches: int | None = None,
) -> Detections:
    """Runs a model over the clips of videos and merges what the clips give.

    Per clip the model's candidates; then one non-maximum suppression over the clips of each video.

    Args:
        model: on the device to use, with its settings of clips and post-processing; its training
            mode is restored afterwards.
        data: where the videos' features lie.
        videos: names of the videos.
        config: of the training: batch size and precision.
        progress: called with (clips done, clips in all).
        batches: look at the first so many batches alone; at all when None.

    Returns:
        Detections grouped by video, in falling order of score.

    Raises:
        TrainingError: the outputs are not finite.
    """
    clips = clip_set_of(type(model), model.config, data, videos, training=False)
    return _detected(model, clips, videos, config, progress, batches)


@torch.inference_mode()
def _detected(
    model: Detector,
    clips: ClipSet,
    videos: Sequence[str],
    config: TrainingConfig,
    progress: Callable[[int, int], None] | None,
    batches: int | None = None,
) -> Detections:
    """Returns what :func:`detect` does, of the clips of the videos."""
    settings = model.config
    collected = _Found(clips.dataset, videos, settings.postprocess)
    was_training = model.training
    model.eval()
    try:
        with FeatureLoader(
            clips,
            config.batch_size,
            threads=settings.data.threads,
            rank=0,  # all clips, also where several processes train
            world_size=1,
        ) as loader:
            done = 0
            for batch in itertools.islice(loader, batches):
                collected.add(batch, _candidates(model, batch, config))
                done += len(batch)
                if progress is not None:
                    progress(done, len(clips))
    finally:
        model.train(was_training)
    with ranges.range("tal_fast.nms"):
        return collected.merged()


def _candidates(model: Detector, batch: Batch, config: TrainingConfig) -> Candidates:
    """Returns the candidates of a batch, on the host.

    Raises:
        TrainingError: they are not finite.
    """
    device = next(model.parameters()).device
    features, mask = batch.features.to(device), batch.mask.to(device)
    failure: Exception | None = None
    try:
        with ranges.range("tal_fast.forward"), autocast(device, config.amp):
            output = output_of(model, features, mask)
        with ranges.range("tal_fast.candidates"):
            given = proposals_of(model, output, mask)
        valid = None if given.valid is None else given.valid.cpu()
        scores, labels, segments = (item.cpu() for item in given[:3])
        candidates = Candidates(scores, labels, segments, valid)
        if all(bool(torch.isfinite(item).all()) for item in (scores, segments)):
            check_proposals(model, candidates)
            return candidates
    except (RuntimeError, ValueError) as error:
        failure = error  # ops on a CPU refuse what is not finite
    with autocast(device, config.amp):
        first = first_not_finite(model, features, mask)
    if failure is not None and first is None:
        raise failure
    mistake = not_finite(model, candidates) if first is None else None
    if mistake is not None:
        raise mistake
    raise TrainingError(
        f"the outputs are not finite for {clips_of(batch.videos)}; the first is "
        f"{first or 'a candidate'}"
    ) from failure


def suppressed(
    segments: Tensor,
    scores: Tensor,
    labels: Tensor,
    clips: Tensor,
    spans: Tensor,
    owners: Tensor,
    config: PostprocessConfig,
) -> ops.BatchedNMSResult:
    """Merges what clips found; arguments as of :func:`tal_fast.ops.fuse_windows`.

    Args:
        segments: ``Tensor[N, 2]``, in one unit of time.
        scores: ``Tensor[N]``.
        labels: ``Tensor[N]``.
        clips: ``Tensor[N]``, number of the clip of each.
        spans: ``Tensor[C, 2]``, of each clip.
        owners: ``Tensor[C]``, number of the video of each clip.
        config: how to suppress.
    """
    return ops.fuse_windows(
        segments,
        scores,
        labels,
        clips,
        spans,
        owners,
        scope=config.nms_scope,
        method=config.nms,
        iou_threshold=config.nms_threshold,
        sigma=config.nms_sigma,
        per_class=config.nms_classes == "each",
        voting_threshold=config.voting or None,
        voting_weight=config.voting_weight,
        min_score=config.min_score,
        max_segments=config.max_detections,
    )


class _Found:
    """Collects the candidates of clips and merges them into the detections of videos."""

    def __init__(self, data: TALDataset, videos: Sequence[str], config: PostprocessConfig) -> None:
        self._data = data
        self._videos = tuple(videos)
        self._number = {video: index for index, video in enumerate(videos)}
        self._config = config
        self._segments: list[Floats] = []
        self._scores: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._clips: list[int] = []  # of each candidate
        self._spans: list[Floats] = []
        self._owners: list[int] = []  # number of the video of each clip

    def add(self, batch: Batch, candidates: Candidates) -> None:
        """Takes in the candidates of a batch, which are on the host."""
        rows = candidates.segments.double().numpy()
        scores, labels, kept = candidates.scores, candidates.labels, candidates.valid
        if kept is None:
            kept = torch.ones_like(scores, dtype=torch.bool)
        for index, video in enumerate(batch.videos):
            grid, mine = self._data.grid(video), kept[index]
            # A resized video has other rows than its features.
            scale = self._data.features[video].rows / batch.rows[index]
            start, stop = batch.starts[index], batch.starts[index] + batch.lengths[index]
            seconds = grid.to_seconds((rows[index][mine.numpy()] + start) * scale)
            self._segments.append(
                self._within(seconds, video) if self._config.nms_clipped else seconds
            )
            self._scores.append(scores[index][mine])
            self._labels.append(labels[index][mine])
            self._clips += [len(self._spans)] * len(seconds)
            bounds = np.array([start, stop], dtype=np.float64)
            self._spans.append(grid.to_seconds(bounds * scale))
            self._owners.append(self._number[video])

    def _within(self, seconds: Floats, video: str) -> Floats:
        return np.clip(seconds, 0.0, self._data.annotations.videos[video].duration)

    def merged(self) -> Detections:
        """Suppresses over the clips of each video."""
        config = self._config
        owners = torch.tensor(self._owners, device="cpu")
        clips = torch.tensor(self._clips, dtype=torch.int64, device="cpu")
        labels = torch.cat(self._labels)
        kept = suppressed(
            torch.from_numpy(np.concatenate(self._segments)),
            torch.cat(self._scores).double(),
            labels,
            clips,
            torch.from_numpy(np.array(self._spans)),
            owners,
            config,
        )
        video = owners[clips[kept.indices]].numpy()
        segments = kept.segments.numpy()
        if not config.nms_clipped:
            for video_number in np.unique(video):
                mine = video == video_number
                segments[mine] = self._within(segments[mine], self._videos[video_number])
        start, end = np.ascontiguousarray(segments.T)
        return Detections(
            videos=self._videos,
            classes=self._data.annotations.classes,
            video=video,
            label=labels[kept.indices].numpy(),
            start=start,
            end=end,
            score=kept.scores.numpy(),
            origin="detections",
        )
