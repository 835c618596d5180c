# SPDX-License-Identifier: Apache-2.0
"""What a profile says limits a training: a pure function of ``profile.json``.

What a part takes is attributed by clocks and by torch's profiler. Where the training was run
without the part, that decides: a verdict is *confirmed* if it gained what was attributed, within
30 %. Where it was not, the gain that is named is what there is to gain at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tal_fast.errors import DataError, counted
from tal_fast.profiling.figures import value_of
from tal_fast.profiling.profile import FORMAT, FORMATS

__all__ = ["Verdict", "verdict_of"]

_TAKEN = 0.1  # share of the cores that others may use before they come first
_LARGE = 0.2  # share of the time
_PARTLY = 0.05
_HOST = 0.5  # share of the time that calling takes, from which on it limits
_HOST_CUDA = 0.8  # the same where a GPU works meanwhile
_WITHIN = 0.3  # of what was attributed: closer is confirmed
_WORTH = 1.05  # gains below are noise
_SPINNING = 1.3  # CPU time over that of one thread
_AMPLIFIED = 1.5  # bytes read over bytes needed

# Parts of a step, and between steps, that need not be large, and what to do if they are.
_CURABLE = {
    "loss/matching": ("matching", "fewer queries or decoder layers"),
    "optimizer": ("the optimiser", "larger batches make fewer steps"),
    "transfer": ("copies to the device", "smaller features, or features in float16"),
    "rate": ("rating held-out videos", "raise training.check_every, or hold out fewer videos"),
    "save": ("saving", "a faster disk for --out"),
}
# What to do without anything that was tried and helped.
_ADVICE = {
    "compute": "More cores, a smaller model, or training.amp=bfloat16 where it is native.",
    "memory": "Fewer or smaller intermediate results: training.amp=bfloat16, shorter clips.",
    "host": "Larger batches, or fewer and larger ops.",
}


@dataclass(frozen=True)
class Verdict:
    """What limits a training.

    Attributes:
        kind: ``machine``, ``data``, ``host``, ``loss/matching``, ``optimizer``, ``transfer``,
            ``rate``, ``save``, ``compute``, ``memory``, or ``work`` where nobody looked at ops.
        share: of the time, or of the cores for ``machine``; None where it is not known.
        sentence: what limits it.
        action: what would lift that.
        confirmed: whether steps without it gained what was attributed to it; None where there were
            none.
        notes: what else is to be known; first of all, that the machine was disturbed.
    """

    kind: str
    share: float | None
    sentence: str
    action: str
    confirmed: bool | None = None
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Returns it for a terminal."""
        return [self.sentence, self.action, *self.notes]


def verdict_of(profile: Mapping[str, Any]) -> Verdict:
    """Returns what a profile says limits the training.

    Machine before data, data before the cost of calling, that before what need not be large, and
    that before arithmetic or memory.

    Args:
        profile: content of a ``profile.json``.

    Raises:
        DataError: it is of another format, or of no training.
    """
    if profile.get("format") not in FORMATS:
        raise DataError(f"profile: expected format {FORMAT}, got {profile.get('format')!r}")
    if "phases" not in profile:
        raise DataError("profile: expected that of a training, got one without phases")
    verdict = (
        _machine(profile)
        or _data(profile)
        or _host(profile)
        or _curable(profile)
        or _limited(profile)
        or _work(profile)
    )
    return replace(verdict, notes=(*verdict.notes, *_notes(profile)))


def _notes(profile: Mapping[str, Any]) -> tuple[str, ...]:
    notes = []
    if profile["disturbed"]:
        notes.append(
            "Disturbed: shares are of the clock's time, others' work included; read the CPU times."
        )
    elif profile["disturbed"] is None:
        notes.append("Whether others disturbed it is not known: this system does not say.")
    threads = value_of(profile, "training", "threads") or 0
    readers = value_of(profile, "training", "reader_threads") or 0
    waited = value_of(profile, "disturbance", "queue_wait")
    if threads + readers > profile["usable_cores"] and waited is not None and waited >= _PARTLY:
        notes.append(
            f"Crowded: {counted(threads, 'thread')} that compute and {readers} that read share "
            f"{profile['usable_cores']} cores."
        )
    waiting = _share(profile, "data")
    if waiting is not None and _PARTLY <= waiting < _LARGE:
        notes.append(f"Partly data: it waited for batches {waiting:.0%} of the time.")
    return tuple(notes)


# ---- what was tried ----------------------------------------------------------------------------


def _gain_of(profile: Mapping[str, Any], name: str) -> float | None:
    """Returns how many times as fast the training was with something changed."""
    gain: float | None = value_of(profile, "tried", "runs", name, "gain")
    return gain


def _cpu_of(profile: Mapping[str, Any], name: str) -> float | None:
    cpu: float | None = value_of(profile, "tried", "runs", name, "cpu")
    return cpu


def _checked(attributed: float, measured: float | None, how: str) -> tuple[bool | None, list[str]]:
    """Returns whether a share was confirmed, and a note with both where there are two.

    Args:
        attributed: share of the time by clocks or profiler.
        measured: share of the time that was gone without.
        how: what was run without.
    """
    if measured is None:
        return None, []
    confirmed = abs(measured - attributed) <= _WITHIN * attributed
    verdict = "Confirmed" if confirmed else "Not confirmed"
    return confirmed, [f"{verdict}: {attributed:.0%} attributed, {measured:.0%} {how}."]


def _best_change(profile: Mapping[str, Any]) -> tuple[str, float] | None:
    """Returns the change of settings that gained most, and its gain."""
    changes = {}
    # All but the training as it is had batches in memory: what they gain is gained over that.
    cached = _gain_of(profile, "cached") or 1.0
    runs = (profile.get("tried") or {}).get("runs", {})
    for name in runs:
        gain = _gain_of(profile, name)
        if gain is None:
            continue
        if name.startswith("amp "):
            changes[f"training.amp={name.split()[1]}"] = gain / cached
        elif name.startswith("threads "):
            changes[f"--threads {name.split()[1]}"] = gain / cached
        elif name == "passive":
            changes["OMP_WAIT_POLICY=passive"] = gain / cached
    best = max(changes.items(), key=lambda item: item[1], default=None)
    return best if best is not None and best[1] >= _WORTH else None


def _action(profile: Mapping[str, Any], kind: str) -> str:
    """Returns what to do: what helped when it was tried, else advice."""
    best = _best_change(profile)
    if best is not None:
        return f"{best[0]}: {best[1]:.1f}x as fast (measured)."
    if (profile.get("tried") or {}).get("runs"):
        return f"{_ADVICE[kind]} Nothing that was tried was faster."
    return _ADVICE[kind]


# ---- suspects ----------------------------------------------------------------------------------


def _machine(profile: Mapping[str, Any]) -> Verdict | None:
    cores = profile["usable_cores"]
    throttled = value_of(profile, "disturbance", "throttled")
    if throttled:
        return Verdict(
            "machine",
            None,
            f"Machine: the limit of its control group held it back {throttled:.0f} times.",
            "Ask for more cores, or use fewer threads (--threads).",
        )
    others = value_of(profile, "disturbance", "others")
    if others is not None and others > _TAKEN * cores:
        return Verdict(
            "machine",
            others / cores,
            f"Machine: others used {others:.1f} of {cores} cores.",
            _beside_others(profile),
        )
    return _spinning(profile)


def _beside_others(profile: Mapping[str, Any]) -> str:
    best = _best_change(profile)
    action = "Run it alone to see what limits it; meanwhile compare CPU times."
    return action if best is None else f"{best[0]}: {best[1]:.1f}x as fast (measured). {action}"


def _spinning(profile: Mapping[str, Any]) -> Verdict | None:
    """Threads that wait for each other and use cores meanwhile."""
    with_one_thread, with_threads = _cpu_of(profile, "threads 1"), _cpu_of(profile, "cached")
    if (
        with_one_thread is None
        or with_threads is None
        or with_threads <= _SPINNING * with_one_thread
    ):
        return None
    best = _best_change(profile)
    # Cores that are spent for speed are well spent.
    if best is None or not best[0].startswith(("--threads", "OMP_")):
        return None
    return Verdict(
        "machine",
        None,
        f"Machine: its threads spin: {with_threads / with_one_thread:.1f} times the CPU time of "
        "one thread.",
        f"{best[0]}: {best[1]:.1f}x as fast (measured).",
        confirmed=True,
    )


def _share(profile: Mapping[str, Any], phase: str) -> float | None:
    for part in ("phases", "between_steps"):
        if phase in profile[part]:
            value: float | None = profile[part][phase]["share"]["value"]
            return value
    return None


def _loading(profile: Mapping[str, Any]) -> float | None:
    """Returns the share of the CPU time that readers take, where cores are full.

    Known for one torch thread: then what other threads take is theirs.
    """
    waited = value_of(profile, "disturbance", "queue_wait")
    cpu, of_thread = value_of(profile, "step", "cpu"), value_of(profile, "step", "thread_cpu")
    single = value_of(profile, "training", "threads") == 1
    if not single or not cpu or of_thread is None or waited is None or waited < _PARTLY:
        return None
    return float((cpu - of_thread) / cpu)


def _data(profile: Mapping[str, Any]) -> Verdict | None:
    waiting = _share(profile, "data")
    loading = _loading(profile)
    gain = _gain_of(profile, "cached")
    if waiting is not None and waiting >= _LARGE:
        share, what = waiting, f"it waited for batches {waiting:.0%} of the time"
    elif loading is not None and loading >= _LARGE:
        share, what = loading, f"loading takes {loading:.0%} of the CPU time of full cores"
    else:
        return None
    measured = None if gain is None else 1 - 1 / gain
    confirmed, notes = _checked(share, measured, "without loading")
    lifted = _gain(share) if gain is None else f"; without, {gain:.1f}x as fast (measured)"
    action = f"{_data_action(profile)}."
    return Verdict("data", share, f"Data: {what}{lifted}.", action, confirmed, tuple(notes))


def _data_action(profile: Mapping[str, Any]) -> str:
    read = value_of(profile, "reading", "read")
    times = value_of(profile, "loader", "amplification")
    storage = value_of(profile, "reading", "read_storage")
    if times is not None and times > _AMPLIFIED:
        needed = value_of(profile, "loader", "needed")
        return (
            f"`tal-fast pack` the features: a batch reads {read / 1e6:.1f} MB for the "
            f"{needed / 1e6:.1f} MB that it needs"
        )
    if read and storage is not None and storage > read / 2:
        return (
            f"A faster disk, or more memory for files: {storage / 1e6:.1f} of {read / 1e6:.1f} MB "
            "of a batch come from storage"
        )
    action = "`tal-fast pack` the features, or raise data.threads"
    return action if read is None else f"{action}: a batch reads {read / 1e6:.1f} MB"


def _gain(share: float) -> str:
    """Returns what would be gained without a share of the time."""
    return f"; without, {1 / (1 - share):.1f}x as fast at most" if share < 1 else ""


def _host(profile: Mapping[str, Any]) -> Verdict | None:
    """The cost of calling ops, whatever they have to do."""
    on_gpu = str(value_of(profile, "training", "device")).startswith("cuda")
    attributed = value_of(profile, "work", "host")
    gain = _gain_of(profile, "floor")
    floor = None if gain is None else min(1.0, 1 / gain)
    decisive = floor if floor is not None and (on_gpu or attributed is None) else attributed
    if decisive is None or decisive < (_HOST_CUDA if on_gpu else _HOST):
        return None
    launches = value_of(profile, "work", "launches")
    kernels = "" if not launches else f", {launches:.0f} kernels a step"
    share = decisive if attributed is None else attributed
    confirmed, notes = _checked(share, floor, "of the time with hardly anything to compute")
    return Verdict(
        "host",
        share,
        f"Host: calling ops takes {share:.0%} of the time, whatever they compute{kernels}.",
        _action(profile, "host"),
        confirmed,
        tuple(notes),
    )


def _curable(profile: Mapping[str, Any]) -> Verdict | None:
    shares = {name: _share(profile, name) or 0.0 for name in _CURABLE}
    name = max(shares, key=lambda key: shares[key])
    if shares[name] < _LARGE:
        return None
    what, action = _CURABLE[name]
    sentence = f"{what[0].upper()}{what[1:]}: {shares[name]:.0%} of the time{_gain(shares[name])}."
    return Verdict(name, shares[name], sentence, f"{action[0].upper()}{action[1:]}.")


def _limited(profile: Mapping[str, Any]) -> Verdict | None:
    """Arithmetic or memory, whichever limits the ops that take longest."""
    shares = {
        limit: value_of(profile, "work", "limits", limit) or 0.0 for limit in ("compute", "memory")
    }
    kind = max(shares, key=lambda key: shares[key])
    if not shares[kind]:
        return None
    rate = value_of(profile, "work", {"compute": "flops_rate", "memory": "bytes_rate"}[kind])
    best = value_of(profile, "limits", {"compute": "flops", "memory": "bytes"}[kind])
    of_best = f"; the step reaches {rate / best:.0%} of {_ROOFS[kind]}" if rate and best else ""
    confirmed, notes = _checked(sum(shares.values()), _marginal(profile), "grows with the batch")
    return Verdict(
        kind,
        shares[kind],
        f"{kind.capitalize()}: ops that {_WORDS[kind]} limits take {shares[kind]:.0%} of the "
        f"time{of_best}.",
        _action(profile, kind),
        confirmed,
        tuple(notes),
    )


_WORDS = {"compute": "arithmetic", "memory": "memory"}
_ROOFS = {"compute": "the best product", "memory": "what memory gives"}


def _marginal(profile: Mapping[str, Any]) -> float | None:
    """Returns the share of a step that grows with its clips."""
    fixed = value_of(profile, "tried", "fixed")
    each = value_of(profile, "tried", "marginal")
    clips = value_of(profile, "training", "batch")
    if fixed is None or each is None or not clips:
        return None
    whole = fixed + each * clips
    return float(min(1.0, max(0.0, each * clips / whole))) if whole > 0 else None


def _work(profile: Mapping[str, Any]) -> Verdict:
    shares = {name: _share(profile, name) or 0.0 for name in ("forward", "loss", "backward")}
    total = sum(shares.values())
    parts = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return Verdict(
        "work",
        total,
        f"The network's own work: {total:.0%} of the time ({parts}).",
        "`tal-fast profile model` says what it computes and touches; more cores, a smaller model "
        "or training.amp=bfloat16 lift it.",
    )
