# SPDX-License-Identifier: Apache-2.0
"""The evaluators of other projects, each as one call on the same database and results.

Their files stay as they are and are imported one by one, with stand-ins for what evaluating does
not need (logging, registries, plotting). Where one fails on today's numpy or pandas it gets back,
while it runs, the name that it misses; ``SHIMS`` says which. All but mmaction2 need pandas on the
path; they are run in this process, without their pools of workers: compared is one thread with one
thread.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import itertools
import json
import re
import shutil
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peers import PeerMissingError, checkout, load_file

__all__ = ["PEERS", "SHIMS", "Outcome", "evaluator"]

#: What had to be given back to run today.
SHIMS: Mapping[str, str] = {
    "actionformer": "np.float",
    "tadtr": "np.float, drop by position",
    "activitynet": "np.float, Python 3 prints",
    "mmaction2": "",
    "opentad": "",
    "tridet": "",
}

#: {class: [AP per threshold]} and [mAP per threshold].
Outcome = tuple[dict[str, list[float]], list[float]]
Database = Mapping[str, Any]
Results = Mapping[str, Any]

_NUMBERS = itertools.count()


@contextlib.contextmanager
def _running() -> Iterator[None]:
    """Puts numpy's old names back and swallows what the peer prints."""
    missing = {"float": float, "int": int, "trapz": getattr(np, "trapezoid", None)}
    added = [name for name in missing if not hasattr(np, name)]
    for name in added:
        setattr(np, name, missing[name])
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in added:
            delattr(np, name)


def _pandas() -> None:
    try:
        import pandas  # noqa: F401
    except ImportError:
        raise PeerMissingError("pandas is absent, which this peer needs") from None


def _stub(name: str, **content: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(content)
    return module


def _joblib() -> types.ModuleType:
    """Its sequential mode."""
    return _stub("joblib", Parallel=lambda n_jobs: list, delayed=lambda function: function)


def _registry() -> Any:
    def register(*_: Any, **__: Any) -> Callable[[Any], Any]:
        return lambda cls: cls

    return types.SimpleNamespace(register_module=register)


@functools.cache
def _folder() -> Path:
    """For the files that peers insist on; gone when the process ends."""
    folder = tempfile.mkdtemp(prefix="tal_fast_peers_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _json_file(content: Any, name: str = "truth") -> str:
    path = _folder() / f"{name}_{next(_NUMBERS)}.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def _table(ap: np.ndarray, names: Sequence[str]) -> Outcome:
    """From [thresholds, classes]."""
    return dict(zip(names, ap.T.tolist(), strict=True)), ap.mean(axis=1).tolist()


# ---- one per project: (database, results, subset, thresholds) -> call -------------------------


def _actionformer_family(project: str) -> Callable[..., Callable[[], Outcome]]:
    _pandas()
    metrics = load_file(
        checkout(project) / "libs/utils/metrics.py",
        f"peer_{project}_metrics",
        {"joblib": _joblib()},
    )

    def make(
        database: Database, results: Results, subset: str, thresholds: Sequence[float]
    ) -> Callable[[], Outcome]:
        ids = {
            a["label"]: a["label_id"] for entry in database.values() for a in entry["annotations"]
        }
        with _running():
            evaluator = metrics.ANETdetection(
                _json_file({"database": database}),
                split=subset,
                tiou_thresholds=np.array(thresholds),
                num_workers=1,
            )
        rows = [(video, d) for video, own in results.items() for d in own]
        columns = {
            "video-id": [video for video, _ in rows],
            "t-start": np.array([float(d["segment"][0]) for _, d in rows]),
            "t-end": np.array([float(d["segment"][1]) for _, d in rows]),
            "label": np.array([ids[d["label"]] for _, d in rows], dtype=np.int64),
            "score": np.array([d["score"] for _, d in rows], dtype=np.float64),
        }
        name_of = {number: name for name, number in ids.items()}
        names = [name_of[int(number)] for number in evaluator.activity_index]

        def call() -> Outcome:
            with _running():
                if hasattr(evaluator, "wrapper_compute_topkx_recall"):
                    # mAP alone, as our call: recall would double its time.
                    evaluator.wrapper_compute_topkx_recall = lambda _: np.zeros(
                        (len(thresholds), 2, len(names))
                    )
                evaluator.evaluate(columns, verbose=False)
            return _table(evaluator.ap, names)

        def recall(top_k: Sequence[int]) -> np.ndarray:
            with _running():
                evaluator.top_k = tuple(top_k)
                evaluator.evaluate(columns, verbose=False)
            return evaluator.recall.mean(axis=2)

        call.recall = recall  # type: ignore[attr-defined]
        return call

    make.recall = lambda *case: make(*case[:-1]).recall(case[-1])  # type: ignore[attr-defined]
    return make


def _opentad() -> Callable[..., Callable[[], Outcome]]:
    _pandas()
    folder = checkout("OpenTAD") / "opentad/evaluations"
    mmengine = _stub("mmengine")
    registry = _stub("mmengine.registry", Registry=lambda name: _registry())
    builder = load_file(
        folder / "builder.py", "peer_opentad.builder",
        {"mmengine": mmengine, "mmengine.registry": registry},
    )  # fmt: skip
    package = _stub("peer_opentad", __path__=[str(folder)])
    module = load_file(
        folder / "mAP.py", "peer_opentad.mAP",
        {"peer_opentad": package, "peer_opentad.builder": builder},
    )  # fmt: skip

    def make(
        database: Database, results: Results, subset: str, thresholds: Sequence[float]
    ) -> Callable[[], Outcome]:
        with _running():
            evaluator = module.mAP(
                _json_file({"database": database}), {"results": results}, subset, list(thresholds)
            )

        def call() -> Outcome:
            with _running():
                evaluator.mAP_result_dict = {}
                evaluator.wrapper_compute_average_precision(list(evaluator.activity_index.values()))
            ap = np.stack(
                [evaluator.mAP_result_dict[c] for c in evaluator.activity_index.values()], axis=1
            )
            return _table(ap, list(evaluator.activity_index))

        return call

    def recall(
        database: Database,
        results: Results,
        subset: str,
        thresholds: Sequence[float],
        top_k: Sequence[int],
    ) -> np.ndarray:
        with _running():
            evaluator = module.mAP(
                _json_file({"database": database}),
                {"results": results},
                subset,
                list(thresholds),
                top_k=tuple(top_k),
            )
            evaluator.recall_result_dict = {}
            classes = list(evaluator.activity_index.values())
            evaluator.wrapper_compute_topkx_recall(classes)
        return np.mean([evaluator.recall_result_dict[c] for c in classes], axis=0)

    def average_recall(
        database: Database, results: Results, subset: str, thresholds: Sequence[float], most: int
    ) -> tuple[np.ndarray, float]:
        recall_module = load_file(
            folder / "recall.py",
            "peer_opentad.recall",
            {"peer_opentad": package, "peer_opentad.builder": builder, "peer_opentad.mAP": module},
        )
        with _running():
            evaluator = recall_module.Recall(
                _json_file({"database": database}),
                {"results": results},
                subset,
                list(thresholds),
                topk=[1],
                max_avg_nr_proposals=most,
            )
            evaluator.evaluate()
        return evaluator.recall, evaluator.auc

    make.recall = recall  # type: ignore[attr-defined]
    make.average_recall = average_recall  # type: ignore[attr-defined]
    return make


def _mmaction2() -> Callable[..., Callable[[], Outcome]]:
    folder = checkout("mmaction2") / "mmaction/evaluation/functional"
    logging = _stub(
        "mmengine.logging",
        MMLogger=types.SimpleNamespace(get_current_instance=lambda: None),
        print_log=lambda *_, **__: None,
    )
    needs = {"mmengine": _stub("mmengine"), "mmengine.logging": logging}
    package = _stub("peer_mmaction2", __path__=[str(folder)])
    accuracy = load_file(
        folder / "accuracy.py", "peer_mmaction2.accuracy", {**needs, "peer_mmaction2": package}
    )
    module = load_file(
        folder / "eval_detection.py", "peer_mmaction2.eval_detection",
        {**needs, "peer_mmaction2": package, "peer_mmaction2.accuracy": accuracy},
    )  # fmt: skip

    def make(
        database: Database, results: Results, subset: str, thresholds: Sequence[float]
    ) -> Callable[[], Outcome]:
        chosen = {v: entry for v, entry in database.items() if entry["subset"] == subset}
        truth = _json_file({f"v_{video}": entry for video, entry in chosen.items()})
        found = _json_file({"results": results}, "found")
        return mmaction2_from_files(module, truth, found, thresholds)[0]

    def average_recall(
        database: Database, results: Results, subset: str, thresholds: Sequence[float], most: int
    ) -> tuple[np.ndarray, float]:
        truth = {
            video: np.array([a["segment"] for a in entry["annotations"]])
            for video, entry in database.items()
            if entry["subset"] == subset
        }
        found = {
            video: np.array([[*d["segment"], d["score"]] for d in own])
            for video, own in results.items()
        }
        with _running():
            recall, _, _, auc = accuracy.average_recall_at_avg_proposals(
                truth, found, sum(map(len, found.values())), most, np.array(thresholds)
            )
        return recall, auc / 100  # it says percent

    make.average_recall = average_recall  # type: ignore[attr-defined]
    make.from_files = lambda truth, found, thresholds: mmaction2_from_files(  # type: ignore[attr-defined]
        module, truth, found, thresholds
    )
    return make


def mmaction2_from_files(
    module: types.ModuleType, truth: str, found: str, thresholds: Sequence[float]
) -> tuple[Callable[[], Outcome], Callable[[], Outcome]]:
    """Returns (call on loaded records, call that also loads both files)."""

    def load() -> Any:
        return module.ActivityNetLocalization(truth, found, np.array(thresholds))

    def run(evaluator: Any) -> Outcome:
        with _running():
            evaluator.evaluate()
        return _table(evaluator.ap, list(evaluator.activity_index))

    evaluator = load()
    return (lambda: run(evaluator)), (lambda: run(load()))


def _tadtr() -> Callable[..., Callable[[], Outcome]]:
    _pandas()
    import pandas

    root = checkout("TadTR")
    evaluation = _stub("peer_tadtr", __path__=[str(root / "Evaluation")])
    utils = load_file(root / "Evaluation/utils.py", "peer_tadtr.utils", {"peer_tadtr": evaluation})
    detection = load_file(
        root / "Evaluation/eval_detection.py", "peer_tadtr.eval_detection",
        {"peer_tadtr": evaluation, "peer_tadtr.utils": utils, "joblib": _joblib()},
    )  # fmt: skip
    matplotlib = {
        "matplotlib": _stub("matplotlib"),
        "matplotlib.pyplot": _stub("matplotlib.pyplot"),
    }
    datasets = _stub("peer_tadtr_datasets", __path__=[str(root / "datasets")])
    module = load_file(
        root / "datasets/tad_eval.py",
        "peer_tadtr_datasets.tad_eval",
        {
            **matplotlib,
            "opts": _stub("opts", cfg=None),
            "Evaluation": _stub("Evaluation"),
            "Evaluation.eval_detection": detection,
            "util": _stub("util"),
            "util.misc": _stub("util.misc", all_gather=None),
            "util.segment_ops": _stub("util.segment_ops", soft_nms=None, temporal_nms=None),
            "peer_tadtr_datasets": datasets,
            "peer_tadtr_datasets.data_utils": _stub(
                "peer_tadtr_datasets.data_utils", get_dataset_dict=None
            ),
        },
    )

    class Here:
        """A pool of workers that works at once."""

        def __init__(self, *_: Any) -> None: ...

        def __enter__(self) -> Here:
            return self

        def __exit__(self, *_: object) -> None: ...

        def submit(self, function: Any, *arguments: Any) -> Any:
            return types.SimpleNamespace(result=lambda: function(*arguments))

    def make(
        database: Database, results: Results, subset: str, thresholds: Sequence[float]
    ) -> Callable[[], Outcome]:
        import torch

        # The name of the file and the names of subsets are written into the evaluator.
        if subset != "test":
            raise ValueError(f"tadtr: expected the subset test, got {subset}")
        path = _json_file({"database": database})
        futures = types.SimpleNamespace(
            futures=types.SimpleNamespace(
                ProcessPoolExecutor=Here, as_completed=lambda futures: futures
            )
        )
        old_drop = pandas.DataFrame.drop

        @contextlib.contextmanager
        def in_place() -> Iterator[None]:
            def open_other(name: str, *rest: Any) -> Any:
                return open(path if name.endswith("duration.json") else name, *rest)

            module.open, module.concurrent = open_other, futures
            # pandas 2 took away the axis by position, which is all that is given back.
            pandas.DataFrame.drop = lambda frame, labels=None, axis=0, **more: old_drop(
                frame, labels, axis=axis, **more
            )
            try:
                with _running():
                    yield
            finally:
                pandas.DataFrame.drop = old_drop

        def call() -> Outcome:
            with in_place():
                evaluator = module.TADEvaluator(
                    "thumos14", "val", nms_mode=["raw"], iou_range=list(thresholds)
                )
                number = {name: i for i, name in enumerate(evaluator.classes)}
                evaluator.update(
                    {
                        video: {
                            "segments": torch.tensor(
                                [d["segment"] for d in own], dtype=torch.float64
                            ),
                            "scores": torch.tensor([d["score"] for d in own], dtype=torch.float64),
                            "labels": torch.tensor([number[d["label"]] for d in own]),
                        }
                        for video, own in results.items()
                        if own
                    }
                )
                evaluator.accumulate()
                means = evaluator.compute_map("raw")
            ap = evaluator.stats["raw"]["ap_values"]
            return dict(zip(evaluator.classes, ap.tolist(), strict=True)), means.tolist()

        return call

    return make


def _activitynet() -> Callable[..., Callable[[], Outcome]]:
    _pandas()
    root = checkout("ActivityNet") / "Evaluation"
    folder = _folder() / "activitynet"
    folder.mkdir(exist_ok=True)
    for name in ("utils.py", "eval_detection.py"):
        # Python 2: its print statements and the names that it used, nothing else, in a copy.
        text = (root / name).read_text(encoding="utf-8")
        text = re.sub(r"^(\s*)print (.*)$", r"\1print(\2)", text, flags=re.MULTILINE)
        text = text.replace(".iteritems()", ".items()").replace("xrange", "range")
        (folder / name).write_text(text, encoding="utf-8")
    urllib2 = {"urllib2": _stub("urllib2"), "joblib": _joblib()}
    utils = load_file(folder / "utils.py", "peer_activitynet_utils", urllib2)
    module = load_file(
        folder / "eval_detection.py", "peer_activitynet", {**urllib2, "utils": utils}
    )

    def make(
        database: Database, results: Results, subset: str, thresholds: Sequence[float]
    ) -> Callable[[], Outcome]:
        truth = _json_file({"database": database, "taxonomy": [], "version": ""})
        found = _json_file({"results": results, "version": "", "external_data": {}}, "found")
        with _running():
            evaluator = module.ANETdetection(
                truth, found, tiou_thresholds=np.array(thresholds), subset=subset,
                check_status=False,
            )  # fmt: skip

        def call() -> Outcome:
            with _running():
                evaluator.evaluate()
            return _table(evaluator.ap, list(evaluator.activity_index))

        return call

    return make


#: Dialect to what makes its evaluator.
PEERS: Mapping[str, Callable[[], Callable[..., Callable[[], Outcome]]]] = {
    "activitynet": _activitynet,
    "actionformer": lambda: _actionformer_family("actionformer_release"),
    "tridet": lambda: _actionformer_family("TriDet"),
    "opentad": _opentad,
    "mmaction2": _mmaction2,
    "tadtr": _tadtr,
}


def evaluator(dialect: str) -> Callable[..., Callable[[], Outcome]]:
    """Returns ``make(database, results, subset, thresholds) -> call() -> Outcome``.

    Args:
        dialect: whose evaluator. Annotations carry ``label`` and ``label_id``.

    Raises:
        PeerMissingError: the checkout, pandas or joblib is not there.
    """
    return PEERS[dialect]()
