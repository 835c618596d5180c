# SPDX-License-Identifier: Apache-2.0
"""The cost of a model as tables for a terminal and as JSON."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from tal_fast.errors import counted
from tal_fast.profiling.cost import Cost
from tal_fast.profiling.model_cost import LengthCost, ModelCost

__all__ = ["cost_dict", "cost_tables", "headline"]

FORMAT = 1
"""Version of the JSON of :func:`cost_dict`."""

_OUTSIDE = "(the model itself)"


def headline(cost: ModelCost) -> str:
    """Returns what model it is and how the figures are to be read."""
    timing = "costs per minute need --fps and --stride, which this model does not say"
    if cost.timing is not None:
        fps, stride = cost.timing
        timing = f"rows are {stride:g} frames apart at {fps:g} frames per second"
        if cost.overlap:
            timing += f", clips overlap by {cost.overlap:g}"
    return (
        f"{cost.name}: {cost.parameters:,} parameters, {counted(cost.channels, 'channel')}, "
        f"{counted(cost.classes, 'class')}; {timing}.\n"
        "A multiply-add (MAC) is 2 FLOP; products of matrices, convolutions and attention count. "
        "Bytes are of float32."
    )


def cost_tables(cost: ModelCost) -> list[Table]:
    """Returns all lengths in one table, and a table of parts for each."""
    return [_lengths(cost), *(_parts(cost, length) for length in cost.lengths)]


def _table(title: str, caption: str | None = None) -> Table:
    return Table(
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


def _columns(table: Table, *names: str) -> Table:
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _lengths(cost: ModelCost) -> Table:
    table = _columns(
        _table("Forward pass over a clip; training step, per clip; minute of video"),
        "rows", "of batch", "of recipe", "GMAC", "GFLOP", "recipe's GMAC", "step GMAC", "GFLOP",
        "MB", "saved MB", "GMAC/min", "recipe's",
    )  # fmt: skip
    for length in cost.lengths:
        step, minute = length.whole_step, length.per_minute
        table.add_row(
            f"{length.rows:,}",
            f"{length.rows_of_batch:,}",
            f"{length.rows_of_recipe:,}",
            _giga(length.macs),
            _giga(2 * length.macs),
            _giga(length.macs_of_recipe),
            _giga(step.macs / cost.batch),
            _giga(step.flops / cost.batch),
            _mega(step.bytes / cost.batch),
            _mega(step.saved / cost.batch),
            "-" if minute is None else _giga(minute.macs),
            "-" if minute is None else _giga(minute.macs_of_recipe),
        )
    return table


def _parts(cost: ModelCost, length_cost: LengthCost) -> Table:
    formula = "not said by the model"
    if length_cost.formula is not None:
        formula = ", ".join(f"{part} {_giga(macs)}" for part, macs in length_cost.formula.items())
    lacking = [*length_cost.left_out, "loading, candidates and suppression"]
    table = _table(
        f"{length_cost.rows_of_batch:,} rows: forward pass over one clip; training step of "
        f"{counted(cost.batch, 'clip')}",
        f"GMAC by formula: {formula}.\nLeft out: {'; '.join(lacking)}. Optimizer: "
        f"{_mega(cost.optimizer_bytes)} MB.",
    )
    table.add_column("part", no_wrap=True)
    _columns(table, "parameters")
    for name in ("", "step "):
        _columns(table, f"{name}GMAC", "GFLOP", "MB", "FLOP/B", "calls")
    _columns(table, "saved MB")
    parts = dict.fromkeys([part for _, part in length_cost.by_part] + [*cost.parameters_by_part])
    for part in parts:
        cost_of_part = length_cost.by_part.get(("prediction", part), Cost())
        step = _sum(
            length_cost.by_part.get((phase, part), Cost()) for phase in ("forward", "backward")
        )
        size = cost.parameters_by_part.get(part, 0)
        table.add_row(
            part or _OUTSIDE, f"{size:,}", *_cells(cost_of_part), *_cells(step), _mega(step.saved)
        )
    if "loss" in length_cost.step:
        loss = length_cost.step["loss"]
        table.add_row("loss", "0", *_cells(Cost()), *_cells(loss), _mega(loss.saved))
    table.add_section()
    step = length_cost.whole_step
    table.add_row(
        "all",
        f"{cost.parameters:,}",
        *_cells(length_cost.forward),
        *_cells(step),
        _mega(step.saved),
    )
    return table


def _sum(costs: Any) -> Cost:
    total = Cost()
    for cost in costs:
        total.add(cost)
    return total


def _cells(cost: Cost) -> tuple[str, ...]:
    intensity = "-" if cost.intensity is None else f"{cost.intensity:.1f}"
    return (
        _giga(cost.macs),
        _giga(cost.flops),
        _mega(cost.bytes),
        intensity,
        f"{cost.calls:,}",
    )


def _giga(value: float) -> str:
    return f"{value / 1e9:.4f}" if value < 1e10 else f"{value / 1e9:.2f}"


def _mega(value: float) -> str:
    return f"{value / 1e6:.1f}"


def cost_dict(cost: ModelCost) -> dict[str, Any]:
    """Returns everything for JSON: MAC and FLOP as numbers, bytes in bytes."""
    return {
        "format": FORMAT,
        "origin": {"formula": "Detector.flops", "others": "counted on the meta device, float32"},
        "model": cost.name,
        "detector": cost.detector,
        "channels": cost.channels,
        "classes": cost.classes,
        "parameters": cost.parameters,
        "parameters_by_part": cost.parameters_by_part,
        "batch": cost.batch,
        "fps": None if cost.timing is None else cost.timing[0],
        "stride": None if cost.timing is None else cost.timing[1],
        "overlap": cost.overlap,
        "optimizer_bytes": cost.optimizer_bytes,
        "lengths": [_length_dict(length) for length in cost.lengths],
    }


def _length_dict(length_cost: LengthCost) -> dict[str, Any]:
    minute = length_cost.per_minute
    return {
        "rows": length_cost.rows,
        "rows_of_batch": length_cost.rows_of_batch,
        "rows_of_recipe": length_cost.rows_of_recipe,
        "macs": length_cost.macs,
        "flops": 2 * length_cost.macs,
        "macs_of_recipe": length_cost.macs_of_recipe,
        "macs_by_formula": length_cost.formula,
        "forward": _cost_dict(length_cost.forward),
        "step": {
            **{phase: _cost_dict(part) for phase, part in length_cost.step.items()},
            "all": _cost_dict(length_cost.whole_step),
        },
        "by_part": [
            {"phase": phase, "part": part or _OUTSIDE, **_cost_dict(cost_of_part)}
            for (phase, part), cost_of_part in length_cost.by_part.items()
        ],
        "by_op": [
            {"phase": phase, "op": op, **_cost_dict(cost_of_part)}
            for (phase, op), cost_of_part in length_cost.by_op.items()
        ],
        "left_out": list(length_cost.left_out),
        "per_minute": None
        if minute is None
        else {"clips": minute.clips, "macs": minute.macs, "macs_of_recipe": minute.macs_of_recipe},
    }


def _cost_dict(cost: Cost) -> dict[str, Any]:
    return {
        "macs": cost.macs,
        "flops": cost.flops,
        "bytes": cost.bytes,
        "flops_per_byte": cost.intensity,
        "calls": cost.calls,
        "views": cost.views,
        "saved_bytes": cost.saved,
    }
