# SPDX-License-Identifier: Apache-2.0
"""Folders of studies one of whose files is bent: settings, facts of the data, records of trials."""

from __future__ import annotations

import contextlib
import copy
import json
import random
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from endurance.mutators import bent_content, json_text
from endurance.subject import Subject, check_command, expect, refusal, same
from endurance.text_cases import JsonFiles, YamlFiles, encoded, parsed, parsed_yaml
from made_records import rising, study

from tal_fast.study.execution.store import (
    TRIALS,
    hash_settings,
    load_trial,
    read_data_facts,
    read_study,
    write_data_facts,
    write_study,
)

_FACTS = {
    "classes": ["run", "jump"],
    "videos": {"a": {"annotations": "0f" * 8, "features": [[100, 10**18]]}},
}


def _write(folder: Path) -> None:
    """Writes a sound study of three trials."""
    content = study(trials=3)
    folder.mkdir()
    write_study(folder, *(content[key] for key in ("settings", "command", "request", "runs")))
    write_data_facts(folder, _FACTS)
    for record in rising(repetitions=1, levels=(0.1, 0.4, 1.0)):
        fields = {**record.to_dict(), "settings": content["hash"]}
        place = folder / TRIALS / record.name
        place.mkdir(parents=True)
        (place / "trial.json").write_text(json.dumps(fields))


def _report(folder: Path) -> None:
    """Sums a study up, without the drawing, which takes longer than all else."""
    with mock.patch("tal_fast.study.report.page.write_report", return_value={}):
        check_command("study", "report", "--study", folder, "--fits", 0)


class TrialFiles(JsonFiles):
    name, command_every = "trial.json", 10

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        _write(folder / "study")

    def sound(self) -> Any:
        path = self.folder / "study" / TRIALS / "p010_r0" / "trial.json"
        return json.loads(path.read_text())

    def make(self, rng: random.Random) -> Path:
        shutil.copytree(self.folder / "study", self.fresh(), dirs_exist_ok=True)
        path = self.place / TRIALS / "p010_r0" / "trial.json"
        path.write_bytes(encoded(rng, self.text(rng)))
        return path

    def check(self, path: Path, rng: random.Random) -> bool:
        with refusal():
            record = load_trial(path.parent)
            given = parsed(path, last=True)
            found = record.to_dict()
            for key, value in given.items():
                if key not in ("trial", "format", "sample") and value is not None:
                    expect(key in found and same(found[key], value), key, found.get(key), value)
            for scores in record.scores.values():
                expect(isinstance(scores.average_map, float), "a score that is no number")
            return True
        return False

    def commands(self, path: Path, rng: random.Random) -> None:
        _report(self.place)


class StudyFiles(YamlFiles):
    name, command_every = "study.yaml", 10

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        _write(folder / "study")
        self._sound = yaml.safe_load((folder / "study" / "study.yaml").read_text())

    def sound(self) -> Any:
        return copy.deepcopy(self._sound)

    def text(self, rng: random.Random) -> str:
        if rng.random() < 0.6:
            return super().text(rng)
        # What was bent gets a hash that is right.
        content = self.sound()
        bent_content(rng, content["settings"], twice=False)
        with contextlib.suppress(TypeError, ValueError):
            content["hash"] = hash_settings(content["settings"])
        return self.write(rng, content)

    def make(self, rng: random.Random) -> Path:
        shutil.copytree(self.folder / "study", self.fresh(), dirs_exist_ok=True)
        path = self.place / "study.yaml"
        path.write_bytes(encoded(rng, self.text(rng)))
        return path

    def check(self, path: Path, rng: random.Random) -> bool:
        with refusal():
            found = read_study(path.parent)
            given = parsed_yaml(path)
            expect(json_text(found) == json_text(given), "other settings")
            return True
        return False

    def commands(self, path: Path, rng: random.Random) -> None:
        _report(self.place)


def _kept(facts: Any) -> Any:
    videos = facts["videos"]
    return facts["classes"], {v: (videos[v]["annotations"], videos[v]["features"]) for v in videos}


class DataFacts(JsonFiles):
    name, endings = "data.json", (".json",)

    def sound(self) -> Any:
        return json.loads(json.dumps(_FACTS))

    def make(self, rng: random.Random) -> Path:
        path = self.fresh() / "data.json"
        path.write_bytes(encoded(rng, self.text(rng)))
        return path

    def check(self, path: Path, rng: random.Random) -> bool:
        from tal_fast.data.fingerprint import changed_annotations, changed_features

        with refusal():
            facts = read_data_facts(path.parent)
            assert facts is not None
            words = changed_annotations(facts, _FACTS)
            if words is None:
                words = changed_features(facts, _FACTS)
            expect((words is None) == (_kept(facts) == _kept(_FACTS)), words)
            return True
        return False


SUBJECTS: tuple[type[Subject], ...] = (TrialFiles, StudyFiles, DataFacts)
