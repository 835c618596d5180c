# SPDX-License-Identifier: Apache-2.0
"""What the emulator counts: kernels whose counts are known by hand, waste that must be found, and
the limits of the library's kernels."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import emulated as emulator
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "cuda_emulator"))

import counts
import mark_loops
from count_cases import CASES

pytestmark = [
    pytest.mark.cpu_only,  # it redirects ops itself
    pytest.mark.skipif(not emulator.COUNTED.exists(), reason="no counting kernels: `make build`"),
]

# Half a minute of one core for what these others say as well.
LEFT_OUT = {
    "deform_attn: P bwd bfloat16",
    "deform_attn: C bwd bfloat16",
    *(f"deform_attn_fused: {shape} bwd {t}" for shape in "PC" for t in ("float32", "bfloat16")),
    "deform_attn_fused: P fwd float32",
    "batched_nms_padded: hard, 213 videos x 2000 x 20 classes",  # as with voting
}


def counted(name: str, **launch: int) -> dict[str, Any]:
    with emulator.counted() as launches:
        emulator.run_made(name, **launch)
    (one,) = launches
    return one


def sums(requests: int, lanes: int, num_bytes: int, cost: int, ideal: int, shared: bool = False):
    costs = "wavefronts" if shared else "sectors"
    return {
        **{"requests": requests, "lanes": lanes, "bytes": num_bytes},
        **{costs: cost, "ideal": ideal},
    }


# ---- global memory -----------------------------------------------------------------------------


def test_a_copy() -> None:
    one = counted("Copy", blocks=3, threads=64)
    assert one["loads"] == one["stores"] == sums(6, 192, 768, 24, 24)
    assert one["atomics"] == sums(0, 0, 0, 0, 0)
    assert one["shared_loads"] == sums(0, 0, 0, 0, 0, shared=True)
    assert (one["read_bytes"], one["written_bytes"]) == (768, 768)
    assert (one["blocks"], one["counted_blocks"], one["threads"], one["warps"]) == (3, 3, 64, 6)
    assert one["kernel"].endswith("Copy")


@pytest.mark.parametrize(
    ("kernel", "loads", "stores"),
    [
        ("CopyStrided", sums(1, 32, 128, 32, 4), sums(1, 32, 128, 4, 4)),
        ("CopyMisaligned", sums(1, 32, 128, 5, 4), sums(1, 32, 128, 4, 4)),
        ("CopyPacks", sums(1, 32, 512, 16, 16), sums(1, 32, 512, 16, 16)),
        ("CopyPacksByElements", sums(4, 128, 512, 64, 16), sums(4, 128, 512, 64, 16)),
    ],
)
def test_sectors(kernel: str, loads: dict[str, int], stores: dict[str, int]) -> None:
    one = counted(kernel)
    assert one["loads"] == loads
    assert one["stores"] == stores


def test_a_rescan_shows_in_what_blocks_read() -> None:
    copy_, rescan = (counted(name, blocks=4, threads=64) for name in ("Copy", "Rescan"))
    assert copy_["read_bytes"] == rescan["read_bytes"] == 4 * 64 * 4
    assert copy_["block_read_sectors"] == 32
    assert rescan["block_read_sectors"] == 4 * 32
    assert rescan["loads"]["sectors"] == 4 * 32


def test_atomics_of_global_memory() -> None:
    one = counted("AddToOne")
    assert one["atomics"] == sums(1, 32, 128, 1, 1)
    assert one["loads"]["requests"] == one["stores"]["requests"] == 0


# ---- shared memory -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "loads"),
    [
        ("ColumnsInOneBank", sums(1, 32, 128, 32, 1, shared=True)),
        ("ColumnsPadded", sums(1, 32, 128, 1, 1, shared=True)),
        ("SharedBroadcast", sums(1, 32, 128, 1, 1, shared=True)),
        ("SharedPairs", sums(1, 32, 256, 2, 2, shared=True)),
        ("SharedQuads", sums(1, 32, 512, 4, 4, shared=True)),
        ("SharedQuadsApart", sums(1, 32, 512, 32, 4, shared=True)),
    ],
)
def test_wavefronts(kernel: str, loads: dict[str, int]) -> None:
    one = counted(kernel, shared=4 * 32 * 33)
    assert one["shared_loads"] == loads
    assert one["shared_stores"]["wavefronts"] == one["shared_stores"]["requests"] == 32
    assert one["barriers"] == 1


def test_atomics_of_shared_memory_take_turns() -> None:
    one = counted("SharedAdds", shared=128)
    assert one["shared_atomics"] == sums(1, 32, 128, 8, 1, shared=True)  # eight lanes per word


def test_an_asynchronous_copy_is_a_load_and_a_shared_store() -> None:
    one = counted("AsyncCopy", shared=512)
    assert one["loads"] == sums(1, 32, 512, 16, 16)
    assert one["shared_stores"] == sums(1, 32, 512, 4, 4, shared=True)
    assert one["shared_loads"] == sums(1, 32, 128, 4, 1, shared=True)


# ---- lanes that part ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "stores"),
    [
        ("HalfTakesIt", sums(1, 16, 64, 4, 2)),
        ("BothSides", sums(2, 32, 128, 4, 4)),
        # 24, 16 and 8 lanes, of which four neighbours share a sector with eight places.
        ("RaggedLoop", sums(3, 48, 192, 12, 6)),
        ("TwoCalls", sums(2, 48, 192, 6, 6)),
    ],
)
def test_lanes_that_part(kernel: str, stores: dict[str, int]) -> None:
    assert counted(kernel)["stores"] == stores


def test_turns_of_a_loop() -> None:
    one = counted("RaggedLoop", threads=64)
    assert one["turns"] == {"ragged": 6}  # the longest of each warp
    assert one["turn_lanes"] == {"ragged": 96}


def test_halves_that_meet_alone_stay_one_request() -> None:
    one = counted("HalvesMeet")
    assert one["loads"] == sums(1, 32, 128, 4, 4)
    assert one["operations"] == {"__shfl_xor_sync": 2}
    assert one["operation_lanes"] == 32


# ---- barriers, operations, waits ---------------------------------------------------------------


def test_barriers_and_operations() -> None:
    one = counted("Operations", blocks=2, threads=64)
    assert one["barriers"] == 2 * 3
    # A double takes two registers, and so two shuffles.
    assert one["operations"] == {"__shfl_xor_sync": 2 * 2 * 3 * 2, "__ballot_sync": 2 * 2}
    assert one["slowest"]["barriers"] == 3
    assert one["slowest"]["operations"] == 3 * 2 + 1
    assert one["chains"]["operations"] == 2 * 7


def test_waits_one_after_the_other() -> None:
    one = counted("OneAfterTheOther", blocks=2, threads=64)
    assert one["slowest"]["global_waits"] == one["slowest"]["global_requests"] == 5
    assert one["chains"]["global_waits"] == 10
    # Four loads between which nothing stands are under way together.
    one = counted("CopyPacksByElements")
    assert (one["slowest"]["global_waits"], one["slowest"]["global_requests"]) == (1, 4)


# ---- what is counted of a launch ---------------------------------------------------------------


def test_some_of_the_blocks() -> None:
    with emulator.counted(2, 3) as launches:
        emulator.run_made("Copy", blocks=20, threads=32)
    (some,) = launches
    assert (some["blocks"], some["counted_blocks"]) == (20, 6)
    assert some["loads"]["requests"] == 6
    with emulator.counted(2, 3, ["Co"]) as launches:
        emulator.run_made("Copy", blocks=20, threads=32)
    assert launches == [some]


def test_nothing_is_counted_outside() -> None:
    emulator.run_made("Copy")
    with emulator.counted() as launches:
        pass
    assert launches == []


def test_a_launch_that_fails_is_not_counted() -> None:
    with emulator.counted() as launches:
        with pytest.raises(RuntimeError, match="more shared memory than the launch asked for"):
            emulator.run_made("SharedQuads", shared=16)
        emulator.run_made("Copy")
    assert [one["name"] for one in launches] == ["Copy"]


def test_an_unknown_kernel() -> None:
    with pytest.raises(RuntimeError, match="no kernel Nothing"):
        emulator.run_made("Nothing")


def test_counting_changes_no_result() -> None:
    from tal_fast import ops

    a = torch.rand(30, 2, generator=torch.Generator().manual_seed(0)).cumsum(1)
    expected = ops.segment_iou(a, a)
    with emulator.counted() as launches:
        assert torch.equal(ops.segment_iou(a, a), expected)
    assert [one["name"] for one in launches] == ["segment_iou pairwise"]


# ---- marks of loops ----------------------------------------------------------------------------


def test_a_mark_becomes_a_call_on_its_line() -> None:
    source = "a\n  for (;;) {  // hot: two words\n  }\n// hot: no loop\n"
    with pytest.raises(ValueError, match=r"x.cuh:4: expected '\{' before the mark"):
        mark_loops.instrumented(source, "x.cuh")
    found = mark_loops.instrumented(source.replace("// hot: no loop", ""), "x.cuh")
    assert found.splitlines()[1] == (
        '  for (;;) { ::tal_fast::emulator::turn("two words");  // hot: two words'
    )
    assert mark_loops.instrumented("no mark\n", "x.cuh") == "no mark\n"


# ---- limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CASES if name not in LEFT_OUT])
def test_no_kernel_costs_more_than_its_limits(name: str) -> None:
    known = counts.read()
    if known["compiler"] != counts.compiler():
        pytest.skip(f"limits are of {known['compiler']}, not {counts.compiler()}")
    worse, better = counts.compare(known, name, counts.count(CASES[name])["kernels"])
    for text in better:
        print(text)
    assert worse == [], "counts.py --write writes down what is, if it has to be"


def test_every_case_has_limits() -> None:
    assert set(CASES) > LEFT_OUT
    assert list(counts.read()["cases"]) == list(CASES)


def row(**changes: Any) -> dict[str, Any]:
    nothing = dict.fromkeys(("requests", "lanes", "bytes", "ideal"), 0)
    shared = {kind: nothing | {"wavefronts": 0} for kind in counts._SHARED}
    return {
        **{"name": "scale", "kernel": "Scale<float>", "threads": 64, "shared_bytes": 0},
        **{"launches": 1, "blocks": 8, "counted_blocks": 4, "warps": 8, "per_multiprocessor": 4},
        **{"operations": 10, "operation_lanes": 320, "barriers": 0, "turns": {"row": 5}},
        **{"read_bytes": 0, "written_bytes": 0, "block_written_sectors": 0},
        **{kind: nothing | {"sectors": 0} for kind in ("stores", "atomics")},
        "loads": {"requests": 10, "lanes": 320, "bytes": 1280, "sectors": 40, "ideal": 40},
        "block_read_sectors": 40,
        **shared,
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"loads": row()["loads"] | {"sectors": 80}}, "sectors 80 -> 160"),
        ({"block_read_sectors": 60}, "sectors read, distinct per block 80 -> 120"),
        ({"shared_loads": row()["shared_loads"] | {"wavefronts": 9}}, "wavefronts 0 -> 18"),
        ({"barriers": 1}, "barriers 0 -> 2"),
        ({"operations": 20}, "operations of warps 20 -> 40"),
        ({"turns": {"row": 9}}, "turns of 'row' 10 -> 18"),
        ({"launches": 2}, "launches 1 -> 2"),
        ({"per_multiprocessor": 2, "shared_bytes": 99}, "blocks per multiprocessor 4 -> 2 (shared"),
    ],
)
def test_worse_is_said_and_so_is_better(changes: dict[str, Any], text: str) -> None:
    known = {"cases": {"a case": {"kernels": [row()]}}}
    worse, better = counts.compare(known, "a case", [row(**changes)])
    assert not better
    (line,) = worse
    assert text in line
    known = {"cases": {"a case": {"kernels": [row(**changes)]}}}
    worse, better = counts.compare(known, "a case", [row()])
    assert (worse, len(better)) == ([], 1)


def test_what_has_no_limits() -> None:
    known = {"cases": {"a case": {"kernels": [row()]}}}
    assert counts.compare(known, "b", []) == (["b: has no limits yet"], [])
    worse, better = counts.compare(known, "a case", [row(kernel="Other")])
    assert worse == ["a case: Other: has no limits yet"]
    assert better == ["a case: Scale<float>: is no longer launched"]


def test_rows_of_one_kernel_are_added_up() -> None:
    with emulator.counted() as launches:
        emulator.run_made("Copy", blocks=2)
        emulator.run_made("Copy", blocks=3)
        emulator.run_made("SharedQuads", shared=4 * 32 * 32)
    first, second = counts.summarise(launches)
    assert (first["launches"], first["blocks"], first["loads"]["requests"]) == (2, 5, 5)
    assert (second["shared_bytes"], second["per_multiprocessor"]) == (4096, 32)
    assert "Copy x 2" in counts.table([first])
    assert "4.00 (4.00)" in counts.table([first])


def test_the_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    cases = {
        "a": {
            **{"op": "a", "case": "b", "num_bytes": 3, "scale": 1.0, "torch": []},
            "kernels": [row(), row(kernel="Other")],
        }
    }
    counts.write(cases, tmp_path / "limits.json")
    assert counts.read(tmp_path / "limits.json") == {
        "compiler": counts.compiler(),
        "cases": cases,
    }
