# SPDX-License-Identifier: Apache-2.0
"""``make gpu-check``, without a GPU: steps, reports, tables. No time is judged."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import HANG, has_ended, started, wait_for

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


def gpu_check(*arguments):
    return subprocess.run(
        [sys.executable, BENCHMARKS / "gpu_check.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


# ---- the plan ----------------------------------------------------------------------------------


def test_every_step_is_listed_in_the_order_of_its_worth():
    done = gpu_check("--dry-run")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split("call 2")
    names = [re.findall(r"^\d+\. ([a-z. ]+):", text, re.MULTILINE) for text in (first, second)]
    assert names[0] == ["build", "link", "bits", "kernels", "peers"]
    assert names[1] == [
        "build", "link", "profile", "memcheck", "racecheck", "parity", "steps", "training",
        "compiled", "torch.compile",
    ]  # fmt: skip


def test_one_call_alone():
    done = gpu_check("--dry-run", "--call", "2")
    assert "call 1" not in done.stdout
    assert "profile" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_an_error():
    done = gpu_check()
    assert done.returncode == 2
    assert "torch finds no GPU" in done.stderr


def test_an_unknown_step_is_refused():
    done = gpu_check("--only", "bench")
    assert done.returncode == 2
    assert "no step bench; expected some of build, link, bits" in done.stderr


def test_tests_that_need_a_gpu_are_marked():
    chosen = ("segment_iou", "linear_assignment", "dropout", "cuda", "docstrings", "local_attn")
    files = [f"tests/ops/test_{name}.py" for name in chosen]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--collect-only", "-m", "gpu", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    names = {line.partition("[")[0].partition("/ops/")[2] for line in done.stdout.splitlines()}
    assert {
        "test_segment_iou.py::test_same_bits_on_every_device",
        "test_linear_assignment.py::test_same_matches_on_every_device",
        "test_dropout.py::test_cuda_has_the_bits_of_the_cpu",
        "test_cuda.py::test_same_bits_on_every_run",
    } <= names
    assert not any("test_docstrings" in name for name in names)  # no part in it for a GPU
    assert "test_segment_iou.py::test_gradcheck[cuda-emulated" not in done.stdout
    assert "test_local_attn.py" not in done.stdout or torch.cuda.is_available()


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("========= ERROR SUMMARY: 0 errors", None),
        ("========= ERROR SUMMARY: 3 errors", "ERROR SUMMARY: 3 errors"),
        ("========= RACECHECK SUMMARY: 1 hazards displayed", "RACECHECK SUMMARY: 1 hazard"),
        ("killed", "no summary"),
    ],
)
def test_the_sanitizer_is_read(output, problem):
    import gpu_steps

    found = gpu_steps.sanitizer_found(output)
    assert found is None if problem is None else problem in found


def test_what_a_step_needs():
    import gpu_steps

    def missing(needs):
        return gpu_steps.Step("a", "a", ["a"], 1, needs=needs).missing()

    assert missing(None) is None
    assert missing("json") is None
    assert missing("no_such_thing") == "no_such_thing is not there"
    assert missing("no-such-thing") == "no-such-thing is not there"


# ---- a run -------------------------------------------------------------------------------------


def python_step(name, code, limit=HANG, **more):
    import gpu_steps

    command = [sys.executable, "-c", code]
    return gpu_steps.Step(name, name, command, limit, command, **more)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs made-up steps and returns the status and what the copy of the report holds."""
    import gpu_check

    def call(*planned, arguments=("--rehearse",), device=None):
        monkeypatch.setattr(gpu_check, "FOLDER", tmp_path / "work")
        monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
        monkeypatch.setattr(
            gpu_check, "machine", lambda *_: {"device": device, "date": "2026-01-31", "torch": "1"}
        )
        monkeypatch.setattr(gpu_check, "steps", lambda *_: {1: list(planned)})
        out = tmp_path / "out"
        monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--out", str(out), *arguments])
        status = gpu_check.main()
        (path,) = out.glob("*.json")
        return status, json.loads(path.read_text("utf-8"))

    before = signal.getsignal(signal.SIGTERM)
    yield call
    signal.signal(signal.SIGTERM, before)


def test_a_failing_step_does_not_stop_the_others(run, tmp_path, capsys):
    status, report = run(
        python_step("bad", "raise SystemExit(3)"),
        python_step("slow", "import time; time.sleep(600)", 0.25),
        python_step("good", "print('fine')"),
    )
    assert status == 1
    steps = report["steps"]
    assert [entry["status"] for entry in steps] == ["failed", "timeout", "passed"]
    assert steps[0]["problem"] == "exit 3"
    assert steps[2]["output"] == "fine\n"
    assert "bad" in capsys.readouterr().out
    assert "==== good.log\nfine" in (tmp_path / "out/logs.txt").read_text("utf-8")


def test_what_a_step_started_ends_with_it(run, tmp_path, monkeypatch):
    mark = tmp_path / "pid"

    class Patient(subprocess.Popen):
        """Its limit has passed when the step has started something, and no sooner."""

        def wait(self, timeout=None):
            if timeout is None:
                return super().wait()
            wait_for(mark.exists, "what the step starts")
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(subprocess, "Popen", Patient)
    inner = (
        f"import os, pathlib, time; mark = pathlib.Path({str(mark)!r})\n"
        "new = mark.with_name('new'); new.write_text(str(os.getpid()))\n"
        "new.rename(mark); time.sleep(3600)"
    )
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    _, report = run(python_step("slow", code))
    assert report["steps"][0]["status"] == "timeout"
    pid = int(mark.read_text())
    try:
        # It is killed by now; the kernel may need a moment to let it go.
        wait_for(lambda: has_ended(pid), "the end of what the step started")
    finally:
        if not has_ended(pid):
            os.kill(pid, signal.SIGKILL)


def test_a_second_command_is_tried_where_the_first_fails(run):
    step = python_step(
        "profile",
        "raise SystemExit(1)",
        otherwise=[sys.executable, "-c", "print('less')"],
    )
    status, report = run(step, arguments=(), device="Some GPU")
    assert status == 0
    assert report["steps"][0]["output"] == "less\n"


def test_a_library_of_the_same_sources_is_not_built_again(run, tmp_path):
    (tmp_path / "tal_fast").mkdir()
    (tmp_path / "csrc").mkdir()
    source = tmp_path / "csrc/a.cu"
    source.write_text("1")
    build = python_step("build", "open('tal_fast/_C_cuda.1.so', 'a').write('x')")
    again = {"arguments": (), "device": "Some GPU"}
    assert run(build, **again)[1]["steps"][0]["problem"] is None
    assert run(build, **again)[1]["steps"][0]["problem"] == "built before, of these sources"
    source.write_text("2")
    assert run(build, **again)[1]["steps"][0]["problem"] is None
    assert (tmp_path / "tal_fast/_C_cuda.1.so").read_text() == "xx"


ENDLESS = """
import itertools, pathlib, sys, time
sys.path.insert(0, {benchmarks!r})
from gpu_report import write_json
rows = []
empty = dict.fromkeys(["event_us", "graph_us", "share_of_floor", "ratio_event", "ratio_graph"])
for number in itertools.count():
    rows.append({{"op": "nms", "case": str(number), "name": "us", "error": None, **empty}})
    write_json(pathlib.Path({path!r}), {{"rows": rows}})
    print(number, flush=True)
    time.sleep(0.01)
"""
RUNNER = """
import pathlib, sys
sys.path.insert(0, {benchmarks!r})
import gpu_check, gpu_steps
root = pathlib.Path({root!r})
gpu_check.ROOT, gpu_check.FOLDER, gpu_check._TICK = root, root / "work", 0.05
gpu_check.machine = lambda *_: {{"device": None, "date": "2026-01-31"}}
command = [sys.executable, "-c", {endless!r}]
step = gpu_steps.Step("bench", "rows without end", command, 600, command, bench="rows")
gpu_check.steps = lambda *_: {{1: [step]}}
sys.argv = ["gpu_check.py", "--rehearse", "--out", {out!r}]
sys.exit(gpu_check.main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_kill_leaves_a_whole_report_with_the_rows_so_far(number, tmp_path):
    out = tmp_path / "out"
    path = out / "2026-01-31-no-gpu-gpu-check-1.json"
    values = {
        "benchmarks": str(BENCHMARKS),
        "path": str(tmp_path / "work/rows.json"),
        "root": str(tmp_path),
        "out": str(out),
    }
    endless = ENDLESS.format(**values)
    command = [sys.executable, "-c", RUNNER.format(**values, endless=endless)]
    with started(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        _kill_and_read(process, number, path)
    assert "==== bench.log\n0\n1\n" in (out / "logs.txt").read_text("utf-8")


def _kill_and_read(process, number, path):
    until = time.monotonic() + HANG
    seen = 0
    while seen < 5:  # looked at all the time: it is whole whenever somebody looks
        if path.exists():
            content = json.loads(path.read_text("utf-8"))
            seen = len(content["benches"].get("rows", {"rows": []})["rows"])
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.002)
    process.send_signal(number)
    assert process.wait(HANG) in (130, -number)
    rows = json.loads(path.read_text("utf-8"))["benches"]["rows"]["rows"]
    assert len(rows) >= seen


def test_the_benchmark_hands_over_every_row_as_it_is_measured(tmp_path):
    import gpu_harness

    kept = []
    bench = gpu_harness.Bench(torch.device("cpu"), rounds=1, on_row=lambda row: kept.append(row))
    x = torch.ones(3)
    bench.compare("op", "case", lambda: (x + 1,), {"peer": lambda: (1 + x,)})
    assert [row.name for row in kept] == ["tal_fast", "peer"]
    bench.peers = "none"
    bench.compare("op", "case", lambda: (x + 1,), {"peer": lambda: (1 + x,)})
    assert [row.name for row in kept[2:]] == ["tal_fast"]
    bench.peers = "compiled"
    bench.compare("op", "case", lambda: (x + 1,), {"peer": lambda: (1 + x,)})
    assert len(kept) == 3  # without a compiled peer there is nothing to measure
    made = {"compiled": lambda: lambda: (x + 1,)}
    bench.compare("op", "case", lambda: (x + 1,), {}, compiled=made)
    assert [row.name for row in kept[3:]] == ["tal_fast", "compiled"]


def test_the_benchmark_names_what_there_was_no_time_for():
    import gpu_harness

    bench = gpu_harness.Bench(torch.device("cpu"), rounds=1, seconds_left=lambda: 0.0)
    bench.compare("op", "case", lambda: (torch.ones(1),), {})
    assert bench.rows == []
    assert bench.left_out == ["op, case"]


def test_the_benchmark_runs_without_a_gpu(tmp_path):
    out = tmp_path / "rows.json"
    done = subprocess.run(
        [
            *(sys.executable, BENCHMARKS / "gpu_bench.py", "--rehearse"),
            *("--parts", "overlaps", "--out", out),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(out.read_text("utf-8"))
    assert content["failures"] == {}
    assert not [row for row in content["rows"] if row["error"]]
    assert {row["name"] for row in content["rows"]} >= {"tal_fast", "eager"}


# ---- reading it --------------------------------------------------------------------------------


def predictions(**changes):
    row = {"op": "nms", "case": "a", "predicted_us": [10, 20], "must_us": 30, "aim_us": 15}
    return {"source": "reckoned", "device": "X", "rows": [{**row, **changes}]}


def measured(case, graph, event=None, name="tal_fast"):
    return {"op": "nms", "case": case, "name": name, "graph_us": graph, "event_us": event}


@pytest.mark.parametrize(
    ("rows", "changes", "expected"),
    [
        ([measured("a", 12.0)], {}, (12.0, 1.0, "aim")),
        ([measured("a", 25.0)], {}, (25.0, 1.25, "must")),
        ([measured("a", 5.0)], {}, (5.0, 0.5, "aim")),
        ([measured("a", None, 40.0)], {}, (40.0, 2.0, "missed")),  # not captured: event time
        ([measured("a", 9.0), measured("a", 18.0)], {}, (18.0, 1.0, "must")),  # the later one
        ([measured("a", 9.0, name="peer")], {}, (None, None, "")),
        ([], {}, (None, None, "")),
        ([measured("a", 40.0), measured("b", 22.0)], {"minus": "b"}, (18.0, 1.0, "must")),
        ([measured("a", 40.0)], {"minus": "b"}, (None, None, "")),
        ([measured("a", 40.0)], {"must_us": None, "aim_us": None}, (40.0, 2.0, "")),
        ([measured("a", 40.0)], {"predicted_us": None}, (40.0, None, "missed")),
    ],
)
def test_measured_beside_predicted(rows, changes, expected):
    import gpu_report

    (found,) = gpu_report.compared(rows, predictions(**changes))
    assert (found["measured_us"], found["times"], found["reached"]) == expected


def test_the_error_of_the_model_is_said():
    import gpu_report

    rows = [measured("a", 40.0)]
    (hit,), (missed,), (unknown,) = (
        gpu_report.compared(found, predictions()) for found in ([measured("a", 12.0)], rows, [])
    )
    assert gpu_report.model_error([hit, missed, unknown]) == (
        "error of the model: of 2 predictions 1 hold; measured over the nearer bound 1.41 in the "
        "geometric mean, 1.00 to 2.00"
    )
    assert gpu_report.model_error([unknown]).endswith("nothing was measured that is predicted")


def test_the_predictions_are_of_cases_that_the_benchmark_has(monkeypatch):
    import gpu_bench
    import gpu_report

    names = set()

    class Names:
        device, real, peers = torch.device("cpu"), False, "none"

        def compare(self, op, case, *arguments, **more):
            names.add((op, case))

    for part in ("attention", "overlaps", "suppression", "local_attn", "pooling"):
        gpu_bench.PARTS[part](Names())
    # Sizes are smaller in a rehearsal.
    small = {"4096 x 4096": "64 x 64", "213 videos x 2000": "3 videos x 60"}
    small |= {f"{n} segments": "200 segments" for n in (2000, 10000, 40000)}
    small |= {"2304 rows": "40 rows", "16 x 128 x 2048 of": "4 x 8 x 16 of"}
    found = gpu_report.read_predictions()
    assert found["rows"]
    assert "measured" in found["source"]
    for row in found["rows"]:
        for case in filter(None, (row["case"], row.get("minus"))):
            for large, little in small.items():
                case = case.replace(large, little)
            assert (row["op"], case) in names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected JSON with 'source' and 'rows'"),
        ('{"rows": []}', "expected a 'source'"),
        (predictions(op=3), "row 0: expected op to be a text, got 3"),
        (predictions(predicted_us=[20, 10]), r"row 0: expected predicted_us to be \[least, most\]"),
        (predictions(must_us=-1), "row 0: expected must_us above 0 or null, got -1"),
    ],
)
def test_a_bad_file_of_predictions_is_refused(content, message, tmp_path):
    import gpu_report

    path = tmp_path / "predictions.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=f"predictions.json.*{message}"):
        gpu_report.read_predictions(path)


def test_without_predictions_there_is_nothing_to_compare_with(tmp_path):
    import gpu_report

    found = gpu_report.read_predictions(tmp_path / "none.json")
    assert found["rows"] == []
    assert "none.json is absent" in found["source"]


def test_the_table_of_kept_reports(tmp_path):
    row = {
        **measured("hard, 2000 segments", 45.0, 50.0), "op": "nms_padded",
        "share_of_floor": None, "ratio_event": None, "ratio_graph": None, "error": None,
    }  # fmt: skip
    report = {
        "machine": {"device": "NVIDIA H200", "commit": "abc", "date": "2026-01-31"},
        "steps": [{"step": "build", "status": "passed", "seconds": 70.0, "problem": None}],
        "benches": {"kernels": {"rows": [row], "left_out": ["nms, hard, 9 segments"]}},
    }
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report))
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "gpu_report.py", path, path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "no time was left for nms, hard, 9 segments" in done.stdout
    lines = [x.split() for x in done.stdout.splitlines() if x.startswith("nms_padded")]
    goal = lines[-1]
    assert goal[:5] == ["nms_padded", "hard,", "2000", "segments", "45"]
    assert goal[8:11] == ["50", "20", "must"]
    assert "error of the model: of 1 predictions" in done.stdout


def test_counters_of_nsight_compute_are_read():
    import gpu_report

    output = (
        "==PROF== Connected\nattention P: 3 results\n"
        '"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n'
        '"0","7","kernel_entry<Forward>","smsp__inst_executed.sum","inst","1,234"\n'
        '"0","7","kernel_entry<Forward>","gpu__time_duration.sum","us","16.5"\n'
        "iou: 2 results\n"
        '"1","7","kernel_entry<Iou>","smsp__inst_executed.sum","inst","n/a"\n'
    )
    assert gpu_report.counters(output) == [
        {
            "kernel": "kernel_entry<Forward>",
            "smsp__inst_executed.sum [inst]": 1234.0,
            "gpu__time_duration.sum [us]": 16.5,
        },
        {"kernel": "kernel_entry<Iou>", "smsp__inst_executed.sum": "n/a"},
    ]
    assert gpu_report.counters("nothing of it") == []
