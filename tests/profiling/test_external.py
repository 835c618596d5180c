# SPDX-License-Identifier: Apache-2.0
"""Profilers of others, made of shell scripts: commands, flags, permissions, and what they write."""

from __future__ import annotations

import json
import os
import stat

import made_profiles
import pytest

from tal_fast import cli
from tal_fast.errors import ConfigError, DataError, TrainingError
from tal_fast.profiling import external, recording
from tal_fast.profiling.external import TOOLS, external_command, folder_of, run_external
from tal_fast.profiling.report import read_profile, write_page
from tal_fast.profiling.tool_output import ncu_tables, nsys_rows, speedscope_rows

# As the tools lay their output out, with what they say around it.
NSYS = """Generating SQLite file /tmp/a.sqlite from /tmp/a.nsys-rep
Processing [/tmp/a.sqlite] with [/opt/nvidia/reports/nvtx_sum.py]...
Time (%),Total Time (ns),Instances,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Style,Range
60.0,600000,20,30000.0,29000.0,28000,40000,2000.0,PushPop,tal_fast:tal_fast.forward
40.0,400000,20,20000.0,19000.0,18000,30000,1000.0,PushPop,"tal_fast:a, b"
Processing [/tmp/a.sqlite] with [/opt/nvidia/reports/osrt_sum.py]...
Time (%),Total Time (ns),Num Calls,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Name
99.0,1,1,1.0,1.0,1,1,0.0,poll
"""
SKIPPED = """Processing [/tmp/a.sqlite] with [/opt/nvidia/reports/cuda_gpu_kern_sum.py]...
SKIPPED: /tmp/a.sqlite does not contain CUDA kernel data.
"""
_COLUMNS = (
    "ID", "Process ID", "Process Name", "Host Name", "Kernel Name", "Context", "Stream",
    "Block Size", "Grid Size", "Device", "CC", "Section Name", "Metric Name", "Metric Unit",
    "Metric Value", "Rule Name", "Rule Type",
)  # fmt: skip
_LIGHT = "GPU Speed Of Light Throughput"


def ncu_line(number, kernel, metric, unit, value):
    cells = [number, "1234", "python", "127.0.0.1", kernel, "1", "7", "(256, 1, 1)", "(128, 1, 1)",
             "0", "9.0", _LIGHT, metric, unit, value, "", ""]  # fmt: skip
    return ",".join(f'"{cell}"' for cell in cells)


NCU = "\n".join(
    [
        "==PROF== Connected to process 1234 (/usr/bin/python)",
        '==PROF== Profiling "gemm" - 0: 0%....50%....100% - 9 passes',
        ",".join(f'"{name}"' for name in _COLUMNS),
        ncu_line("0", "void gemm<float>(float*, int)", "Duration", "us", "1,200.50"),
        ncu_line("0", "void gemm<float>(float*, int)", "Compute (SM) Throughput", "%", "80.0"),
        ncu_line("0", "void gemm<float>(float*, int)", "Memory Throughput", "%", "20.0"),
        ncu_line("0", "void gemm<float>(float*, int)", "Memory Throughput", "Gbyte/s", "900.0"),
        ncu_line("0", "void gemm<float>(float*, int)", "", "", ""),
        ncu_line("1", "void gemm<float>(float*, int)", "Duration", "ms", "1.0"),
        ncu_line("1", "void gemm<float>(float*, int)", "Compute (SM) Throughput", "%", "60.0"),
        ncu_line("2", "copy", "Duration", "ns", "5000"),
        ncu_line("2", "copy", "DRAM Throughput", "%", "n/a"),
    ]
)
STACKS = {
    "shared": {
        "frames": [
            {"name": "main", "file": "/opt/somebody/lib/run.py", "line": 3},
            {"name": "forward", "file": "/opt/somebody/lib/net.py", "line": 7},
            {"name": "idle"},
        ]
    },
    "profiles": [
        {"samples": [[0, 1], [0, 1], [0], []], "weights": [0.05, 0.05, 0.05, 0.05]},
        {"samples": [[2]], "weights": [0.05]},
    ],
}


class TestParsers:
    def test_nsys(self):
        rows = nsys_rows(NSYS)
        assert [row["Range"] for row in rows] == ["tal_fast:tal_fast.forward", "tal_fast:a, b"]
        assert rows[0]["Total Time (ns)"] == "600000"
        assert nsys_rows(SKIPPED) == nsys_rows("") == []

    def test_ncu(self):
        kernels = ncu_tables(NCU)["kernels"]
        assert kernels == [
            {"kernel": "void gemm<float>(float*, int)", "launches": 2, "us": 2200.5,
             "compute %": 70.0, "memory %": 20.0, "dram %": None},
            {"kernel": "copy", "launches": 1, "us": 5.0, "compute %": None, "memory %": None,
             "dram %": None},
        ]  # fmt: skip
        assert ncu_tables("==PROF== Disconnected\n==WARNING== No kernels were profiled.") == {}

    def test_stacks(self):
        rows = speedscope_rows(STACKS)
        assert rows[0] == {
            "function": "forward", "file": "lib/net.py:7", "itself %": 50.0,
            "with what it calls %": 50.0,
        }  # fmt: skip
        assert {row["function"]: row["with what it calls %"] for row in rows}["main"] == 75.0
        assert "somebody" not in json.dumps(rows)


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Puts a script on PATH that writes down how it was called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def make(name, body, known="--trace --pytorch --force-overwrite --output --set --csv"):
        path = folder / name
        calls = tmp_path / f"{name}.calls"
        path.write_text(
            "#!/bin/sh\n"
            f'case " $* " in *" --help "*) if [ "$#" -le 2 ]; then echo "{known}"; exit 0; fi;; '
            "esac\n"
            f'echo "$TAL_FAST_NVTX $TAL_FAST_CAPTURE $*" >> {calls}\n{body}\n'
        )
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
        return calls

    return make


TRAIN = ["train", "--data", "d", "--out", "o"]
ALL = (
    "-t, --trace= --pytorch= --force-overwrite= --output= --capture-range= "
    "--capture-range-end= --gpu-metrics-devices= --native --format <f> --rate <r>"
)


def option(name, command):
    """The value of an option, which nsys takes in the same word."""
    return next(word for word in command if word.startswith(f"{name}=")).removeprefix(f"{name}=")


class TestCommand:
    def test_nsys_on_a_gpu(self, monkeypatch, tmp_path):
        monkeypatch.setattr(external, "_on_gpu", lambda: True)
        command, notes = external_command(TOOLS["nsys"], TRAIN, tmp_path / "nsys", ALL)
        assert command[:2] == ["nsys", "profile"]
        assert option("--capture-range", command) == "cudaProfilerApi"
        assert option("--gpu-metrics-devices", command) == "cuda-visible"
        assert option("--pytorch", command) == "autograd-nvtx"
        assert option("--output", command) == str(tmp_path / "nsys")
        # Its steps are those that the capture begins and ends with.
        assert command[-6:] == [*TRAIN, "--profile=20"]
        assert notes == []

    def test_without_a_gpu_nothing_begins_a_capture(self, monkeypatch, tmp_path):
        monkeypatch.setattr(external, "_on_gpu", lambda: False)
        command, _ = external_command(TOOLS["nsys"], TRAIN, tmp_path / "nsys", ALL)
        assert "capture" not in " ".join(command)
        assert "gpu-metrics" not in " ".join(command)

    def test_unknown_flags_are_left_out_and_told(self, tmp_path):
        known = "--trace= --output= --force-overwrite="
        command, notes = external_command(TOOLS["nsys"], TRAIN, tmp_path / "nsys", known)
        assert "pytorch" not in " ".join(command)
        assert "this nsys has no --pytorch: it was left out" in notes
        # --capture-range-end is no --capture-range.
        assert not external._has_flag("--capture-range-end=x", "--capture-range")

    def test_py_spy_ends_its_flags(self, tmp_path):
        command, _ = external_command(TOOLS["py-spy"], TRAIN, tmp_path / "stacks", None)
        assert command[: command.index("--")] == [
            "py-spy", "record", "--native", "--format", "speedscope", "--rate", "20", "--output",
            f"{tmp_path / 'stacks'}.speedscope.json",
        ]  # fmt: skip
        assert command[-5:] == TRAIN

    def test_a_number_of_steps_of_ones_own_stays(self, tmp_path):
        arguments = [*TRAIN, "--profile", "5"]
        command, _ = external_command(TOOLS["ncu"], arguments, tmp_path / "ncu", None)
        assert command[-7:] == arguments

    def test_where_the_profile_goes(self, tmp_path):
        assert str(folder_of(TRAIN, None)) == "o/profile"
        assert str(folder_of(["train", "--out=p"], None)) == "p/profile"
        assert folder_of(TRAIN, tmp_path) == tmp_path
        with pytest.raises(ConfigError, match="--out: expected it here or in the command"):
            folder_of(["train", "--data", "d"], None)
        with pytest.raises(ConfigError, match="got 'trian'; did you mean 'train'"):
            folder_of(["trian"], None)


class TestRun:
    def test_absent(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("PATH", str(tmp_path))
        out = tmp_path / "profile"
        assert cli.main(["profile", "nsys", "--out", str(out), "--", *TRAIN]) == 0
        shown = capsys.readouterr()
        assert shown.out.startswith("TAL_FAST_NVTX=1 TAL_FAST_CAPTURE=1 nsys profile ")
        assert "note: nothing from nsys: nsys is not installed" in shown.err
        found = read_profile(out)["external"]["nsys"]
        assert found["reason"] == "nsys is not installed, or not on PATH"
        assert found["command"] in shown.out

    def test_nsys(self, tmp_path, tool, monkeypatch):
        monkeypatch.setattr(external, "_on_gpu", lambda: False)
        (tmp_path / "nvtx.txt").write_text(NSYS)
        out = tmp_path / "profile"
        calls = tool(
            "nsys",
            f'if [ "$1" = stats ]; then case "$*" in *nvtx_sum*) cat {tmp_path / "nvtx.txt"};; '
            '*) echo "SKIPPED: no data";; esac; '
            f"else touch {out / 'nsys.nsys-rep'}; echo training; fi",
        )
        said = []
        found = run_external("nsys", TRAIN, out, said.append)
        assert "training" in said
        assert found.reason is None
        assert found.file == "nsys.nsys-rep"
        assert found.tables["nvtx_sum"][0]["Range"] == "tal_fast:tal_fast.forward"
        assert "no cuda_api_sum: SKIPPED: no data" in found.notes
        first = calls.read_text().splitlines()[0]
        assert first.startswith("1 1 profile --trace=cuda,nvtx,osrt --pytorch=autograd-nvtx")
        assert first.endswith("-m tal_fast train --data d --out o --profile=20")
        words = write_page(out).read_text("utf-8")
        assert "tal_fast:tal_fast.forward" in words

    def test_a_flag_that_is_not_permitted_is_dropped(self, tmp_path, tool, monkeypatch):
        monkeypatch.setattr(external, "_on_gpu", lambda: True)
        out = tmp_path / "profile"
        calls = tool(
            "nsys",
            'case "$*" in *gpu-metrics*) echo "ERR_NVGPUCTRPERM: Insufficient privilege"; exit 1;;'
            f" esac; touch {out / 'nsys.nsys-rep'}",
            ALL,
        )
        found = run_external("nsys", TRAIN, out, lambda line: None)
        profiles = [line for line in calls.read_text().splitlines() if " profile " in line]
        assert ["gpu-metrics" in line for line in profiles] == [True, False]
        assert found.notes[0].startswith("--gpu-metrics-devices was left out: GPU metrics need")
        assert "gpu-metrics" not in found.command
        assert found.reason == "nsys.nsys-rep holds nothing of the training"

    def test_ncu_without_the_right_goes_on(self, tmp_path, tool):
        out = tmp_path / "profile"
        tool("ncu", f'echo "==ERROR== ERR_NVGPUCTRPERM - no permission" > {out / "ncu.csv"}')
        found = run_external("ncu", TRAIN, out, lambda line: None)
        assert "NVreg_RestrictProfilingToAdminUsers=0" in found.reason
        assert found.tables == {}

    def test_ncu(self, tmp_path, tool):
        (tmp_path / "made.csv").write_text(NCU)
        out = tmp_path / "profile"
        tool("ncu", f"cp {tmp_path / 'made.csv'} {out / 'ncu.csv'}")
        found = run_external("ncu", TRAIN, out, lambda line: None)
        assert found.tables["kernels"][0]["us"] == 2200.5

    def test_py_spy_joins_a_profile_that_is_there(self, tmp_path, tool, capsys):
        out = made_profiles.write(tmp_path / "profile", made_profiles.training())
        (tmp_path / "stacks.json").write_text(json.dumps(STACKS))
        tool("py-spy", f"cp {tmp_path / 'stacks.json'} {out / 'stacks.speedscope.json'}", ALL)
        assert cli.main(["profile", "py-spy", "--out", str(out), "--", *TRAIN]) == 0
        assert "forward" in capsys.readouterr().out
        profile = read_profile(out)
        assert profile["step"]["wall"]["value"] == 123.4
        rows = profile["external"]["py-spy"]["tables"]["functions"]
        assert rows[0]["function"] == "forward"

    def test_a_profile_that_cannot_be_read_is_told_before_the_training(self, tmp_path, tool):
        ran = tmp_path / "ran"
        tool("py-spy", f"touch {ran}")
        (tmp_path / "profile.json").write_text('{"format": 0}')
        with pytest.raises(DataError, match="expected a profile of format 2, got 0"):
            run_external("py-spy", ["train"], tmp_path, print)
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match="file: cannot be written"):
            run_external("py-spy", ["train"], tmp_path / "file", print)
        assert not ran.exists()

    def test_py_spy_without_ptrace(self, tmp_path, tool):
        tool("py-spy", 'echo "Error: Permission Denied (os error 13)"; exit 1', ALL)
        found = run_external("py-spy", TRAIN, tmp_path / "profile", lambda line: None)
        assert "kernel.yama.ptrace_scope=0" in found.reason

    def test_a_training_that_fails_is_an_error(self, tmp_path, tool):
        tool("py-spy", 'echo "error: no data at d"; exit 3', ALL)
        with pytest.raises(TrainingError, match="py-spy ended with status 3: error: no data at d"):
            run_external("py-spy", TRAIN, tmp_path / "profile", lambda line: None)

    def test_nothing_written(self, tmp_path, tool):
        tool("py-spy", "true", ALL)
        found = run_external("py-spy", TRAIN, tmp_path / "profile", lambda line: None)
        assert found.reason == "py-spy wrote no stacks.speedscope.json"


def test_recorded_steps_begin_and_end_a_capture(monkeypatch, tmp_path):
    import torch

    from tal_fast import ranges
    from tal_fast.profiling.recording import Setting, start_recording

    calls = []
    monkeypatch.setenv(recording.CAPTURE, "1")
    monkeypatch.setattr(recording, "_begin_capture", lambda: calls.append("begin"))
    monkeypatch.setattr(recording, "_end_capture", lambda: calls.append("end"))
    setting = Setting("a model", torch.device("cpu"), "float32", 2)
    found = start_recording(setting, steps=2, warm_up=1)
    for number in range(5):
        calls.append(number)
        with ranges.range("tal_fast.step"), ranges.range("tal_fast.forward"):
            pass
    found.stop()
    assert calls == [0, 1, "begin", 2, "end", 3, 4]
    assert found.ops.missing == "another profiler looked at these steps"
    assert found.ops.rows() == ([], [], [])
