# SPDX-License-Identifier: Apache-2.0
"""The benchmark harness: what it counts, keeps and shows. No timing is judged here."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def make_row(**changes):
    import harness

    row = harness.Row(
        op="nms", case="2k", peer="loop", stand_in=False, threads=1, ours_ms=0.1, ours_iqr_ms=0.01,
        peer_ms=0.5, peer_iqr_ms=0.02, ratio=5.0, must=4.0, aim=8.0, at_most=False, repetitions=21,
        verified="kept rows", commit="0" * 12, date="2026-01-31T00:00:00+00:00",
    )  # fmt: skip
    return harness.Row(**{**asdict(row), **changes})


def test_calls_take_turns_and_short_ones_are_repeated():
    import harness

    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    seconds = harness.interleaved(calls, 3)
    assert [len(seconds[name]) for name in "ab"] == [3, 3]
    assert min(seconds["a"]) > 0
    # Two warm-up calls each, then whole samples in turn: a..., b..., a..., b..., a..., b...
    runs = [name for i, name in enumerate(order[4:]) if i == 0 or order[4:][i - 1] != name]
    assert runs == list("ababab")


@pytest.mark.parametrize(
    ("changes", "reached"),
    [
        ({"ratio": 8.0}, "aim"),
        ({"ratio": 4.0}, "must"),
        ({"ratio": 3.9}, "missed"),
        ({"must": None, "aim": None}, ""),
        ({"ratio": 5.9, "must": 6.0, "aim": None, "at_most": True}, "must"),
        ({"ratio": 6.1, "must": 6.0, "aim": None, "at_most": True}, "missed"),
    ],
)
def test_reached(changes, reached):
    assert make_row(**changes).reached() == reached


def test_a_row_replaces_the_one_of_the_same_comparison(tmp_path, monkeypatch):
    import harness

    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    harness.store([make_row(), make_row(threads=2)])
    path = harness.store([make_row(ratio=9.0)])
    rows = json.loads(path.read_text())["rows"]
    assert [(row["threads"], row["ratio"]) for row in rows] == [(1, 9.0), (2, 5.0)]


def test_table_marks_what_was_missed_and_stood_in():
    import results_table

    rows = [
        asdict(make_row(ratio=3.0)),
        asdict(make_row(threads=2, ratio=123.4)),
        asdict(make_row(peer="other", stand_in=True)),
        asdict(make_row(op="roi", peer="none", ratio=None, must=None, aim=None)),
    ]
    lines = results_table.markdown_table(rows).splitlines()
    assert lines[2] == "| `nms` | 2k | loop | 3.0x (missed) | 123x |  | 4x | 8x |"
    assert lines[3] == "|  | 2k | other (stand-in) | 5.0x |  |  | 4x | 8x |"
    assert lines[4] == "| `roi` | 2k |  | 0.1 ms |  |  |  |  |"


def test_table_has_a_column_for_avx2():
    import results_table

    rows = [asdict(make_row(ratio=9.0)), asdict(make_row(peer="other"))]
    narrow = [asdict(make_row(ratio=3.5)), asdict(make_row(ratio=7.0, threads=2))]
    lines = results_table.markdown_table(rows, narrow).splitlines()
    assert lines[2] == "| `nms` | 2k | loop | 9.0x |  | 3.5x (missed) | 4x | 8x |"
    assert lines[3] == "|  | 2k | other | 5.0x |  |  | 4x | 8x |"


def test_an_overhead_is_shown_with_its_decimals():
    import results_table

    row = asdict(make_row(ratio=1.0134, must=1.02, aim=None, at_most=True))
    assert "| 1.013x |" in results_table.markdown_table([row])
    assert "| 1.025x (missed) |" in results_table.markdown_table([{**row, "ratio": 1.025}])


def test_rows_can_go_to_a_given_file(tmp_path, monkeypatch):
    import harness

    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    path = tmp_path / "other.json"
    assert harness.store([make_row()], path) == path
    harness.store([make_row(op="study")], path)
    assert [row["op"] for row in json.loads(path.read_text())["rows"]] == ["nms", "study"]
    assert not list((tmp_path / "results").glob("*.json"))


def test_trials_per_second_counts_no_first_trial_and_none_that_runs_alone():
    import bench_study

    def stamps(process, *ends):
        return [{"process": process, "ended": end} for end in ends]

    one = stamps(1, 10.0, 14.0, 18.0)
    assert bench_study.trials_per_second(one) == pytest.approx(1 / 4)
    # Process 2 still works when process 1 has nothing left at 18 s: its trial at 21 s is alone.
    two = [*one, *stamps(2, 11.0, 16.0, 21.0)]
    assert bench_study.trials_per_second(two) == pytest.approx(1 / 4 + 1 / 5)
    with pytest.raises(RuntimeError, match="process 2 ran 1 trials, expected 2 or more"):
        bench_study.trials_per_second([*one, *stamps(2, 17.0)])


def test_predictions_of_two_studies_are_compared(tmp_path):
    import bench_study

    for study, trials in (("a", "pq"), ("b", "qr")):
        for trial in trials:
            folder = tmp_path / study / "trials" / trial
            folder.mkdir(parents=True)
            (folder / "predictions.json").write_text("{}")
    first, second = tmp_path / "a", tmp_path / "b"
    assert bench_study.same_predictions(first, second) == 1
    (second / "trials/q/predictions.json").write_text("{} ")
    with pytest.raises(AssertionError, match="q: predictions differ"):
        bench_study.same_predictions(first, second)
    (second / "trials/q").rename(second / "trials/s")
    with pytest.raises(AssertionError, match="share no trial"):
        bench_study.same_predictions(first, second)


def test_rows_of_a_study_say_how_much_longer_or_faster():
    import bench_study

    slower = bench_study.row("overhead", "alone", 1, [101.0], [100.0], "x", must=1.02, at_most=True)
    assert (slower.ratio, slower.reached(), slower.repetitions) == (1.01, "must", 1)
    faster = bench_study.row("trials", "one", 1, [2.0, 2.0], [3.0, 3.2], "x", must=1.7)
    assert (faster.ours_ms, faster.peer_ms) == (2000.0, 3100.0)
    assert (faster.ratio, faster.reached()) == (1.55, "missed")


def test_the_page_shows_the_newest_results(tmp_path):
    import results_table

    page = (ROOT / "docs/benchmarks.md").read_text("utf-8")
    copy = tmp_path / "docs/benchmarks.md"
    copy.parent.mkdir()
    copy.write_text(page, encoding="utf-8")
    results = tmp_path / "benchmarks/results" / results_table.newest().name
    results.parent.mkdir(parents=True)
    own = results_table.newest()
    for path in filter(None, (own, results_table.with_avx2(own))):
        results.with_name(path.name).write_text(path.read_text("utf-8"), encoding="utf-8")
    results_table.update_page(copy, results)
    assert copy.read_text("utf-8") == page, "run: make bench, or benchmarks/results_table.py"


def test_peers_are_never_fetched(monkeypatch, tmp_path):
    import peers

    monkeypatch.delenv("TAL_FAST_PEERS", raising=False)
    with pytest.raises(peers.PeerMissingError, match="TadTR is absent: set TAL_FAST_PEERS"):
        peers.checkout("TadTR")
    monkeypatch.setenv("TAL_FAST_PEERS", str(tmp_path))
    with pytest.raises(peers.PeerMissingError, match="OpenTAD is absent"):
        peers.checkout("OpenTAD")
    (tmp_path / "OpenTAD").mkdir()
    from peers import nms_1d, opentad

    with pytest.raises(peers.PeerMissingError, match=r"iou_tools.py is absent: expected"):
        opentad.iou_tools()
    with pytest.raises(peers.PeerMissingError, match=r"neither built in .* nor installed"):
        nms_1d.opentad()


def test_stand_ins_follow_the_rules_of_their_peers():
    from peers import stand_ins

    from tal_fast import ops

    generator = torch.Generator().manual_seed(0)
    start = torch.rand(200, generator=generator) * 50
    segments = torch.stack((start, start + 1 + torch.rand(200, generator=generator) * 8), 1)
    scores = torch.randperm(200, generator=generator) / 200 + 0.01
    native, layer = stand_ins.nms_1d()
    rule = {"iou_comparison": "ge", "length_eps": 1e-6}
    assert torch.equal(native.nms(segments, scores, 0.4), ops.nms(segments, scores, 0.4, **rule))
    labels = torch.arange(200) % 3
    theirs = layer.batched_nms(segments, scores, labels, min_score=0.02, max_seg_num=50)
    ours = ops.batched_nms(
        segments, scores, labels, method="gaussian", min_score=0.02, max_segments=50, **rule
    )
    assert torch.equal(theirs[2], labels[ours.indices])
    torch.testing.assert_close(theirs[1], ours.scores, rtol=1e-6, atol=0)


class TestBuildCost:
    def test_objects_are_told_by_file_and_instruction_set(self):
        import build_cost

        kernel = "CMakeFiles/tal_fast_cpu_nms_soft_avx2.dir/csrc/cpu/nms_soft.cpp.o"
        assert build_cost.name_of(kernel) == ("cpu/nms_soft.cpp", "avx2")
        headers = "CMakeFiles/tal_fast_headers_avx512_ffp_contract_off.dir/cmake_pch.hxx.gch"
        assert build_cost.name_of(headers) == ("shared headers", "avx512")
        assert build_cost.name_of("CMakeFiles/tal_fast_bindings.dir/csrc/bindings.cpp.o") == (
            "bindings.cpp",
            "",
        )

    def test_the_launcher_measures_and_passes_the_status_on(self, tmp_path):
        import build_cost

        log = tmp_path / "costs.jsonl"
        code = "sum(range(10**6)); raise SystemExit(3)"
        assert build_cost.launch([sys.executable, "-c", code, "-o", "x.o"], log) == 3
        ((output, seconds),) = map(json.loads, log.read_text().splitlines())
        assert output == "x.o"
        assert seconds > 0

    def test_the_table_adds_up(self):
        import build_cost

        costs = {
            "a_avx2.dir/csrc/cpu/a.cpp.o": 2.0,
            "a_baseline.dir/csrc/cpu/a.cpp.o": 1.0,
            "ops.dir/csrc/ops/b.cpp.o": 5.0,
        }
        lines = build_cost.table(costs, 9.0).splitlines()
        assert lines[2:] == [
            "| ops/b.cpp | 5.0 |  |  |  | 5.0 |",
            "| cpu/a.cpp |  | 1.0 | 2.0 |  | 3.0 |",
            "| all compilations | | | | | 8.0 |",
            "| the whole build | | | | | 9.0 |",
        ]


def test_turns_of_soft_nms_are_those_of_its_picks():
    import numpy as np
    from soft_nms_turns import turns

    from tal_fast import ops

    for seed in range(5):
        found = turns(20, np.random.default_rng(seed), 0.5, 0.4)
        generator = np.random.default_rng(seed)
        scores = torch.from_numpy(np.sort(generator.random(20))[::-1].copy())
        start = torch.from_numpy(generator.random(20) * 200.0)
        end = start + 0.5 + torch.from_numpy(5.0 * generator.random(20))
        kept, _ = ops.soft_nms(
            torch.stack((start, end), 1), scores, sigma=0.5, min_score=0.4, max_segments=None
        )
        # One turn in which all join, one per pick with one turn over the candidates, and the last.
        assert found["turn"] == len(kept) + 2
        assert found["candidate"] == len(kept)
        assert found["earlier picks"] == 0
