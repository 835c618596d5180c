# SPDX-License-Identifier: Apache-2.0
"""What a study keeps on disk: its settings, the facts of its data, and its trials.

``study.yaml`` and ``data.json`` keep results of different settings and data apart.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tal_fast.data.files import write_text_atomically
from tal_fast.data.fingerprint import changed_annotations, changed_features
from tal_fast.data.json_files import parse_json
from tal_fast.data.plain_fields import (
    FINITE,
    MAPPING,
    MAPPINGS,
    TEXT,
    TEXTS,
    WHOLE,
    FieldKind,
    check_fields,
)
from tal_fast.data.yaml_files import parse_yaml
from tal_fast.errors import ConfigError, DataError, argument, differences, os_reason
from tal_fast.study.trial import TrialRecord

__all__ = [
    "RECORD",
    "TOKEN",
    "TRIALS",
    "check_same_data",
    "check_same_settings",
    "hash_settings",
    "load_trial",
    "read_data_facts",
    "read_study",
    "scan_trials",
    "write_data_facts",
    "write_study",
]

TRIALS = "trials"
RECORD = "trial.json"
# Of a file by which the machines of a cluster recognise the directory of trials.
TOKEN = ".shared-"
_STUDY_FILE = "study.yaml"
_DATA_FILE = "data.json"
_FORMAT = 2
_SHOWN = 5


def hash_settings(settings: Mapping[str, Any]) -> str:
    """Returns the hash that every trial of a study with these settings carries."""
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def check_same_settings(out: Path, there: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Checks that a study's directory holds the settings that are asked for.

    Raises:
        ConfigError: they differ; the message names the first few.
    """
    if hash_settings(there) == hash_settings(wanted):
        return
    raise ConfigError(
        f"{out}: holds a study with other settings: {differences(there, wanted, _SHOWN)}; "
        "results are never mixed: use another --out"
    )


def read_data_facts(out: Path) -> dict[str, Any] | None:
    """Reads what a study keeps of its data; None when an earlier version began it.

    Raises:
        DataError: it cannot be read or was written by something else.
    """
    path = out / _DATA_FILE
    try:
        facts = parse_json(str(path), path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {os_reason(error)}") from error
    if not isinstance(facts, dict) or not {"classes", "videos"} <= facts.keys():
        raise DataError(f"{path}: expected the keys classes and videos; remove it to begin it anew")
    check_fields(str(path), facts, {"classes": TEXTS, "videos": MAPPING})
    videos = dict.fromkeys(facts["videos"], _VIDEO)
    check_fields(str(path), facts["videos"], videos, within="videos.")
    return facts


def _is_video(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("annotations"), str)
        and isinstance(value.get("features"), list)
        and all(
            isinstance(file, list) and len(file) == 2 and all(WHOLE[1](one) for one in file)
            for file in value["features"]
        )
    )


_VIDEO: FieldKind = "a digest of annotations, and size and time of feature files", _is_video


def write_data_facts(out: Path, facts: Mapping[str, Any]) -> None:
    """Writes ``data.json``, which tells a later run whether the data has changed."""
    write_text_atomically(out / _DATA_FILE, json.dumps(facts, indent=1) + "\n", sync=True)


def check_same_data(
    out: Path, there: Mapping[str, Any], wanted: Mapping[str, Any], *, trust_times: bool
) -> None:
    """Checks that a study's trials were run on the data that is there now.

    Args:
        out: directory of the study.
        there: facts of the data then (:func:`~tal_fast.data.fingerprint.data_facts`).
        wanted: facts of the data now.
        trust_times: accept feature files of another size or time.

    Raises:
        ConfigError: they differ; the message names the first video.
    """
    changed = changed_annotations(there, wanted)
    if changed is not None:
        raise ConfigError(
            f"{out}: holds a study of other data: {changed}; "
            "results are never mixed: use another --out"
        )
    changed = changed_features(there, wanted)
    if changed is not None and not trust_times:
        raise ConfigError(
            f"{out}: holds a study of other data: {changed}; results are never mixed: use another "
            "--out or, if the content of the files is the same (copied, restored, packed), "
            f"{argument('trust_times', True)}"
        )


def read_study(out: Path) -> dict[str, Any] | None:
    """Reads ``study.yaml``; None when there is none.

    Raises:
        DataError: it cannot be read or was written by something else.
    """
    path = out / _STUDY_FILE
    try:
        study = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {os_reason(error)}") from error
    keys = ("format", "settings", "hash", "request", "runs")
    if not isinstance(study, dict) or any(key not in study for key in keys):
        raise DataError(f"{path}: expected a study's settings, with the keys {', '.join(keys)}")
    if study["format"] != _FORMAT:
        raise DataError(f"{path}: expected format {_FORMAT}, got {study['format']!r}")
    check_fields(str(path), study, _OF_STUDY, optional=("command",))
    try:
        found = hash_settings(study["settings"])
    except (TypeError, ValueError, RecursionError):  # YAML holds more than JSON: dates, loops
        found = None
    if study["hash"] != found:
        raise DataError(f"{path}: the settings do not match their hash: edited by hand?")
    check_fields(str(path), study["request"], {"trials": WHOLE}, within="request.")
    for number, run in enumerate(study["runs"]):
        place = f"runs[{number}]."
        check_fields(str(path), run, _OF_RUN, within=place, optional=_OF_RUN)
    return study


_OF_STUDY: dict[str, FieldKind] = {
    "settings": MAPPING,
    "hash": TEXT,
    "request": MAPPING,
    "runs": MAPPINGS,
    "command": TEXT,
}
_OF_RUN: dict[str, FieldKind] = {
    "started": TEXT,
    "seconds": FINITE,
    "energy_joules": FINITE,
    "machine": MAPPING,
    **dict.fromkeys(("trials", "jobs", "threads"), WHOLE),
}


def write_study(
    out: Path,
    settings: Mapping[str, Any],
    command: str,
    request: Mapping[str, Any],
    runs: list[dict[str, Any]],
) -> None:
    """Writes ``study.yaml``.

    Args:
        out: directory of the study.
        settings: what decides the outcomes.
        command: the command line of the latest request.
        request: what it asks for, and how many trials that is.
        runs: for each call that ran trials: when, how long, how many, on which machine, and what
            it asked for.
    """
    study = {
        "format": _FORMAT,
        "hash": hash_settings(settings),
        "command": command,
        "request": dict(request),
        "settings": dict(settings),
        "runs": runs,
    }
    write_text_atomically(out / _STUDY_FILE, yaml.safe_dump(study, sort_keys=False), sync=True)


def _trial_directories(root: Path) -> Iterator[Path]:
    """Yields the directories of finished trials in order of name."""
    if root.is_dir():
        for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
            if entry.is_dir() and not entry.name.startswith("."):
                yield Path(entry.path)


def load_trial(directory: Path) -> TrialRecord:
    """Reads the record of a finished trial.

    Raises:
        DataError: ``trial.json`` is missing, is not JSON, holds a key twice or lacks a field.
    """
    path = directory / RECORD
    again = f"remove {directory.name} to run the trial again"
    try:
        record_fields = parse_json(str(path), path.read_bytes())
        return TrialRecord.from_dict(record_fields, str(path))
    except FileNotFoundError:
        raise DataError(
            f"{directory}: expected a finished trial with {RECORD}, found none; "
            "remove this directory to run the trial again"
        ) from None
    except DataError as error:
        raise DataError(f"{error}; {again}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {os_reason(error)}") from error


def scan_trials(
    root: Path, settings: str, known: Mapping[str, TrialRecord] | None = None
) -> dict[str, TrialRecord]:
    """Reads all finished trials of a study.

    Args:
        root: directory that holds the trials.
        settings: hash of the study's settings.
        known: records that were read before, by name: a finished trial does not change, and is not
            read again.

    Returns:
        name -> record, in order of name.

    Raises:
        DataError: a directory is no readable trial, or was renamed.
        ConfigError: a trial was run with other settings: results are never mixed.
    """
    records = {}
    for directory in _trial_directories(root):
        if known is not None and directory.name in known:
            records[directory.name] = known[directory.name]
            continue
        record = load_trial(directory)
        if record.settings != settings:
            raise ConfigError(
                f"{directory}: this trial was run with other settings than this study's "
                f"(settings {record.settings[:12]}, expected {settings[:12]}); "
                "results are never mixed: use another --out"
            )
        if record.name != directory.name:
            raise DataError(f"{directory}: expected trial {directory.name}, it is {record.name}")
        records[directory.name] = record
    return records
