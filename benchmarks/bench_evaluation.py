# SPDX-License-Identifier: Apache-2.0
"""The evaluator against those of other projects: from arrays, from JSON, at growing sizes.

Peers run where TAL_FAST_PEERS holds their checkouts (``benchmarks/peers/evaluators.py``); the
pandas ones also need pandas on the path. Every AP is compared before anything is timed. A pandas
evaluator takes 10 to 20 s here, so those rows rest on 3 rounds instead of 21. Reading is timed
apart: "arrays" rows start from arrays, and from the records that a peer keeps.
Run: ``make bench-eval``.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import reference_ap
from harness import Peer
from peers import PeerMissingError, evaluators

from tal_fast.evaluation import Detections, analyse_errors, bootstrap, evaluate, evaluate_arrays

THUMOS = (0.3, 0.4, 0.5, 0.6, 0.7)
ACTIVITYNET = tuple(k / 20 for k in range(10, 20))
VERIFIED = "AP of every class and threshold within 1e-12"


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
    gt_video[:videos] = np.arange(min(videos, instances))  # none without an instance
    gt_label[:classes] = np.arange(classes)
    source = rng.integers(0, instances, detections)
    length = (gt_segments[:, 1] - gt_segments[:, 0])[source]
    jitter = rng.normal(0, 0.25, (detections, 2)) * length[:, None]
    segments = np.sort(np.abs(gt_segments[source] + jitter), axis=1)
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
        rng.permutation(detections) / detections,  # no two are equal
    )


def contents(case: Case, videos: int, classes: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The case as the content of an annotation file and of a results file."""
    names = [f"class {c:03}" for c in range(classes)]
    database: dict[str, Any] = {
        f"video_{v:05}": {"subset": "test", "duration": 300.0, "annotations": []}
        for v in range(videos)
    }
    for v, c, s in zip(case.gt_video, case.gt_label, case.gt_segments.tolist(), strict=True):
        database[f"video_{v:05}"]["annotations"].append(
            {"segment": s, "label": names[c], "label_id": int(c)}
        )
    found = Detections(
        videos=tuple(database),
        classes=tuple(names),
        video=case.video,
        label=case.label,
        start=case.segments[:, 0],
        end=case.segments[:, 1],
        score=case.scores,
    )
    return {"database": database}, found.to_results()


def same_ap(classes: int) -> Callable[[Any, evaluators.Outcome], None]:
    """Returns the check of our result against a peer's outcome, class by class."""

    def check(ours: Any, theirs: evaluators.Outcome) -> None:
        ap, means = theirs
        assert len(ap) == classes
        for name, values in ap.items():
            np.testing.assert_allclose(ours.ap[int(name.split()[1])], values, rtol=0, atol=1e-12)
        np.testing.assert_allclose(ours.map_per_threshold, means, rtol=0, atol=1e-12)

    return check


def on_this_machine(dialect: str) -> Any:
    try:
        return evaluators.evaluator(dialect)
    except PeerMissingError as missing:
        pytest.skip(str(missing))


def name_of(dialect: str) -> str:
    shim = evaluators.SHIMS[dialect]
    return f"{dialect} ({shim} given back)" if shim else dialect


@pytest.fixture(scope="module")
def thumos() -> tuple[Case, dict[str, Any], dict[str, Any]]:
    case = make_case(212, 20, 3352, 42_000)
    return case, *contents(case, 212, 20)


@pytest.fixture(scope="module")
def activitynet() -> tuple[Case, dict[str, Any], dict[str, Any]]:
    case = make_case(4728, 200, 7654, 473_000)
    return case, *contents(case, 4728, 200)


SMALL = "42k detections, 212 videos, 20 classes, 5 tIoU, arrays"
LARGE = "473k detections, 4728 videos, 200 classes, 10 tIoU"
MUST: Mapping[str, tuple[float, float] | tuple[None, None]] = {
    "mmaction2": (45, 90),
    "actionformer": (1000, 3000),
    "opentad": (1000, 3000),
    "tridet": (None, None),
    "tadtr": (None, None),
    "activitynet": (None, None),
}


def test_arrays(compare: Any, threads: int, thumos: Any) -> None:
    case, truth, found = thumos
    make = on_this_machine("mmaction2")
    call = make(truth["database"], found["results"], "test", THUMOS)
    compare(
        "evaluate",
        SMALL,
        lambda: evaluate_arrays(*case, dialect="mmaction2", num_threads=threads),
        [Peer(name_of("mmaction2"), call, *MUST["mmaction2"])],
        check=same_ap(20),
        verified=VERIFIED,
    )


@pytest.mark.parametrize("threads", [1], indirect=True, ids=["1-thread"])
@pytest.mark.parametrize("dialect", [d for d in MUST if d != "mmaction2"])
def test_arrays_pandas(compare: Any, threads: int, thumos: Any, dialect: str) -> None:
    case, truth, found = thumos
    make = on_this_machine(dialect)
    call = make(truth["database"], found["results"], "test", THUMOS)
    ours = case
    if dialect == "tadtr":  # keeps the best 200 of each video itself
        assert np.bincount(case.video).max() > 200
    compare(
        "evaluate",
        SMALL,
        lambda: evaluate_arrays(*ours, dialect=dialect, num_threads=threads),
        [Peer(name_of(dialect), call, *MUST[dialect])],
        check=same_ap(20),
        verified=VERIFIED,
        repetitions=3,
    )


@pytest.mark.parametrize("threads", [1], indirect=True, ids=["1-thread"])
def test_large_arrays_opentad(compare: Any, threads: int, activitynet: Any) -> None:
    """Both sides get 8 of the 200 classes: all of them would take OpenTAD minutes per round."""
    case, truth, found = activitynet
    few = {f"class {c:03}" for c in range(8)}
    database = {
        v: {**e, "annotations": [a for a in e["annotations"] if a["label"] in few]}
        for v, e in truth["database"].items()
    }
    results = {v: [d for d in own if d["label"] in few] for v, own in found["results"].items()}
    gt, det = case.gt_label < 8, case.label < 8
    part = Case(*(column[gt] for column in case[:3]), *(column[det] for column in case[3:]))
    call = on_this_machine("opentad")(database, results, "test", ACTIVITYNET)
    compare(
        "evaluate",
        f"{LARGE}, arrays; 8 of the classes",
        lambda: evaluate_arrays(
            *part, dialect="opentad", tiou_thresholds=ACTIVITYNET, num_threads=threads
        ),
        [Peer(name_of("opentad"), call, 1000, 2500)],
        check=same_ap(8),
        verified=VERIFIED,
        repetitions=3,
    )


def test_large_arrays(compare: Any, threads: int, activitynet: Any) -> None:
    """Verified against the plain Python twin on two classes."""
    case = activitynet[0]

    def ours() -> Any:
        return evaluate_arrays(*case, tiou_thresholds=ACTIVITYNET, num_threads=threads)

    result = ours()
    for label in (0, 199):
        own, mine = case.gt_label == label, case.label == label
        truth = np.column_stack([case.gt_video[own], 0 * case.gt_label[own], case.gt_segments[own]])
        found = np.column_stack(
            [case.video[mine], 0 * case.label[mine], case.segments[mine], case.scores[mine]]
        )
        ap, _ = reference_ap.average_precision(truth.tolist(), found.tolist(), 1, ACTIVITYNET)
        np.testing.assert_allclose(result.ap[label], ap[0], rtol=0, atol=1e-12)
    compare("evaluate", f"{LARGE}, arrays", ours, [], check=_nothing, verified="two classes")


@pytest.mark.parametrize("threads", [1], indirect=True, ids=["1-thread"])
def test_json_files(compare: Any, threads: int, activitynet: Any, tmp_path: Path) -> None:
    """From files on disk, page cache warm, both sides parsing and checking."""
    _, truth, found = activitynet
    paths = [str(tmp_path / name) for name in ("truth.json", "bare.json", "found.json")]
    for path, content in zip(paths, (truth, truth["database"], found), strict=True):
        Path(path).write_text(json.dumps(content), encoding="utf-8")
    bare = {f"v_{video}": entry for video, entry in truth["database"].items()}
    Path(paths[1]).write_text(json.dumps(bare), encoding="utf-8")
    make = on_this_machine("mmaction2")
    call = make.from_files(paths[1], paths[2], ACTIVITYNET)[1]
    parser = "msgspec" if importlib.util.find_spec("msgspec") else "the standard library"
    compare(
        "evaluate",
        f"{LARGE}, JSON on disk, read with {parser}",
        lambda: evaluate(paths[1], paths[2], ACTIVITYNET, dialect="mmaction2", num_threads=threads),
        [Peer(name_of("mmaction2"), call, 5, 10)],
        check=same_ap(200),
        verified=VERIFIED,
        repetitions=5,
    )


def test_ten_million(compare: Any, threads: int) -> None:
    case = make_case(4728, 200, 7654, 10**7)
    compare(
        "evaluate",
        "10M detections, arrays",
        lambda: evaluate_arrays(*case, num_threads=threads),
        [],
        check=_nothing,
        verified="size alone; AP is verified in the other rows",
        repetitions=5,
    )


def test_growth(compare: Any, threads: int) -> None:
    """From five million to ten: both are far beyond any cache, so it shows the algorithm's."""
    large, small = make_case(4728, 200, 7654, 10**7), make_case(4728, 200, 7654, 5 * 10**6)
    compare(
        "evaluate",
        "10M detections against 5M, arrays: growth",
        lambda: evaluate_arrays(*large, num_threads=threads),
        [
            Peer(
                "ours with 5M",
                lambda: evaluate_arrays(*small, num_threads=threads),
                must=2.3,
                at_most=True,
            )
        ],
        check=_nothing,
        verified="size alone; AP is verified in the other rows",
        repetitions=5,
    )


def test_error_analysis(compare: Any, threads: int, thumos: Any) -> None:
    result = evaluate_arrays(*thumos[0], num_threads=threads)
    counts = analyse_errors(result).counts()
    assert (counts.sum(axis=1) == 42_000).all()
    assert (counts[:, 0] == result.true_positives.sum(axis=0)).all()
    compare(
        "evaluate",
        f"{SMALL}: error analysis",
        lambda: analyse_errors(result),
        [],
        check=_nothing,
        verified="hits agree with the evaluation, kinds add up",
    )


def test_bootstrap(compare: Any, threads: int, thumos: Any) -> None:
    result = evaluate_arrays(*thumos[0], num_threads=threads)
    interval = bootstrap(result).average_map
    assert interval.low < interval.value < interval.high
    assert not math.isnan(interval.high)
    compare(
        "evaluate",
        f"{SMALL}: bootstrap, 1000 replicates",
        lambda: bootstrap(result),
        [],
        check=_nothing,
        verified="the value lies within",
        repetitions=5,
    )


def _nothing(_: Any, __: Any) -> None:
    """For rows without a peer; the test has checked the result itself."""
