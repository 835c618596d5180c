# SPDX-License-Identifier: Apache-2.0
"""The model of times on a GPU, on counts written by hand; and the files it makes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import gpu_model
import gpu_report

ROOT = Path(__file__).parents[1]
DEVICE = {
    "arch": "sm_90",
    "multiprocessors": 10,
    "schedulers": 4,
    "clock_ghz": 1.0,  # a thousand cycles are a microsecond
    "memory_gb_per_s": 1000,
    "l2_bytes": 1_000_000,
    "l2_bytes_per_clock": 320,
    "cycles": {"global": 600, "l2": 300, "shared": 30, "operation": 25, "barrier": 30},
    "first_launch_us": 2.5,
    "launch_us": 1.5,
}
CODE = {
    "registers": 32,
    "instructions": 150,
    "loops": {"query": [100, 60, 0, 0], "round": [40, 40, 0, 0]},
}
NOTHING = dict.fromkeys(("requests", "lanes", "bytes", "sectors", "wavefronts", "ideal"), 0)
CHAIN = dict.fromkeys(
    (
        "global_waits",
        "global_requests",
        "shared_waits",
        "shared_requests",
        "operations",
        "barriers",
    ),
    0,
)


def row(**changes):
    kinds = ("loads", "stores", "atomics", "shared_loads", "shared_stores", "shared_atomics")
    return {
        **{"name": "scale", "kernel": "Scale<float>", "threads": 256, "shared_bytes": 0},
        **{"launches": 1, "blocks": 20, "counted_blocks": 5, "warps": 40},
        **{"operations": 0, "turns": {}, "read_bytes": 0, "written_bytes": 0},
        **{"block_read_sectors": 0, "block_written_sectors": 0},
        **dict.fromkeys(kinds, NOTHING),
        **{"slowest": CHAIN, "chains": CHAIN},
        **changes,
    }


# ---- instructions ------------------------------------------------------------------------------


def test_turns_times_their_instructions():
    # A query without its rounds has 60, of which a way round takes 60; a round has 40.
    best, worst = gpu_model.instructions(row(turns={"query": 10, "round": 30}), CODE)
    assert best == 10 * 60 + 30 * 40 + 40 * (150 - 100) / 2
    assert worst == 10 * 60 + 30 * 40 + 40 * (150 - 100)


def test_the_best_is_between_the_shortest_and_all_ways():
    code = CODE | {"instructions": 100, "loops": {"query": [100, 60, 0, 0]}}
    assert gpu_model.instructions(row(turns={"query": 10}), code) == (800, 1000)


def test_parts_count_as_often_as_warps_came_there():
    code = CODE | {"parts": {"slow": {"query": 20}, "rest": {"": 30}}}
    counted = row(turns={"query": 10, "round": 30, "slow": 2, "rest": 5})
    best, worst = gpu_model.instructions(counted, code)
    # A query without rounds and slow parts has 40; 20 of the code are in no loop and no part.
    assert best == 10 * 40 + 30 * 40 + (2 * 20 + 5 * 30 + 40 * 20) / 2
    assert worst == 10 * 40 + 30 * 40 + 2 * 20 + 5 * 30 + 40 * 20


def test_a_part_of_two_loops_is_in_neither():
    code = CODE | {"parts": {"slow": {"query": 20, "round": 10}}}
    _, worst = gpu_model.instructions(row(turns={"query": 10, "round": 30, "slow": 2}), code)
    # In which of them it was is not known: the larger copy counts.
    assert worst == 10 * 40 + 30 * 30 + 2 * 20 + 40 * (150 - 100)


@pytest.mark.parametrize("code", [None, CODE])
def test_without_a_marked_loop_by_requests(code):
    counted = row(operations=7, loads=NOTHING | {"requests": 3})
    assert gpu_model.instructions(counted, code) == (60, 120)


# ---- a kernel ----------------------------------------------------------------------------------


def predict(code=None, **changes):
    known = {
        name: changes.pop(name) for name in ("scale", "memory_bytes", "first") if name in changes
    }
    return gpu_model.predict_kernel(row(**changes), code, DEVICE, **known)


def test_issue():
    # 5 blocks issue 1000 instructions; each multiprocessor has two blocks, so 400 on 4 schedulers.
    code = CODE | {"instructions": 100, "loops": {"query": [100, 100, 0, 0]}}
    parts = predict(code, turns={"query": 10})
    assert parts.issue == pytest.approx((0.1 / 0.8, 0.1 / 0.6))
    assert parts.limiter() == "launch"
    # A multiprocessor more than the others have blocks for takes as long.
    assert predict(code, turns={"query": 10}, blocks=11).issue == parts.issue


def test_shared_memory_and_requests_of_global_memory_share_a_pipe():
    parts = predict(
        shared_loads=NOTHING | {"wavefronts": 4000},
        loads=NOTHING | {"requests": 100, "sectors": 4000},
    )
    assert parts.shared_memory == pytest.approx((2.0 / 0.8, 2.0 / 0.6))
    assert parts.limiter() == "shared memory"


def test_l2_between_distinct_and_all_sectors():
    parts = predict(
        loads=NOTHING | {"sectors": 4000}, block_read_sectors=1000, block_written_sectors=1000
    )
    assert parts.l2 == pytest.approx((0.8 / 0.8, 1.6 / 0.6))


def test_memory():
    parts = predict(memory_bytes=8e6)
    assert parts.memory == pytest.approx((9.0, 10.0))
    assert parts.limiter() == "memory"


def test_latency_of_the_slowest_block_and_of_those_that_follow():
    slowest = CHAIN | {"global_waits": 10, "operations": 40, "barriers": 10}
    chains = CHAIN | {"global_waits": 25}
    parts = predict(slowest=slowest, chains=chains)
    assert parts.latency == pytest.approx((3.0 / 4 + 0.3 + 0.08, 6.0 + 0.3 + 1.0))
    # With 200 KB of shared memory a multiprocessor takes one block: a second round of the average.
    again = predict(slowest=slowest, chains=chains, shared_bytes=200_000)
    assert again.latency == pytest.approx((parts.latency[0] + 1.5 / 4, parts.latency[1] + 3.0))
    assert again.limiter() == "latency"


def test_latency_where_every_warp_has_a_problem_of_its_own():
    # 80 blocks fill the ten multiprocessors; 5 of 40 counted warps have a problem.
    slowest, chains = CHAIN | {"global_waits": 10}, CHAIN | {"global_waits": 25}
    turns = {gpu_model.BY_WARP: 5}

    def latency(scale, **changes):
        parts = predict(slowest=slowest, chains=chains, blocks=80, scale=scale, **changes)
        return parts.latency[1]

    assert latency(8, turns=turns) == latency(1, turns=turns) == pytest.approx(6.0)
    assert latency(9, turns=turns) == pytest.approx(6.0 + 3.0)
    assert latency(8) == pytest.approx(6.0 + 7 * 3.0)


def test_registers_keep_blocks_apart():
    code = {"registers": 255, "instructions": 0, "loops": {}}
    chains = CHAIN | {"global_waits": 5}
    one = predict(chains=chains, slowest=CHAIN)
    apart = predict(code, chains=chains, slowest=CHAIN)
    assert (one.latency[0], apart.latency[0]) == pytest.approx((0.0, 0.3 / 4))


def test_launches():
    assert predict().launch == 1.5
    assert predict(first=True).launch == 2.5
    assert predict(first=True, launches=3).launch == 5.5
    assert predict().total() == (1.5, 1.5)


def test_a_larger_problem_has_more_blocks():
    small, large = (predict(loads=NOTHING | {"sectors": 10**5}, scale=s) for s in (1.0, 10.0))
    assert large.l2[1] == pytest.approx(10 * small.l2[1])
    assert large.shared_memory[1] == pytest.approx(10 * small.shared_memory[1])


# ---- a call ------------------------------------------------------------------------------------


def case(**changes):
    return {
        **{"op": "scale", "case": "a", "num_bytes": 1000, "scale": 1.0, "torch": []},
        "kernels": [row()],
        **changes,
    }


def test_kernels_follow_each_other():
    two = case(kernels=[row(), row(kernel="Other")])
    bounds, limiter, parts = gpu_model.predict(two, {}, DEVICE)
    assert bounds == (4.0, 4.0)
    assert limiter == "launch"
    assert list(parts) == ["Scale<float>", "Other"]


def test_bytes_are_shared_by_what_kernels_touch():
    kernels = [row(read_bytes=3), row(kernel="Other", written_bytes=1)]
    _, limiter, parts = gpu_model.predict(case(num_bytes=80e6, kernels=kernels), {}, DEVICE)
    assert parts["Scale<float>"].memory[1] == pytest.approx(75.0)
    assert parts["Other"].memory[1] == pytest.approx(25.0)
    assert limiter == "memory"
    # Up to 20 MB the benchmark leaves the cache warm.
    _, _, parts = gpu_model.predict(case(num_bytes=20e6, kernels=kernels), {}, DEVICE)
    assert parts["Other"].memory == (0.0, 0.0)


def test_what_torch_does():
    sort = {"op": "aten::sort", "elements": 1000}
    bounds, limiter, _ = gpu_model.predict(case(torch=[sort]), {}, DEVICE)
    moved = 8 * 2 * 1000 * 16 + 8000
    assert bounds[0] == pytest.approx(2.5 + 11 * 1.5 + moved / 320e3 / 0.6)
    assert limiter == "torch's kernels"
    zeros = {"op": "aten::new_zeros", "elements": 4}
    assert gpu_model.predict(case(torch=[zeros]), {}, DEVICE)[0] == (4.0, 4.0)


# ---- files -------------------------------------------------------------------------------------

CODES = {"nvcc": "13", "kernels": {}}
DEVICES = {"devices": {"NVIDIA H200": DEVICE}}


def test_goals_and_attention_become_rows():
    attention = {"op": "deform_attn", "kernels": [row()]}
    counts = {
        "cases": {
            "scale: a": case(),
            "scale: b": case(case="b"),
            "deform_attn: P bwd float32": case(**attention, case="P bwd float32"),
        }
    }
    goal = {"op": "scale", "case": "both", "counts": ["scale: a", "scale: b"], "must_us": 6}
    found = gpu_model.predictions(counts, CODES, DEVICES, {"rows": [goal]})
    first, second = found["rows"]
    assert first["predicted_us"] == [5.0, 5.0]
    assert (first["must_us"], first["aim_us"], first["floor_us"]) == (6, None, 0.002)
    assert (second["case"], second["minus"]) == ("P fwd+bwd float32", "P fwd float32")
    assert "measured" in found["source"]
    assert "yes" in gpu_model.table(found)


def test_a_goal_about_nothing_that_is_counted():
    goals = {"rows": [{"op": "nms", "case": "a"}]}
    with pytest.raises(ValueError, match=r"gpu_goals.json: expected a case of count_limits.json"):
        gpu_model.predictions({"cases": {}}, CODES, DEVICES, goals)


@pytest.mark.parametrize(
    ("bounds", "must", "text"),
    [((1, 2), 3, "yes"), ((1, 2), 1.5, "perhaps"), ((2, 3), 1, "no"), ((1, 2), None, "")],
)
def test_whether_a_goal_is_met(bounds, must, text):
    assert gpu_model.reached(bounds, must) == text


def test_the_predictions_are_those_of_the_counts():
    expected = gpu_model.predictions(*gpu_model.read())
    found = json.loads(gpu_report.PREDICTIONS.read_text("utf-8"))
    assert found == expected, "python benchmarks/gpu_model.py --write"
    assert gpu_report.read_predictions() == expected


def test_loops_that_the_model_speaks_of_exist():
    _, codes, _, _ = gpu_model.read()
    loops = {name for code in codes["kernels"].values() for name in code["loops"]}
    assert loops >= {*gpu_model.INNER, *gpu_model.INNER.values()}


def test_the_command():
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/gpu_model.py", "--device", "NVIDIA A100", "--kernels"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "NVIDIA A100: us, predicted" in done.stdout
    assert "P fwd float32" in done.stdout
    assert ": launch " in done.stdout
