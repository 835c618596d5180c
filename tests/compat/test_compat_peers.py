# SPDX-License-Identifier: Apache-2.0
"""The real codebases, stock and ours, where ``TAL_FAST_PEERS`` has them: equal figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from processes import HANG

import tal_fast

ROOT = Path(tal_fast.__file__).parents[1]
WORKLOADS = ROOT / "benchmarks" / "compat_workloads.py"
STOCK = "compute_average_precision_detection,compute_topkx_recall_detection,pools"


def checkout(name: str) -> Path:
    folder = Path(os.environ.get("TAL_FAST_PEERS", "")) / name
    if "TAL_FAST_PEERS" not in os.environ or not folder.is_dir():
        pytest.skip(f"{name} is absent: set TAL_FAST_PEERS to the folder that holds it")
    return folder


def needs(*packages: str) -> None:
    for package in packages:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def launch(*command: str | Path, options: tuple[str, ...] = (), cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tal_fast.compat", *options, *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        timeout=HANG,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def workload(name: str, peer: Path, folder: Path, number: int, *options: str):
    command = (WORKLOADS, name, "--peer", peer, "--folder", folder, "--number", str(number))
    return json.loads(launch(*command, options=options, cwd=folder).splitlines()[-1])


@pytest.mark.parametrize("name", ["actionformer_release", "TriDet", "TemporalMaxer"])
def test_evaluation(name, tmp_path):
    needs("pandas", "joblib")
    peer = checkout(name)
    ours = workload("evaluation", peer, tmp_path, 3, "--report", str(tmp_path / "report.json"))
    stock = workload("evaluation", peer, tmp_path, 3, "--skip", STOCK)
    assert len(ours["figures"]) > 5
    assert ours["figures"] == pytest.approx(stock["figures"], rel=0, abs=1e-9)
    assert ours["classes"] == [pytest.approx(row, rel=0, abs=1e-9) for row in stock["classes"]]
    entries = json.loads((tmp_path / "report.json").read_text())["entries"]
    called = {e["name"].rpartition(".")[2]: e["calls"] for e in entries if e["kind"] == "replaced"}
    assert called["compute_average_precision_detection"] > 0
    assert not [e for e in entries if e["kind"] == "fell back" and "is empty" not in e["detail"]]


@pytest.mark.parametrize("name", ["TadTR", "OpenTAD"])
def test_training_steps_with_attention(name, tmp_path):
    peer = checkout(name)
    if name == "TadTR":
        needs("easydict", "scipy")
    found = workload("attention", peer, tmp_path, 1)
    stock, ours = found["first_losses"]
    assert ours == pytest.approx(stock, rel=1e-5)


@pytest.mark.parametrize("shapes", ["[(6, 4), (3, 2)]", "[(1, 24), (1, 6)]"])
def test_deformable_detrs_own_test(shapes, tmp_path):
    peer = checkout("Deformable-DETR")
    source = (peer / "models/ops/test.py").read_text()
    # Fewer widths, for their gradients are taken number by number; and rows instead of images.
    source = source.replace("[30, 32, 64, 71, 1025, 2048, 3096]", "[4]")
    (tmp_path / "test.py").write_text(source.replace("[(6, 4), (3, 2)]", shapes))
    (tmp_path / "functions").symlink_to(peer / "models/ops/functions")
    shown = launch("test.py", options=("--device", "cpu", "--quiet"), cwd=tmp_path)
    assert shown.count("* True check_") == 3
