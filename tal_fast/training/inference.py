# SPDX-License-Identifier: Apache-2.0
"""From a trained model to detections in seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tal_fast import ops
from tal_fast.data.batches import Batch, BatchLoader
from tal_fast.data.dataset import TALDataset
from tal_fast.data.windows import WindowSet
from tal_fast.errors import DataError, TrainingError
from tal_fast.evaluation import Detections, write_results
from tal_fast.models import TadTR, TadTROutput
from tal_fast.models.segments import center_width_to_start_end
from tal_fast.ranges import nvtx_range
from tal_fast.training.checkpoint import load_model
from tal_fast.training.config import ExperimentConfig
from tal_fast.training.device import autocast, resolve_device
from tal_fast.training.finite import first_not_finite, windows_of

__all__ = ["detect", "predict"]


def predict(
    checkpoint: str | Path,
    data: TALDataset,
    videos: Sequence[str],
    out: str | Path,
    *,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
    device: str | None = None,
) -> Detections:
    """Runs a checkpoint over videos and writes the detections as ActivityNet results JSON.

    Args:
        checkpoint: written by training.
        data: where the videos' features lie.
        videos: names of the videos.
        out: results file.
        progress: called with (windows done, windows in all).
        threads: torch threads; as they are when None.
        device: ``auto``, ``cpu`` or ``cuda``; the training's when None.

    Returns:
        The detections.

    Raises:
        DataError: the data's channels or classes are not those of the checkpoint.
        TrainingError: the checkpoint cannot be read, or what it gives is not finite.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    model, config, classes = load_model(checkpoint)
    if data.channels != model.in_channels:
        raise DataError(
            f"{checkpoint} was trained on features of {model.in_channels} channels, "
            f"{data.name} has {data.channels}"
        )
    if data.annotations.classes != classes:
        raise DataError(
            f"{checkpoint} knows the classes {list(classes)}, "
            f"{data.name} has {list(data.annotations.classes)}"
        )
    model.to(resolve_device(device or config.training.device))
    found = detect(model, data, videos, config, progress=progress)
    write_results(out, found)
    return found


@torch.inference_mode()
def detect(
    model: TadTR,
    data: TALDataset,
    videos: Sequence[str],
    config: ExperimentConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Detections:
    """Runs a model over the sliding windows of videos and merges what the windows give.

    Per window the best ``top_k`` (query, class) pairs by class probability times actionness; then
    one class-wise non-maximum suppression over the windows of each video.

    Args:
        model: on the device to use; its training mode is restored afterwards.
        data: where the videos' features lie.
        videos: names of the videos.
        config: windows and post-processing.
        progress: called with (windows done, windows in all).

    Returns:
        Detections grouped by video, in falling order of score.

    Raises:
        TrainingError: the outputs are not finite.
    """
    windows = WindowSet(
        data,
        videos,
        length=config.data.window,
        overlap=config.data.test_overlap,
        min_inside=config.data.min_inside,
        drop_empty=False,
    )
    number = {video: index for index, video in enumerate(videos)}
    segments, scores, labels, owners = [], [], [], []
    spans: list[np.ndarray] = []
    window_videos: list[int] = []
    was_training = model.training
    model.eval()
    try:
        with BatchLoader(
            windows,
            config.training.batch_size,
            threads=config.data.threads,
            rank=0,  # all windows, also where several processes train
            world_size=1,
        ) as loader:
            done = 0
            for batch in loader:
                score, label, segment = _outputs(model, batch, config)
                rows = segment.double().numpy() * config.data.window
                for index, window in enumerate(batch.windows):
                    video = data.annotations.videos[window.video]
                    seconds = data.grid(window.video).to_seconds(rows[index] + window.start)
                    segments.append(np.clip(seconds, 0.0, video.duration))
                    owners += [len(spans)] * len(seconds)
                    bounds = np.array([window.start, window.stop], dtype=np.float64)
                    spans.append(data.grid(window.video).to_seconds(bounds))
                    window_videos.append(number[window.video])
                scores.append(score.flatten())
                labels.append(label.flatten())
                done += len(batch.windows)
                if progress is not None:
                    progress(done, len(windows))
    finally:
        model.train(was_training)
    return _merge(
        torch.from_numpy(np.concatenate(segments)),
        torch.cat(scores).double(),
        torch.cat(labels),
        torch.tensor(owners, device="cpu"),
        torch.from_numpy(np.array(spans)),
        torch.tensor(window_videos, device="cpu"),
        videos,
        data.annotations.classes,
        config,
    )


def _outputs(model: TadTR, batch: Batch, config: ExperimentConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what :func:`_best` gives for a batch, on the host.

    Raises:
        TrainingError: it is not finite.
    """
    device = next(model.parameters()).device
    features, mask = batch.features.to(device), batch.mask.to(device)
    failure: Exception | None = None
    try:
        with nvtx_range("tal_fast.forward"), autocast(device, config.training.amp):
            output = model(features, mask)
        score, label, segment = (x.cpu() for x in _best(output, config.postprocess.top_k))
        if bool(torch.isfinite(score).all()) and bool(torch.isfinite(segment).all()):
            return score, label, segment
    except (RuntimeError, ValueError) as error:
        failure = error  # ops on a CPU refuse what is not finite
    with autocast(device, config.training.amp):
        first = first_not_finite(model, features, mask)
    if failure is not None and first is None:
        raise failure
    raise TrainingError(
        f"the outputs are not finite for {windows_of(batch.windows)}; the first is "
        f"{first or 'a score'}"
    ) from failure


def _best(output: TadTROutput, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns score [B, k], label [B, k] and (start, end) [B, k, 2] in windows."""
    probability = output.logits[-1].sigmoid()
    if output.actionness is not None:
        probability = probability * output.actionness[..., None]
    num_classes = probability.shape[-1]
    flat = probability.flatten(1)
    score, index = flat.topk(min(top_k, flat.shape[1]), dim=1)
    segments = center_width_to_start_end(output.segments[-1])
    query = (index // num_classes)[..., None].expand(-1, -1, 2)
    return score, index % num_classes, segments.gather(1, query)


def _merge(
    segments: Tensor,
    scores: Tensor,
    labels: Tensor,
    windows: Tensor,
    spans: Tensor,
    window_videos: Tensor,
    videos: Sequence[str],
    classes: tuple[str, ...],
    config: ExperimentConfig,
) -> Detections:
    with nvtx_range("tal_fast.nms"):
        kept = ops.fuse_windows(
            segments,
            scores,
            labels,
            windows,
            spans,
            window_videos,
            scope=config.postprocess.nms_scope,
            method="hard",
            iou_threshold=config.postprocess.nms_threshold,
            min_score=config.postprocess.min_score,
            max_segments=config.postprocess.max_detections,
        )
    start, end = kept.segments.T.contiguous().numpy()
    return Detections(
        videos=tuple(videos),
        classes=classes,
        video=window_videos[windows[kept.indices]].numpy(),
        label=labels[kept.indices].numpy(),
        start=start,
        end=end,
        score=kept.scores.numpy(),
        origin="detections",
    )
