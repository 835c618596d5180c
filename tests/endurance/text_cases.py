# SPDX-License-Identifier: Apache-2.0
"""Annotations, results, settings and tables: bent content, bent text, bent bytes.

Whatever is taken is compared with what Python's own readers find in the same file.
"""

from __future__ import annotations

import gzip
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from endurance.mutators import bent_bytes, bent_content, bent_table, bent_text, json_text
from endurance.subject import Subject, check_command, expect, refusal

from tal_fast import evaluate, open_dataset
from tal_fast.curves import read_curves
from tal_fast.data import load_annotations
from tal_fast.data.prepare.segment_table import read_segment_table
from tal_fast.evaluation import read_ground_truth, read_results
from tal_fast.training.config import config_to_dict, load_config

VIDEOS = {"a": 40, "b": 100, "c": 333, "d": 64}
# Those of libyaml, where PyYAML has it: ten times as fast as those in Python, and readers of tabs
# where these are not.
_FAST = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_READER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
CLASSES = ("run", "jump", "sit & <b>")


def annotations() -> dict[str, Any]:
    """The content of a sound annotation file."""
    database = {
        name: {
            "subset": "validation" if name == "d" else "training",
            "duration": rows / 10,
            "fps": 10.0,
            "annotations": [
                {"label": CLASSES[i], "label_id": i, "segment": [1.0 + i, 2.5 + i]}
                for i in range(2 if name in "ab" else 1)
            ],
        }
        for name, rows in VIDEOS.items()
    }
    return {"version": "1", "database": database}


def results() -> dict[str, Any]:
    """The content of a sound results file for :func:`annotations`."""
    return {
        "version": "1",
        "results": {
            name: [
                {"segment": [0.5 * i, 2.0 + i], "label": CLASSES[i % 2], "score": 0.9 - 0.1 * i}
                for i in range(3)
            ]
            for name in VIDEOS
        },
        "external_data": {},
    }


def dataset_yaml() -> dict[str, Any]:
    """The content of a sound ``dataset.yaml``."""
    return {
        "format": 1,
        "name": "tiny",
        "annotations": "annotations.json",
        "features": "features",
        "feature": {
            "prefix": "",
            "suffix": ".npy",
            "layout": "TC",
            "channels": 4,
            "stride": 1,
            "frames": 1,
            "fps": None,
        },
        "splits": {"train": "training", "test": ["validation"]},
        "exclude": {"broken": ["c"]},
        "ignore_labels": ["Ambiguous"],
        "citation": "none",
    }


def write_dataset(folder: Path) -> Path:
    """Writes a sound data directory."""
    (folder / "features").mkdir(parents=True)
    for name, rows in VIDEOS.items():
        values = np.arange(4.0 * rows, dtype=np.float32).reshape(rows, 4)
        np.save(folder / "features" / f"{name}.npy", values)
    (folder / "annotations.json").write_text(json.dumps(annotations()))
    (folder / "dataset.yaml").write_text(yaml.safe_dump(dataset_yaml(), sort_keys=False))
    return folder


def encoded(rng: random.Random, text: str, packed: bool = False) -> bytes:
    """Returns a text as bytes, mostly UTF-8, sometimes bent once more or gzipped."""
    coding = rng.choice((*["utf-8"] * 12, "utf-8-sig", "utf-16", "latin-1"))
    data = text.encode(coding, "surrogatepass" if coding.startswith("utf") else "replace")
    data = bent_bytes(rng, data) if rng.random() < 0.2 else data
    if packed:
        data = gzip.compress(data)
        data = bent_bytes(rng, data) if rng.random() < 0.5 else data
    return data


class NestedFiles(Subject):
    """Text of nested values, whose content, text or bytes are bent."""

    #: Whether objects may be written that hold a key twice.
    twice = True

    def sound(self) -> Any:
        """The content of a sound file."""
        raise NotImplementedError

    def write(self, rng: random.Random, content: Any) -> str:
        """Returns the text of a content, in one of its forms."""
        raise NotImplementedError

    def text(self, rng: random.Random) -> str:
        """Returns the text of a case: sound, of a content that is bent, or bent itself."""
        content, how = self.sound(), rng.random()
        if 0.15 <= how < 0.8:
            content = bent_content(rng, content, twice=self.twice)
        text = self.write(rng, content)
        return text if how < 0.8 else bent_text(rng, text)


class JsonFiles(NestedFiles):
    """JSON, also packed."""

    endings: tuple[str, ...] = (".json", ".json", ".json", ".json.gz")

    def write(self, rng: random.Random, content: Any) -> str:
        text = json_text(content)
        return text if rng.random() < 0.8 else text.replace(", ", ",\n ")

    def make(self, rng: random.Random) -> Path:
        ending = rng.choice(self.endings)
        path = self.fresh() / f"a{ending}"
        path.write_bytes(encoded(rng, self.text(rng), ending.endswith(".gz")))
        return path


def parsed(path: Path, *, last: bool = False) -> Any:
    """Reads JSON with Python's own reader; a key that is twice is a fault, or the last counts."""

    def once(items: list[tuple[str, Any]]) -> dict[str, Any]:
        expect(last or len(dict(items)) == len(items), "took an object with a key twice:", items)
        return dict(items)

    data = path.read_bytes()
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    return json.loads(data, object_pairs_hook=once)


class AnnotationFiles(JsonFiles):
    name = "annotations"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / "results.json").write_text(json.dumps(results()))
        write_dataset(folder / "data")

    def sound(self) -> Any:
        return annotations()

    def check(self, path: Path, rng: random.Random) -> bool:
        taken = False
        with refusal():
            truth = read_ground_truth(path)
            taken = True
            videos = parsed(path)["database"]
            expect(list(videos) == list(truth.videos), "other videos", truth.videos)
            rows = [(v, a) for v in videos for a in videos[v].get("annotations", ())]
            expect(len(rows) == len(truth.start), "other numbers of annotations")
            for i, (video, given) in enumerate(rows):
                found = (
                    truth.videos[truth.video[i]],
                    truth.classes[truth.label[i]],
                    truth.start[i],
                    truth.end[i],
                )
                wanted = (video, given["label"], *map(float, given["segment"]))
                expect(found == wanted, found, "for", wanted)
                expect(0 <= truth.start[i] <= truth.end[i] < math.inf, "took", wanted)
        for rule in ("error", "clamp", "keep"):
            with refusal():
                loaded = load_annotations(path, out_of_range=rule)
                for name, video in loaded.videos.items():
                    expect(np.isfinite(video.segments).all(), "took a time that is not finite")
                    expect(bool((video.segments[:, 0] <= video.segments[:, 1]).all()), "reversed")
                    if rule != "keep":
                        expect(bool((video.segments <= video.duration).all()), name, "too late")
        return taken

    def commands(self, path: Path, rng: random.Random) -> None:
        check_command(
            "evaluate",
            "--annotations",
            path,
            "--predictions",
            self.folder / "results.json",
            "--json",
            path.with_name("out.json"),
        )
        check_command(
            "validate",
            "--annotations",
            path,
            "--features",
            self.folder / "data/features",
            "--report",
            path.with_name("page"),
            "--stride",
            "1",
            "--split",
            "test=validation",
        )


class ResultFiles(JsonFiles):
    name, endings = "results", (".json", ".json", ".json.gz", ".jsonl", ".jsonl.gz")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.truth = folder / "annotations.json"
        self.truth.write_text(json.dumps(annotations()))

    def sound(self) -> Any:
        return results()

    def make(self, rng: random.Random) -> Path:
        path = super().make(rng)
        if "jsonl" in path.name:
            rows = [
                {"video": video, **row}
                for video, rows in results()["results"].items()
                for row in rows
            ]
            bent = bent_content(rng, rows)
            text = "\n".join(map(json_text, bent)) + "\n"
            text = bent_text(rng, text) if rng.random() < 0.3 else text
            path.write_bytes(encoded(rng, text, path.suffix == ".gz"))
        return path

    def check(self, path: Path, rng: random.Random) -> bool:
        taken = False
        with refusal():
            found = read_results(path)
            taken = True
            rows = _lines(path) if "jsonl" in path.name else _records(parsed(path))
            expect(len(rows) == len(found), "other numbers of predictions")
            for i, (video, row) in enumerate(rows):
                here = (
                    found.videos[found.video[i]],
                    found.classes[found.label[i]],
                    found.start[i],
                    found.end[i],
                    found.score[i],
                )
                wanted = (video, row["label"], *map(float, row["segment"]), float(row["score"]))
                expect(here == wanted, here, "for", wanted)
                expect(bool(np.isfinite(here[2:]).all()) and here[2] <= here[3], "took", wanted)
        with refusal():
            score = evaluate(self.truth, path)
            expect(0.0 <= score.average_map <= 1.0, "average mAP", score.average_map)
            if "jsonl" not in path.name:
                same = evaluate(self.truth, parsed(path))
                expect(same.average_map == score.average_map, "another average mAP of its content")
        return taken

    def commands(self, path: Path, rng: random.Random) -> None:
        check_command(
            "evaluate",
            "--annotations",
            self.truth,
            "--predictions",
            path,
            "--errors",
            "--recall",
            "--dialect",
            rng.choice(("tal_fast", "activitynet", "thumos")),
            "--report",
            path.with_name("page"),
        )


def _records(content: Any) -> list[tuple[str, Any]]:
    return [(str(video), row) for video, rows in content["results"].items() for row in rows]


def _lines(path: Path) -> list[tuple[str, Any]]:
    data = path.read_bytes()
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    rows = [json.loads(line) for line in data.splitlines() if line.strip()]
    order = list(dict.fromkeys(row["video"] for row in rows))
    expect(all(isinstance(video, str) for video in order), "took a video that is no text")
    return [(row["video"], row) for row in rows]


class YamlFiles(NestedFiles):
    """YAML."""

    twice = False

    def write(self, rng: random.Random, content: Any) -> str:
        style = {"sort_keys": False, "default_flow_style": rng.choice((False, False, True))}
        try:
            return str(yaml.dump(content, Dumper=_FAST, **style))
        except UnicodeEncodeError:  # half a pair of UTF-16
            return str(yaml.safe_dump(content, **style))


def parsed_yaml(path: Path) -> Any:
    """Reads YAML as PyYAML does; where a key is twice, the last counts."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=_READER)


class DatasetFiles(YamlFiles):
    name = "dataset.yaml"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.data = write_dataset(folder / "data")

    def sound(self) -> Any:
        return dataset_yaml()

    def make(self, rng: random.Random) -> Path:
        path = self.fresh() / "dataset.yaml"
        path.write_bytes(encoded(rng, self.text(rng)))
        for name in ("annotations.json", "features"):
            (path.parent / name).symlink_to(self.data / name)
        return path

    def check(self, path: Path, rng: random.Random) -> bool:
        with refusal():
            dataset = open_dataset(path.parent)
            given = parsed_yaml(path)
            expect(dataset.name == given["name"], "another name")
            expect(set(dataset.splits) == set(given.get("splits", ("train", "test"))), "splits")
            excluded = given.get("exclude") or {}
            groups = excluded.values() if isinstance(excluded, dict) else [excluded]
            gone = {video for videos in groups for video in videos}
            for videos in dataset.splits.values():
                expect(not gone & set(videos), "took a video that is excluded")
                for video in videos:
                    expect(dataset.features[video].rows == VIDEOS[video], "other rows")
            feature = given.get("feature") or {}
            for key in ("stride", "frames", "layout"):
                if key in feature:
                    expect(getattr(dataset.spec.feature, key) == feature[key], "another", key)
            return True
        return False

    def commands(self, path: Path, rng: random.Random) -> None:
        check_command("validate", "--data", path.parent, "--report", path.with_name("page"))
        check_command(
            "evaluate",
            "--annotations",
            path.parent,
            "--predictions",
            self.data / "annotations.json",
        )


class ConfigFiles(YamlFiles):
    name = "config.yaml"
    _models = ("tadtr-small", "actionformer-small", "tridet-small", "temporalmaxer-small")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.data = write_dataset(folder / "data")
        self.configs = [config_to_dict(load_config(preset=name)) for name in self._models]
        self.at = 0

    def sound(self) -> Any:
        return json.loads(json.dumps(self.configs[self.at]))

    def make(self, rng: random.Random) -> Path:
        self.at = rng.randrange(len(self.configs))
        path = self.fresh() / "config.yaml"
        path.write_bytes(encoded(rng, self.text(rng)))
        return path

    def check(self, path: Path, rng: random.Random) -> bool:
        with refusal():
            found = config_to_dict(load_config(path))
            given = parsed_yaml(path) or {}
            _check_settings(found, given, "")
            return True
        return False

    def commands(self, path: Path, rng: random.Random) -> None:
        check_command(
            "profile",
            "model",
            "--channels",
            8,
            "--classes",
            3,
            "--lengths",
            64,
            "--set",
            f"training.lr_drops={path.read_bytes()[:40].decode('latin-1')}",
        )


def _check_settings(found: Any, given: Any, where: str) -> None:
    for key, value in given.items():
        if isinstance(found[key], dict):
            _check_settings(found[key], value, f"{where}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            # A whole number where the setting is none may have more digits than that holds.
            same = found[key] == (float(value) if isinstance(found[key], float) else value)
            expect(same or [value] == found[key], f"{where}{key}", found[key], value)


class SegmentTables(Subject):
    name = "segments.csv"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.data = write_dataset(folder / "data")
        rows = ["video,start,end,label,subset"]
        for name, video in annotations()["database"].items():
            for item in video["annotations"]:
                start, end = item["segment"]
                rows.append(f"{name},{start},{end},{item['label']},{video['subset'][:5]}")
        self.text = "\n".join(rows) + "\n"

    def make(self, rng: random.Random) -> Path:
        path = self.fresh() / "segments.csv"
        how = rng.randrange(7)
        text = self.text
        if how:
            text = (bent_table if how <= 3 else bent_text)(rng, text)
        path.write_bytes(encoded(rng, text))
        return path

    def check(self, path: Path, rng: random.Random) -> bool:
        with refusal():
            table = read_segment_table(path)
            lines = path.read_text(encoding="utf-8-sig").splitlines()
            for rows in table.segments.values():
                for row in rows:
                    expect(-math.inf < row.start < row.end < math.inf, "took", row)
                    expect(row.label.strip() == row.label != "", "took", row)
            taken = sum(map(len, table.segments.values()))
            expect(taken <= len(lines) - 1, "more segments than lines")
            return True
        return False

    def commands(self, path: Path, rng: random.Random) -> None:
        out = path.with_name("out")
        status = check_command(
            "prepare",
            "csv",
            "--segments",
            path,
            "--features",
            self.data / "features",
            "--rate",
            10,
            "--out",
            out,
            "--missing",
            rng.choice(("error", "skip")),
        )
        if status == 0:
            check_command("validate", "--data", out)


class CurveTables(Subject):
    name = "tables of curves"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        shares = (5, 10, 20, 40, 70, 100)
        curve = [(p, 60 * p / (p + 20)) for p in shares]
        self.texts = (
            "percent,map_mean,map_std,n\n" + "".join(f"{p},{m:.3f},1.5,5\n" for p, m in curve),
            "p,mean,sd,n,videos\n"
            + "".join(f"{p / 100:g},{m / 100:.5f},0.015,5,{2 * p}\n" for p, m in curve),
            "model,sampling,budget,ema,p,repetition,seed,videos,instances,average_map,map_0.5\n"
            + "".join(
                f"tadtr,video,epochs,off,{p / 100:g},{r},7,{2 * p},{9 * p},"
                f"{m / 100 + r / 1e3:.5f},0.4\n"
                for p, m in curve
                for r in range(3)
            ),
            "videos;mAP\n"
            + "".join(f"{2 * p};{m:.1f} ± 1.5\n".replace(".", ",") for p, m in curve),
        )

    def make(self, rng: random.Random) -> Path:
        path = self.fresh() / "curve.csv"
        text = rng.choice(self.texts)
        how = rng.randrange(7)
        if how:
            text = (bent_table if how <= 3 else bent_text)(rng, text)
        path.write_bytes(encoded(rng, text))
        return path

    def check(self, path: Path, rng: random.Random) -> bool:
        with refusal():
            for curve in read_curves(path, repetitions=rng.choice((None, 3))):
                shares = [point.share for point in curve.points]
                expect(shares == sorted(shares) and len(shares) > 0, "shares", shares)
                for point in curve.points:
                    expect(0.0 <= point.share < math.inf, "share", point.share)
                    expect(0.0 <= point.mean <= 100.0, "mAP", point.mean)
                    known = point.deviation is None or 0.0 <= point.deviation < math.inf
                    expect(known and point.n >= 1, "deviation", point.deviation, point.n)
            return True
        return False

    def commands(self, path: Path, rng: random.Random) -> None:
        few = ("--draws", 3, "--families", "wbl4,mmf4", "--json", path.with_name("out.json"))
        check_command("study", "extrapolate", "--study", path, "--times", 2, *few)
        check_command("study", "fit", "--study", path, *few)
        check_command(
            "study", "plan", "--study", path, "--target", 50, "--hours", 1, "--seconds", 60, *few
        )


SUBJECTS = (AnnotationFiles, ResultFiles, DatasetFiles, ConfigFiles, SegmentTables, CurveTables)
