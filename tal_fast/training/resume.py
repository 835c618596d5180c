# SPDX-License-Identifier: Apache-2.0
"""The state of an interrupted training, and whether a training may go on from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tal_fast.data.fingerprint import changed_annotations, changed_features
from tal_fast.errors import TrainingError, argument, counted, differences
from tal_fast.training.checkpoint import read_checkpoint

__all__ = ["read_state"]

_KEYS = {
    *("identity", "model", "optimizer", "scaler", "kept", "budget", "checked", "random"),
    *("progress", "seconds", "log", "sums"),
}


def _named(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a message can show of settings, code and videos."""
    videos = identity.get("videos", ())
    return {
        **identity.get("config", {}),
        "code": identity.get("code"),
        "videos": f"{counted(len(videos), 'video')}",
    }


def read_state(
    path: Path, identity: Mapping[str, Any], facts: Mapping[str, Any], *, trust_times: bool
) -> dict[str, Any] | None:
    """Returns the state that a training left, or None when there is none.

    States of earlier versions, which kept nothing of the data, are taken as they are.

    Args:
        path: ``resume.pt``.
        identity: settings and videos of the training that wants to go on.
        facts: of its data (:func:`~tal_fast.data.fingerprint.data_facts`).
        trust_times: accept feature files of another size or time.

    Raises:
        TrainingError: the file cannot be read, or is of other settings, videos or data.
    """
    if not path.exists():
        return None
    anew = f"use another directory, or start over with {argument('resume', False)}"
    try:
        state = read_checkpoint(path)
    except TrainingError as error:
        raise TrainingError(f"{error}; {anew}") from error
    missing = _KEYS - state.keys()
    if missing:
        raise TrainingError(
            f"{path}: not the state of a training, it lacks {sorted(missing)}; {anew}"
        )
    if state["identity"] != identity:
        identity_then = state["identity"] if isinstance(state["identity"], dict) else {}
        what = differences(_named(identity_then), _named(identity), shown=3)
        told = f": {what}" if what else ""
        raise TrainingError(
            f"{path} is of a training with other settings, code or videos{told}; {anew}"
        )
    then = state.get("data", facts)
    changed = changed_annotations(then, facts)
    if changed is None and not trust_times:
        changed = changed_features(then, facts)
        trusted = argument("trust_times", True)
        anew += f"; if the content of the files is the same (copied, restored, packed): {trusted}"
    if changed is not None:
        raise TrainingError(f"{path} is of a training on other data: {changed}; {anew}")
    return state
