# SPDX-License-Identifier: Apache-2.0
"""The state of an interrupted training, and whether a training may go on from it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import torch

from tal_fast import ranges
from tal_fast.data.files import remove_unfinished
from tal_fast.data.fingerprint import changed_annotations, changed_features
from tal_fast.errors import TrainingError, argument, counted, differences
from tal_fast.training import distributed
from tal_fast.training.checkpoint import read_checkpoint, write_checkpoint
from tal_fast.training.config import EmaMode
from tal_fast.training.kept_weights import checkpoint_name

__all__ = ["StateFile", "read_state"]

# After an epoch the state is saved, unless the epochs are so short that saving would take more than
# about this share of the time.
_SAVING_SHARE = 0.02

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


class StateFile:
    """``resume.pt`` of a training: when it is written, and what of it the processes share.

    Every process holds one; the first one's writes and reads.

    Args:
        out: directory of the training.
        device: that it runs on.
    """

    def __init__(self, out: Path, device: torch.device) -> None:
        self._out = out
        self._path = out / "resume.pt"
        self._cuda = device.type == "cuda"
        self._took, self._when = 0.0, -math.inf  # seconds of the last save, and when it was

    def is_due(self) -> bool:
        """Whether saving now takes little of the time since the last save."""
        return time.perf_counter() - self._when >= self._took / _SAVING_SHARE

    def save(self, content: Callable[[], dict[str, Any]]) -> None:
        """Writes the state, with the random numbers of every process.

        Args:
            content: returns the state of the training; the first process asks it.

        Raises:
            TrainingError: it cannot be written.
        """
        began = time.perf_counter()
        random = [torch.get_rng_state(), torch.cuda.get_rng_state() if self._cuda else None]
        with ranges.range("tal_fast.save"):
            random_states = distributed.gathered(random)
            if distributed.is_first():
                write_checkpoint(self._path, {**content(), "random": random_states})
        self._when = time.perf_counter()
        self._took = self._when - began

    def restore_random(self, states: list[Any]) -> None:
        """Sets the random numbers of this process.

        Args:
            states: of all processes, as they were saved.

        Raises:
            TrainingError: they are of another number of processes.
        """
        if len(states) != distributed.world_size():
            raise TrainingError(
                f"{self._path} is of a training in {counted(len(states), 'process')}, this one has "
                f"{distributed.world_size()}: start as many, or start over with "
                f"{argument('resume', False)}"
            )
        random, random_cuda = states[distributed.rank()]
        torch.set_rng_state(random)
        if random_cuda is not None:
            torch.cuda.set_rng_state(random_cuda)

    def forget(self) -> None:
        """Removes what an earlier training left: weights beside the settings of another mislead.

        Under any modes of averaging, and nothing else: files of the user's own may lie there.
        """
        modes = get_args(EmaMode)
        names = {checkpoint_name((first,), mode) for first in modes for mode in modes}
        for name in ("resume.pt", *names):
            (self._out / name).unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes the state of a training that has ended."""
        self._path.unlink(missing_ok=True)
        # One that was killed while it saved its state may not have saved it again.
        remove_unfinished(self._path)
