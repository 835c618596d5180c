# SPDX-License-Identifier: Apache-2.0
"""The five things that most users do, in a call each: ``tal_fast.train`` and its siblings.

The commands of the same names are made of these calls, and each call of functions of the packages
below, which can do more: :func:`tal_fast.training.train`, :func:`tal_fast.evaluation.evaluate` and
so on. What is left out of the data, or never learned, is said on standard error.

Importing this module imports no torch; a call does where it needs it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tal_fast.data import TALDataset, dataset_annotations, open_dataset
from tal_fast.data.dataset_spec import is_dataset
from tal_fast.errors import ConfigError, nearest, printable
from tal_fast.progress import bar
from tal_fast.typing import FilePath

if TYPE_CHECKING:
    from tal_fast.evaluation import Detections, EvaluationResult
    from tal_fast.evaluation.dialects import Dialect
    from tal_fast.evaluation.ground_truth import GroundTruthSource
    from tal_fast.study import StudyResult, StudySpec
    from tal_fast.training import ExperimentConfig, TrainingSummary
    from tal_fast.training.plan import ShownProgress, TrainingPlan

__all__ = [
    "evaluate",
    "open_dataset",
    "plan_training",
    "predict",
    "run_study",
    "study_spec",
    "train",
]


def train(
    data: FilePath | TALDataset,
    out: FilePath,
    *,
    model: str | None = None,
    videos: str | Iterable[str] = "train",
    config: FilePath | ExperimentConfig | None = None,
    settings: Mapping[str, Any] | Sequence[str] = (),
    seed: int | None = None,
    resume: bool = True,
    progress: ShownProgress = True,
    threads: int | None = None,
    trust_times: bool = False,
) -> TrainingSummary:
    """Trains a model and keeps its weights in a directory.

    Writes ``checkpoint.pt``, ``config.yaml``, ``environment.json`` and ``log.csv``. Ctrl-C or
    SIGTERM writes the state after the running step, and the same call goes on from there: on a CPU
    to the very same weights.

    Args:
        data: a data directory or an opened data set.
        out: directory to write, made when missing.
        model: a preset (``tal_fast.models.available()``), or a class of one's own as
            ``"package.module:Class"`` or ``"path/to/file.py:Class"``; ``tadtr-small`` when neither
            this nor ``config`` names one.
        videos: videos to train on: a split of the data, ``"all"``, or names.
        config: YAML file of settings over the model's, or all settings, resolved.
        settings: single settings over both: ``{"training.epochs": 30}`` or
            ``["training.epochs=30"]``.
        seed: of weights, dropout and order; the same as ``{"training.seed": seed}``.
        resume: whether to continue an interrupted training in ``out``; False starts over and
            replaces what is there.
        progress: True for a bar on a terminal or in a notebook, False for none, or a function that
            is called with a :class:`~tal_fast.training.ProgressEvent` after every step.
        threads: torch threads; as they are when None.
        trust_times: continue although feature files have another size or time than when the
            training was interrupted, because their content is the same.

    Returns:
        Where the weights are, and what it took: epochs, steps, seconds.

    Raises:
        ConfigError: a setting, model or split is unknown or makes no sense, or ``out`` holds a
            training that has ended.
        DataError: the data is faulty, or some class has nothing to learn from.
        TrainingError: the loss is not finite, ``out`` cannot be written, or holds an interrupted
            training of other settings or data; or another process trains there.
    """
    plan = plan_training(
        data,
        out,
        model=model,
        videos=videos,
        config=config,
        settings=settings,
        seed=seed,
        resume=resume,
    )
    summary = plan.run(progress=progress, threads=threads, trust_times=trust_times)
    if plan.first:
        _say(plan.notes_after(summary))
    return summary


def plan_training(data: FilePath | TALDataset, out: FilePath, **options: Any) -> TrainingPlan:
    """Checks a training and says what of the data it leaves out; ``run()`` runs it.

    Args:
        data: as of :func:`train`.
        out: as of :func:`train`.
        options: ``model``, ``videos``, ``config``, ``settings``, ``seed`` and ``resume`` of it.

    Raises:
        ConfigError: as :func:`train`.
        DataError: as :func:`train`.
    """
    from tal_fast.training import plan

    planned = plan.plan_training(data, out, **options)
    if planned.first:
        _say(planned.notes)
    return planned


def predict(
    checkpoint: FilePath | TrainingSummary,
    data: FilePath | TALDataset,
    out: FilePath | None = None,
    *,
    videos: str | Iterable[str] = "test",
    progress: bool | Callable[[int, int], None] = True,
    threads: int | None = None,
    device: str | None = None,
    other_rows: bool = False,
    overwrite: bool = False,
) -> Detections:
    """Detects actions in videos.

    Args:
        checkpoint: the file or directory that :func:`train` wrote, or what it returned.
        data: a data directory or an opened data set, with the classes and channels of the
            training's, and as many rows per second.
        out: file to write the detections into, as results JSON of ActivityNet's form; None writes
            nothing.
        videos: a split of the data, ``"all"``, or names.
        progress: True for a bar on a terminal or in a notebook, False for none, or a function that
            is called with (clips done, clips in all).
        threads: torch threads; as they are when None.
        device: ``auto``, ``cpu`` or ``cuda``; the training's when None.
        other_rows: predict although the rows of the data lie in time otherwise than those of the
            training, or their streams stand in another order.
        overwrite: replace ``out`` if it is there.

    Returns:
        The detections, in seconds, by video in falling order of score.

    Raises:
        ConfigError: there is no such split.
        DataError: the data is faulty, its channels, classes or rows per second are not those of
            the checkpoint, or ``out`` is there.
        TrainingError: the checkpoint cannot be read, or what it gives is not finite.
    """
    from tal_fast import training
    from tal_fast.data.files import refuse_existing
    from tal_fast.study.execution.run_trial import require_kept

    if out is not None and not overwrite:
        refuse_existing(Path(out))
    file = _weights(checkpoint)
    require_kept(file)
    dataset = data if isinstance(data, TALDataset) else open_dataset(data)
    names = dataset.videos_of(videos, "videos")
    _say(dataset.notes())
    with bar("predicting", shown=progress is True) as update:
        told = update if isinstance(progress, bool) else progress
        return training.predict(
            file, dataset, names, None if out is None else Path(out),
            progress=told, threads=threads, device=device,
            other_rows=other_rows, said=lambda note: _say([note]),
        )  # fmt: skip


def _weights(checkpoint: FilePath | TrainingSummary) -> Path:
    """Returns the file of the weights that were meant."""
    from tal_fast.training import TrainingSummary

    if isinstance(checkpoint, TrainingSummary):
        return checkpoint.checkpoint
    path = Path(checkpoint)
    return path / "checkpoint.pt" if os.path.isdir(path) else path


def evaluate(
    annotations: GroundTruthSource | TALDataset,
    predictions: FilePath | Mapping[str, Any] | Detections,
    tiou_thresholds: Sequence[float] | str = (0.3, 0.4, 0.5, 0.6, 0.7),
    *,
    split: str | None = None,
    subset: str | None = None,
    dialect: str | Dialect = "tal_fast",
    strict: bool = False,
    ties: str | None = None,
    allow_pickle: bool = False,
    strict_times: bool = False,
) -> EvaluationResult:
    """Scores detections: average precision per class and tIoU threshold, and their means.

    Args:
        annotations: a data directory, an opened data set, or an annotation file of ActivityNet's
            form (path, plain or gzipped, or content).
        predictions: what :func:`predict` returned or wrote, or the results file of any other code:
            JSON or JSON lines, plain or gzipped, or its content.
        tiou_thresholds: one or more in (0, 1], or ``"first:last:step"``.
        split: of a data directory or data set: which videos to score, ``"test"`` when neither this
            nor ``subset`` says, ``"all"`` for the videos of all splits. Videos that were left out
            of prediction count, as missed.
        subset: the same by the name that the annotation file has for it; of a file, all its videos
            when None.
        dialect: whose rules: ``tal_fast``, ``activitynet``, ``actionformer``, ``tridet``,
            ``opentad``, ``mmaction2``, ``tadtr``, ``epic`` or ``thumos`` (``docs/dialects.md``).
        strict: follow the mistakes of the dialect, too.
        ties: ``stable`` or ``numpy``; as the dialect says when None.
        allow_pickle: read ActionFormer's ``eval_results.pkl``.
        strict_times: refuse predictions that start before 0 s.

    Returns:
        The result: ``average_map`` and ``map_at`` (tIoU -> mAP), fractions of 1; ``ap`` by class;
        as text the table of all.

    Raises:
        DataError: a file is missing or faulty, a label is no class, there is nothing to score, or
            predictions are for other videos than are scored.
        ConfigError: a threshold, split, dialect or rule is unknown.
    """
    from tal_fast import evaluation
    from tal_fast.study.execution.run_trial import require_kept
    from tal_fast.study.shares import parse_shares

    thresholds: Sequence[float] = (
        parse_shares("tiou_thresholds", tiou_thresholds)
        if isinstance(tiou_thresholds, str)
        else tiou_thresholds
    )
    if not isinstance(predictions, (Mapping, evaluation.Detections)):
        require_kept(Path(predictions))
    return evaluation.evaluate(
        _scored(annotations, split, subset),
        predictions,
        thresholds,
        subset,
        dialect=dialect,
        strict=strict,
        ties=ties,
        allow_pickle=allow_pickle,
        strict_times=strict_times,
    )


def _scored(
    annotations: GroundTruthSource | TALDataset, split: str | None, subset: str | None
) -> GroundTruthSource:
    """Returns the annotations of what is to be scored."""
    if split is not None and subset is not None:
        raise ConfigError(
            f"split: expected either split or subset, got both: {split!r} and {subset!r}"
        )
    chosen = split or ("all" if subset is not None else "test")
    if isinstance(annotations, TALDataset):
        return dataset_annotations(annotations, chosen)
    if isinstance(annotations, (str, os.PathLike)) and is_dataset(annotations):
        # Whole directories are read where they are scored, whose messages then name the file.
        return annotations if chosen == "all" else dataset_annotations(annotations, chosen)
    if split is not None:
        raise ConfigError(
            f"split: only a data directory has splits; of an annotation file name a subset, got "
            f"{split!r}"
        )
    return annotations


def study_spec(
    data: FilePath | TALDataset,
    out: FilePath,
    *,
    fractions: str | float | Sequence[float] | None = None,
    videos: str | Sequence[int] | None = None,
    sampling: str | Sequence[str] = "video",
    settings: Mapping[str, Any] | Sequence[str] = (),
    **options: Any,
) -> StudySpec:
    """Returns the request that :func:`run_study` runs; arguments and errors as there."""
    from tal_fast.study import StudySpec
    from tal_fast.study.sampling import parse_samplings
    from tal_fast.study.shares import fractions_of_videos, parse_fractions
    from tal_fast.study.splits import split_videos
    from tal_fast.training.config import named_model, parse_overrides

    known = [item.name for item in fields(StudySpec)]
    for name in options:
        if name not in known:
            raise TypeError(f"run_study() has no argument {name!r}{nearest(name, known)}")
    if fractions is not None and videos is not None:
        raise ConfigError("videos: expected either fractions or videos, got both")
    if videos is not None:
        dataset = data if isinstance(data, TALDataset) else open_dataset(data)
        split = split_videos(dataset, options.get("split", "data"), options.get("seed", 0))
        options["fractions"] = fractions_of_videos(videos, len(split.train))
    elif fractions is not None:
        options["fractions"] = parse_fractions(fractions)
    for name in ("budgets", "ema"):
        if isinstance(options.get(name), str):
            options[name] = tuple(word.strip() for word in options[name].split(","))
        elif options.get(name) is not None:
            options[name] = tuple(options[name])
    if options.get("config") is not None:
        options["config"] = Path(options["config"])
    if options.get("model") is None:
        options["model"] = named_model(options.get("config")) or StudySpec.model
    return StudySpec(
        data=data.path if isinstance(data, TALDataset) else Path(data),
        out=Path(out),
        samplings=parse_samplings(sampling),
        overrides=settings if isinstance(settings, Mapping) else parse_overrides(settings),
        **options,
    )


def run_study(
    data: FilePath | TALDataset,
    out: FilePath,
    *,
    model: str | None = None,
    fractions: str | float | Sequence[float] | None = None,
    videos: str | Sequence[int] | None = None,
    repetitions: int = 5,
    sampling: str | Sequence[str] = "video",
    split: str = "data",
    seed: int = 0,
    settings: Mapping[str, Any] | Sequence[str] = (),
    jobs: int | None = None,
    threads: int | None = None,
    **options: Any,
) -> StudyResult:
    """Trains on growing shares of the training data, and says what each brought.

    A study is a directory: the same call again runs only the trials that are missing, and a larger
    one extends it. Ctrl-C keeps what is finished.

    Args:
        data: a data directory, or an opened data set, whose directory is opened again.
        out: directory of the study, made when missing.
        model: as of :func:`train`.
        fractions: shares of the training data in (0, 1], as a sequence or ``"first:last:step"``;
            0.1, 0.2, … 1.0 when neither this nor ``videos`` is given.
        videos: instead of them, numbers of training videos.
        repetitions: draws per share.
        sampling: what is drawn: ``video``, ``stratified``, ``window``, each also ``nested-…``;
            several are crossed (``docs/studies.md``).
        split: ``data`` for the splits of the data, ``random`` for 80/20 by video.
        seed: of split, samples and trainings.
        settings: as of :func:`train`.
        jobs: trials at a time, one process each.
        threads: torch threads of a trial; cores / jobs when None.
        options: what else a :class:`tal_fast.study.StudySpec` has: ``seeds``, ``budgets``, ``ema``,
            ``config``, ``ray``, ``gpus_per_trial``, ``trust_times``, ``keep``, ``adaptive``.

    Returns:
        The curves (average mAP in points by share, mean and deviation), and the files of tables,
        pictures and page.

    Raises:
        ConfigError: the request makes no sense, or ``out`` holds a study of other settings or data.
        DataError: the data is faulty, or ``out`` cannot be written.
        TalFastError: a trial failed; the others are kept.
        TypeError: an option is unknown.
    """
    from tal_fast import study

    spec = study_spec(
        data,
        out,
        fractions=fractions,
        videos=videos,
        sampling=sampling,
        settings=settings,
        model=model,
        repetitions=repetitions,
        split=split,
        seed=seed,
        jobs=jobs,
        threads=threads,
        **options,
    )
    return study.run_study(spec)


def _say(notes: Iterable[str]) -> None:
    for note in notes:
        print(printable(f"note: {note}"), file=sys.stderr)
