# SPDX-License-Identifier: Apache-2.0
"""The evaluator on a result of THUMOS14's size, from arrays, from dicts and from JSON on disk.

Each case is checked against the plain Python twin (tests/evaluation/reference_ap.py) before it is
timed. Run: ``pytest benchmarks/bench_evaluation.py --benchmark-only`` (``make bench`` runs all).
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import pytest
import reference_ap

from tal_fast.evaluation import Detections, evaluate, evaluate_arrays

CLASSES = 20
VIDEOS = 212
INSTANCES = 3352
DETECTIONS = 42_000
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)


class Case(NamedTuple):
    """Ground truth and detections as evaluate_arrays takes them."""

    gt_video: np.ndarray
    gt_label: np.ndarray
    gt_segments: np.ndarray
    video: np.ndarray
    label: np.ndarray
    segments: np.ndarray
    scores: np.ndarray


def make_case(videos: int, classes: int, instances: int, detections: int) -> Case:
    """Instances with jittered copies of themselves and a background of false detections."""
    rng = np.random.default_rng(0)
    start = rng.uniform(0, 200, instances)
    gt_segments = np.stack([start, start + rng.lognormal(1, 0.8, instances)], 1)
    gt_video = rng.integers(0, videos, instances)
    gt_label = rng.integers(0, classes, instances)
    source = rng.integers(0, instances, detections)
    length = (gt_segments[:, 1] - gt_segments[:, 0])[source]
    jitter = rng.normal(0, 0.25, (detections, 2)) * length[:, None]
    segments = np.sort(gt_segments[source] + jitter, axis=1)
    background = rng.random(detections) < 0.5
    video = np.where(background, rng.integers(0, videos, detections), gt_video[source])
    label = np.where(background, rng.integers(0, classes, detections), gt_label[source])
    order = np.argsort(video, kind="stable")  # a results file lists one video after the other
    return Case(
        gt_video,
        gt_label,
        gt_segments,
        video[order],
        label[order],
        segments[order],
        rng.random(detections),
    )


@pytest.fixture(scope="module")
def thumos() -> Case:
    return make_case(VIDEOS, CLASSES, INSTANCES, DETECTIONS)


@pytest.fixture(scope="module")
def expected(thumos: Case) -> np.ndarray:
    """AP by the twin."""
    truth = [
        (v, c, *s)
        for v, c, s in zip(
            thumos.gt_video.tolist(),
            thumos.gt_label.tolist(),
            thumos.gt_segments.tolist(),
            strict=True,
        )
    ]
    found = [
        (v, c, *s, x)
        for v, c, s, x in zip(
            thumos.video.tolist(),
            thumos.label.tolist(),
            thumos.segments.tolist(),
            thumos.scores.tolist(),
            strict=True,
        )
    ]
    ap, _ = reference_ap.average_precision(truth, found, CLASSES, THRESHOLDS)
    return np.array(ap)


@pytest.fixture(scope="module")
def files(thumos: Case) -> tuple[dict[str, Any], dict[str, Any]]:
    """The case as the content of an annotation file and of a results file."""
    names = [f"class {c:02}" for c in range(CLASSES)]
    database: dict[str, Any] = {
        f"video_{v:04}": {"subset": "test", "duration": 300.0, "annotations": []}
        for v in range(VIDEOS)
    }
    for v, c, s in zip(thumos.gt_video, thumos.gt_label, thumos.gt_segments.tolist(), strict=True):
        database[f"video_{v:04}"]["annotations"].append({"segment": s, "label": names[c]})
    found = Detections(
        videos=tuple(database),
        classes=tuple(names),
        video=thumos.video,
        label=thumos.label,
        start=thumos.segments[:, 0],
        end=thumos.segments[:, 1],
        score=thumos.scores,
    )
    return {"database": database}, found.to_results()


def check(ap: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(ap, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("threads", [1, 2])
def test_arrays(benchmark: Any, thumos: Case, expected: np.ndarray, threads: int) -> None:
    """42,000 detections, 212 videos, 20 classes, 5 thresholds, from arrays."""
    check(evaluate_arrays(*thumos, num_threads=threads).ap, expected)
    benchmark(evaluate_arrays, *thumos, num_threads=threads)


def test_dicts(
    benchmark: Any, files: tuple[dict[str, Any], dict[str, Any]], expected: np.ndarray
) -> None:
    """The same from parsed JSON, every record checked."""
    check(evaluate(*files).ap, expected)
    benchmark(evaluate, *files)


def test_json_files(
    benchmark: Any,
    files: tuple[dict[str, Any], dict[str, Any]],
    expected: np.ndarray,
    tmp_path: Any,
) -> None:
    """The same from files on disk (page cache warm)."""
    paths = tmp_path / "truth.json", tmp_path / "found.json"
    for path, content in zip(paths, files, strict=True):
        path.write_text(json.dumps(content))
    check(evaluate(*paths).ap, expected)
    benchmark(evaluate, *paths)


@pytest.mark.parametrize("threads", [1, 2])
def test_activitynet_size(benchmark: Any, threads: int) -> None:
    """473,000 detections, 4,728 videos, 200 classes, 10 thresholds; two classes are verified."""
    case = make_case(4728, 200, 7654, 473_000)
    thresholds = tuple(k / 20 for k in range(10, 20))
    result = evaluate_arrays(*case, tiou_thresholds=thresholds, num_threads=threads)
    for label in (0, 199):
        own = case.gt_label == label
        mine = case.label == label
        truth = np.column_stack([case.gt_video[own], 0 * case.gt_label[own], case.gt_segments[own]])
        found = np.column_stack(
            [case.video[mine], 0 * case.label[mine], case.segments[mine], case.scores[mine]]
        )
        ap, _ = reference_ap.average_precision(truth.tolist(), found.tolist(), 1, thresholds)
        check(result.ap[label], np.array(ap[0]))
    benchmark(evaluate_arrays, *case, tiou_thresholds=thresholds, num_threads=threads)
