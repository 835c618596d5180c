# SPDX-License-Identifier: Apache-2.0
"""What a model takes in prediction, by the length of a clip: time, memory, arithmetic.

In evaluation and inference mode, one clip at a time, with the padding that it really gets; after a
few runs to warm up, medians and quartiles of repeated ones; on a GPU when all is done. What is
beside the network (copying, candidates, suppression) is apart.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tal_fast.data.dataset import TALDataset
from tal_fast.data.files import check_writable
from tal_fast.data.loader import FeatureLoader
from tal_fast.errors import ConfigError, DataError, counted
from tal_fast.models import detector_of
from tal_fast.models.base import Detector, plain_defaults
from tal_fast.models.called import built, output_of, proposals_of
from tal_fast.profiling import procfs
from tal_fast.profiling.ceilings import machine_ceilings
from tal_fast.profiling.figures import csv_text, figure, value_of
from tal_fast.profiling.kinds import products_of
from tal_fast.profiling.model_cost import clips_per_minute, prediction_macs
from tal_fast.profiling.op_recorder import most_taken, new_profiler
from tal_fast.profiling.profile import FORMAT
from tal_fast.profiling.recording import Setting, write_profile
from tal_fast.profiling.step_profile import STEP_COLUMNS, no_step, step_of_clip
from tal_fast.profiling.work import roofs
from tal_fast.training.checkpoint import load_model
from tal_fast.training.config import ExperimentConfig, load_config
from tal_fast.training.device import autocast
from tal_fast.training.environment import describe_environment, usable_cores
from tal_fast.training.inference import suppressed

__all__ = ["ClipInput", "clips_of_data", "made_clips", "profile_prediction", "ready_model"]

DISTURBING = 0.1  # share of the cores that others may use before times are disturbed
PARTS = ("transfer", "network", "candidates", "suppression")
_WARM_UP = 3
_REPEATS = 25
_QUICK = 5
_PATIENCE = 20.0  # seconds for a length, or about; at least three repeats
_LENGTHS = 5  # that are chosen of a data set


@dataclass(frozen=True)
class ClipInput:
    """A clip to predict.

    Attributes:
        features: ``Tensor[1, L, C]``, zero on padded rows.
        mask: ``BoolTensor[1, L]``, True on padded rows.
        rows: real rows.
    """

    features: Tensor
    mask: Tensor
    rows: int


@dataclass
class _Runs:
    """Seconds of each repeat by part, CPU time of all threads, and how much was found."""

    parts: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in PARTS})
    cpu: list[float] = field(default_factory=list)
    network_cpu: list[float] = field(default_factory=list)
    candidates: int = 0
    detections: int = 0


def ready_model(
    name: str | None, checkpoint: Path | None, sizes: tuple[int, int], settings: Sequence[str]
) -> tuple[Detector, ExperimentConfig]:
    """Returns a model to predict with, and its settings.

    Args:
        name: of a fresh one, with the first weights of its seed; or None.
        checkpoint: file of a trained one, where there is no name.
        sizes: channels and classes of a fresh one.
        settings: over those of a fresh one, ``section.field=value``.

    Raises:
        ConfigError: settings for a checkpoint, or what cannot be built.
        TrainingError: the checkpoint cannot be read.
    """
    if checkpoint is not None:
        if settings:
            raise ConfigError("--set: a checkpoint comes with its settings; expected none")
        model, config, _ = load_model(checkpoint)
        return model, config
    config = load_config(preset=name, overrides=settings)
    torch.manual_seed(config.training.seed)
    with plain_defaults():
        return built(detector_of(config.name), *sizes, config.detector), config


def made_clips(model: Detector, lengths: Sequence[int], seed: int = 0) -> list[ClipInput]:
    """Returns clips of normal noise, padded as the model has it.

    Args:
        model: gives channels and padding.
        lengths: real rows.
        seed: of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    clips = []
    for rows in lengths:
        if rows < 1:
            raise ConfigError(f"lengths: expected at least 1 row, got {rows}")
        padded = model.rows_needed(model.config, rows)
        features = torch.zeros(1, padded, model.in_channels)
        features[0, :rows] = torch.randn(rows, model.in_channels, generator=generator)
        clips.append(ClipInput(features, torch.arange(padded)[None] >= rows, rows))
    return clips


def clips_of_data(model: Detector, data: TALDataset, videos: Sequence[str]) -> list[ClipInput]:
    """Returns clips of videos: the shortest, the longest, and those at the quarters between.

    Args:
        model: says how videos become clips.
        data: the data set.
        videos: names of the videos.

    Raises:
        DataError: the data has other channels than the model.
    """
    if data.channels != model.in_channels:
        raise DataError(
            f"the model takes features of {counted(model.in_channels, 'channel')}, {data.name} has "
            f"{data.channels}"
        )
    clips = model.clips(model.config, data, videos, training=False)
    order = sorted(range(len(clips)), key=lambda index: int(clips.lengths[index]))
    places = [order[(len(order) - 1) * i // (_LENGTHS - 1)] for i in range(_LENGTHS)]
    by_length = {int(clips.lengths[index]): index for index in places}
    clip_inputs = []
    with FeatureLoader(clips, 1, rank=0, world_size=1) as loader:
        for index in by_length.values():
            loader.resume(0, index)
            batch = next(iter(loader))
            clip_inputs.append(
                ClipInput(batch.features.clone(), batch.mask.clone(), batch.lengths[0])
            )
    return clip_inputs


def profile_prediction(
    model: Detector,
    config: ExperimentConfig,
    clips: Sequence[ClipInput],
    out: Path,
    *,
    weights: str,
    timing: tuple[float, float] | None = None,
    training: bool = False,
    quick: bool = False,
    threads: int | None = None,
    said: Callable[[str], None] = lambda stage: None,
) -> dict[str, Any]:
    """Profiles a model's prediction and writes it.

    Args:
        model: to run; is put on the device of the settings, in evaluation mode.
        config: all settings.
        clips: to predict, each by itself.
        out: directory to write.
        weights: where they come from, ``trained`` or ``fresh``.
        timing: frames per second, and frames between two rows.
        training: also time a training step on each clip, of a copy of the model.
        quick: 5 repeats instead of 25.
        threads: torch threads; as they are when None.
        said: told of each stage.

    Returns:
        The content of ``profile.json``.

    Raises:
        DataError: ``out`` cannot be written.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    check_writable(out)
    setting = Setting.of(config)
    model.to(setting.device).eval()
    before = time.perf_counter(), time.process_time(), procfs.machine_cpu()
    entries: list[dict[str, Any]] = []
    products: list[tuple[int, int, int, int]] = []
    for clip in clips:
        said(f"{counted(clip.rows, 'row')}")
        repeats = _QUICK if quick else _REPEATS
        runs = _repeated(model, setting, clip, repeats)
        memory, largest = _traced(model, setting, clip)
        products = largest or products
        entry = _entry(model, config, clip, runs, memory, timing)
        if training:
            entry |= step_of_clip(model, config, clip.features, clip.rows, repeats=repeats)
        else:
            entry |= no_step("not asked for: --training")
        entries.append(entry)
    others = procfs.others_since(*before)
    said("measuring the machine")
    ceilings = machine_ceilings()
    threads_before = torch.get_num_threads()
    limits = roofs(
        ceilings, products=products, amp=setting.amp, threads=threads_before, device=setting.device
    )
    # On a busy machine the clock says more of others than of one thread's work.
    busy = others is not None and others > DISTURBING * usable_cores()
    rates_by = (
        "CPU time" if busy and threads_before == 1 and setting.device.type == "cpu" else "clock"
    )
    for entry in entries:
        _against(entry, limits, rates_by)
    profile = {
        "format": FORMAT,
        "command": "profile predict",
        "environment": describe_environment(),
        "usable_cores": usable_cores(),
        "disturbance": {"others": figure(others, "cores", "counter")},
        "prediction": {
            **_sizes(model, setting),
            "weights": weights,
            "timing": timing and list(timing),
            "rates_by": rates_by,
        },
        "limits": limits,
        "ceilings": ceilings["ceilings"],
        "lengths": entries,
    }
    write_profile(out, {"profile.json": profile, "lengths.csv": _lengths_csv(entries)})
    return profile


def _sizes(model: Detector, setting: Setting) -> dict[str, Any]:
    return {
        **setting.to_dict(),
        "batch": 1,
        "channels": model.in_channels,
        "classes": model.num_classes,
        "parameters": sum(p.numel() for p in model.parameters()),
        "warm_up": _WARM_UP,
    }


@torch.inference_mode()
def _repeated(model: Detector, setting: Setting, clip: ClipInput, repeats: int) -> _Runs:
    runs = _Runs()
    end = time.perf_counter() + _PATIENCE
    for repeat in range(_WARM_UP + repeats):
        late = time.perf_counter() > end and len(runs.cpu) >= 3
        if late:
            break
        kept = runs if repeat >= _WARM_UP else _Runs()
        began = time.process_time()
        _run(model, setting, clip, kept)
        kept.cpu.append(time.process_time() - began)
    return runs


def _run(model: Detector, setting: Setting, clip: ClipInput, runs: _Runs) -> None:
    """Predicts a clip once, part by part."""
    on_gpu = setting.device.type == "cuda"
    marks = [time.perf_counter()]

    def mark() -> None:
        if on_gpu:
            torch.cuda.synchronize(setting.device)
        marks.append(time.perf_counter())

    features, mask = clip.features.to(setting.device), clip.mask.to(setting.device)
    mark()
    began = time.process_time()
    with autocast(setting.device, setting.amp):
        output = output_of(model, features, mask)
    mark()
    runs.network_cpu.append(time.process_time() - began)
    given = proposals_of(model, output, mask)
    mark()
    valid = torch.ones_like(given.scores, dtype=torch.bool) if given.valid is None else given.valid
    valid = valid[0].cpu()
    scores, labels, segments = (item[0].cpu()[valid] for item in given[:3])
    kept = suppressed(
        segments.double(),
        scores.double(),
        labels,
        torch.zeros(len(scores), dtype=torch.int64),
        torch.tensor([[0.0, float(clip.rows)]], dtype=torch.float64),
        torch.zeros(1, dtype=torch.int64),
        model.config.postprocess,
    )
    mark()
    for name, first, last in zip(PARTS, marks, marks[1:], strict=False):
        runs.parts[name].append(last - first)
    runs.candidates, runs.detections = len(scores), len(kept.scores)


@torch.inference_mode()
def _traced(
    model: Detector, setting: Setting, clip: ClipInput
) -> tuple[dict[str, Any], list[tuple[int, int, int, int]]]:
    """Returns the most memory that the network takes beside its weights, and its products."""
    features, mask = clip.features.to(setting.device), clip.mask.to(setting.device)
    on_gpu = setting.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(setting.device)
        before = torch.cuda.memory_allocated(setting.device)
    profiler = new_profiler(memory=True)
    with profiler, autocast(setting.device, setting.amp):
        model(features, mask)
    if on_gpu:
        peak: float | None = torch.cuda.max_memory_allocated(setting.device) - before
    else:
        peak = most_taken(profiler)
    reason = "this torch does not tell"
    return figure(peak, "bytes", "counter", reason), products_of(profiler.events())


def _entry(
    model: Detector,
    config: ExperimentConfig,
    clip: ClipInput,
    runs: _Runs,
    memory: dict[str, Any],
    timing: tuple[float, float] | None,
) -> dict[str, Any]:
    padded = clip.features.shape[1]
    macs, known = prediction_macs(config, model.in_channels, model.num_classes, padded)
    medians = {name: statistics.median(times) for name, times in runs.parts.items()}
    low, _, high = statistics.quantiles(runs.parts["network"], n=4, method="inclusive")
    whole = sum(medians.values())
    minute, why = None, "nobody says how far rows are apart: --fps and --stride"
    if timing is not None:
        minute = 1e3 * whole * clips_per_minute(model, config, timing, clip.rows, padded)
    return {
        "rows": clip.rows,
        "padded": padded,
        "repeats": len(runs.cpu),
        "proposed": runs.candidates,
        "detections": runs.detections,
        "macs": figure(macs, "MAC", "formula" if known == "formula" else "counter"),
        **{name: figure(1e3 * seconds, "ms", "clock") for name, seconds in medians.items()},
        "network_quartiles": [1e3 * low, 1e3 * high],
        "network_cpu": figure(1e3 * statistics.median(runs.network_cpu), "ms", "clock"),
        "cpu": figure(1e3 * statistics.median(runs.cpu), "ms", "clock"),
        "memory": memory,
        "minute": figure(minute, "ms per minute of video", "clock", why),
    }


def _against(entry: dict[str, Any], limits: dict[str, Any], rates_by: str) -> None:
    """Adds rates, and the share of the best product."""
    took = entry["network_cpu" if rates_by == "CPU time" else "network"]["value"]
    rate = entry["macs"]["value"] / max(took, 1e-6) / 1e6
    peak = value_of(limits, "flops")
    entry["macs_rate"] = figure(rate, "GMAC/s", "formula")
    entry["peak_share"] = figure(2 * rate / peak, "of the best product", "formula")
    took = value_of(entry, "step_cpu" if rates_by == "CPU time" else "step")
    rate = None if took is None else entry["step_macs"]["value"] / took / 1e6
    why = entry["step"].get("reason", "")
    entry["step_rate"] = figure(rate, "GMAC/s", "formula", why)
    share = None if rate is None else 2 * rate / peak
    entry["step_share"] = figure(share, "of the best product", "formula", why)


_COLUMNS = (
    *("macs", *PARTS, "network_cpu", "cpu", "memory", "macs_rate", "peak_share", "minute"),
    *STEP_COLUMNS,
)


def _lengths_csv(entries: Sequence[dict[str, Any]]) -> str:
    """Returns a row per length; units are those of profile.json."""
    plain = ("rows", "padded", "repeats", "proposed", "detections")
    rows: list[Sequence[Any]] = [(*plain, "network_low", "network_high", *_COLUMNS)]
    for entry in entries:
        values = [entry[name]["value"] for name in _COLUMNS]
        rows.append([*(entry[name] for name in plain), *entry["network_quartiles"], *values])
    return csv_text(rows)
