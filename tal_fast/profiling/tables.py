# SPDX-License-Identifier: Apache-2.0
"""A profile as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from tal_fast.errors import counted
from tal_fast.profiling.figures import value_of
from tal_fast.profiling.profile import phase_table
from tal_fast.profiling.work import kind_table

__all__ = ["figure_text", "figure_rows", "profile_tables"]

_SCALES = {
    "bytes": (1e6, "MB"),
    "bytes per step": (1e6, "MB per step"),
    "FLOP": (1e9, "GFLOP"),
    "of the time": (0.01, "% of the time"),
    "of the best product": (0.01, "% of the best product"),
}

RATES = "achieved and possible"
#: What a profile says besides phases and kinds: title and (name, path of the figure).
_FIGURES: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    RATES: (
        ("arithmetic of a step", ("work", "flops")),
        ("achieved", ("work", "flops_rate")),
        ("best product, this precision and threads", ("limits", "flops")),
        ("achieved of that (MFU)", ("work", "mfu")),
        ("touched in a step", ("work", "bytes")),
        ("touched per second", ("work", "bytes_rate")),
        ("best from memory", ("limits", "bytes")),
        ("in ops that arithmetic limits", ("work", "limits", "compute")),
        ("in ops that memory limits", ("work", "limits", "memory")),
        ("calling alone", ("work", "host")),
        ("kernels of a step", ("work", "launches")),
    ),
    "loader": (
        ("read", ("reading", "read")),
        ("from storage", ("reading", "read_storage")),
        ("needed", ("loader", "needed")),
        ("read over needed", ("loader", "amplification")),
        ("alone", ("loader", "alone")),
        ("consumed", ("loader", "consumed")),
    ),
    "memory": (
        ("parameters", ("memory", "parameters")),
        ("gradients", ("memory", "gradients")),
        ("optimiser's state", ("memory", "optimizer")),
        ("saved for the backward", ("memory", "saved")),
        ("resident while recorded", ("memory", "resident")),
        ("peak of the process", ("memory", "peak")),
        ("peak on the device", ("memory", "device_peak")),
    ),
}


def _at(profile: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any] | None:
    value: Any = profile
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value if isinstance(value, Mapping) else None


def figure_text(figure: Mapping[str, Any]) -> tuple[str, str]:
    """Returns a figure's value with its unit, and where it comes from or why there is none."""
    value = figure["value"]
    if value is None:
        return "-", str(figure.get("reason", ""))
    scale, unit = _SCALES.get(figure["unit"], (1.0, figure["unit"]))
    value = value / scale
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
    between = "" if unit.startswith("%") else " "
    return f"{value:,.{digits}f}{between}{unit}", str(figure.get("origin", ""))


def figure_rows(profile: Mapping[str, Any]) -> dict[str, list[tuple[str, str, str]]]:
    """Returns (name, value, origin) of the figures that a profile has, by table."""
    tables: dict[str, list[tuple[str, str, str]]] = {}
    for title, rows in _FIGURES.items():
        shown = []
        for name, path in rows:
            figures = _at(profile, path)
            if figures is not None:
                shown.append((name, *figure_text(figures)))
        if shown:
            tables[title] = shown
    return tables


def profile_tables(profile: Mapping[str, Any]) -> list[Table]:
    """Returns phases, kinds of work, what was achieved, loader and memory, and what was tried."""
    tables = [phase_table(dict(profile))] if "phases" in profile else []
    if (profile.get("work") or {}).get("kinds"):
        tables.append(kind_table(profile["work"]))
    for title, rows in figure_rows(profile).items():
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left")
        if title == RATES and profile.get("work", {}).get("rates_by") == "CPU time":
            table.caption = "Rates are by CPU time: the clock was disturbed."
        table.add_column(title, no_wrap=True)
        table.add_column("", justify="right", no_wrap=True)
        table.add_column("origin")
        for row in rows:
            table.add_row(*row)
        tables.append(table)
    if profile.get("lengths"):
        tables.append(length_table(profile))
    if profile.get("tried"):
        tables.append(tried_table(profile["tried"]))
    return tables


def tried_table(tried: Mapping[str, Any]) -> Table:
    """Returns what was tried without a suspect: time, CPU time, gain, or why it was not."""
    fixed, each = tried["fixed"]["value"], tried["marginal"]["value"]
    caption = None
    if fixed is not None:
        caption = f"Time of a step by clips: {fixed:.1f} ms + {each:.2f} ms per clip."
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
    table.add_column("tried", no_wrap=True)
    for name in ("ms", "CPU ms", "times as fast"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("what")
    for name, run in tried["runs"].items():
        if run["wall"]["value"] is None:
            table.add_row(name, "-", "-", "-", f"{run['what']}: {run['wall']['reason']}")
            continue
        gain = run["gain"]["value"]
        table.add_row(
            name,
            f"{run['wall']['value']:.1f}",
            f"{run['cpu']['value']:.1f}",
            "-" if gain is None else f"{gain:.2f}",
            run["what"],
        )
    return table


def length_table(profile: Mapping[str, Any]) -> Table:
    """Returns what prediction takes by length: time, rates, memory, what is beside the network."""
    prediction = profile["prediction"]
    others = value_of(profile, "disturbance", "others")
    beside = "" if others is None else f" Meanwhile others used {others:.1f} cores."
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        caption=f"{prediction['model']}, {prediction['weights']} weights, {prediction['amp']}, "
        f"{prediction['device']}, "
        f"{counted(prediction['threads'], 'thread')}; medians of repeats, network with "
        "quartiles; rates by the "
        f"{prediction.get('rates_by', 'clock')}.{beside}",
        caption_justify="left",
    )
    for name in ("rows", "padded", "network ms", "quartiles", "CPU ms", "candidates",
                 "suppression", "GMAC", "GMAC/s", "of peak", "MB", "ms/min"):  # fmt: skip
        table.add_column(name, justify="right", no_wrap=True)
    trained = value_of(profile["lengths"][0], "step") is not None
    for name in ("step ms", "step MB", "of peak") if trained else ():
        table.add_column(name, justify="right", no_wrap=True)
    for length in profile["lengths"]:
        low, high = length["network_quartiles"]
        memory, minute = length["memory"]["value"], length["minute"]["value"]
        step = []
        if trained:
            taken = value_of(length, "step_memory")
            step.append(f"{length['step']['value']:.1f}")
            step.append("-" if taken is None else f"{taken / 1e6:.1f}")
            step.append(f"{length['step_share']['value']:.1%}")
        table.add_row(
            f"{length['rows']:,}",
            f"{length['padded']:,}",
            f"{length['network']['value']:.1f}",
            f"{low:.1f} to {high:.1f}",
            f"{length['network_cpu']['value']:.1f}",
            f"{length['candidates']['value']:.1f}",
            f"{length['suppression']['value']:.1f}",
            f"{length['macs']['value'] / 1e9:.3f}",
            f"{length['macs_rate']['value']:.1f}",
            f"{length['peak_share']['value']:.1%}",
            "-" if memory is None else f"{memory / 1e6:.1f}",
            "-" if minute is None else f"{minute:.0f}",
            *step,
        )
    return table
