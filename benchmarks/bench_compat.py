# SPDX-License-Identifier: Apache-2.0
"""Other codebases under ``tal_fast.compat``, stock and ours: CPU seconds, and whether they agree.

    TAL_FAST_PEERS=… python benchmarks/bench_compat.py [ROW …] [--videos 212] [--out FILE]

Rows: ``evaluation`` (the evaluation stage of ActionFormer, TriDet and TemporalMaxer on made
detections of THUMOS14's shape, 200 per video), ``script`` (their whole ``eval.py`` on made
features, with weights that their own ``train.py`` has found in 300 steps; the checkouts need their
extension ``nms_1d_cpu``, built in ``libs/utils``, and two of them need tensorboard),
``attention`` (a training step of TadTR, a layer and a training step of OpenTAD), ``nms`` (one
soft-NMS of theirs and ours) and ``start`` (what the launcher adds to ``import torch``). Needs
pandas and joblib.

Stock is the same process with nothing replaced: the mends and ``--device cpu`` stay, without which
most do not run here; and as joblib's workers have no mends, stock's ``np.float`` is ``float`` in a
copy. Stock and ours take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import machine
from peers import PeerMissingError, checkout

HERE = Path(__file__).parent
WORKLOADS = HERE / "compat_workloads.py"
POINT_DETECTORS = ("actionformer_release", "TriDet", "TemporalMaxer")
EVALUATORS = "compute_average_precision_detection,compute_topkx_recall_detection,pools"
STOCK = f"{EVALUATORS},batched_nms,nms_1d_cpu,bernoulli_,use_deterministic_algorithms"


def launched(
    *command: str | Path,
    options: tuple[str, ...] = (),
    cwd: Path | None = None,
    native: Path | str = "",
) -> tuple[str, float]:
    """Returns the output of a script under the launcher, and its CPU seconds with its children."""
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-m", "tal_fast.compat", *options, *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{HERE.parent}:{native}:{os.environ.get('PYTHONPATH', '')}",
        },
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stderr}")
    after = os.times()
    used = after.children_user - before.children_user
    return done.stdout, used + after.children_system - before.children_system


def workload(
    name: str, peer: Path, folder: Path, number: int, options: tuple[str, ...] = ()
) -> dict[str, Any]:
    text, _ = launched(
        *(WORKLOADS, name, "--peer", peer, "--folder", folder, "--number", str(number)),
        options=options,
    )
    found: dict[str, Any] = json.loads(text.splitlines()[-1])
    return found


def evaluation(given: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for name in given.peers:
        peer = checkout(name)
        runs: dict[str, list[Any]] = {"stock": [], "ours": []}
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(given.repeats):
                for which, options in (("stock", ("--skip", EVALUATORS)), ("ours", ())):
                    runs[which].append(
                        workload("evaluation", peer, Path(folder), given.videos, options)
                    )
        off = max(
            abs(a - b)
            for a, b in zip(runs["stock"][0]["figures"], runs["ours"][0]["figures"], strict=True)
        )
        require(off <= 1e-9, f"{name}: figures of the evaluation differ by {off:.1e}")
        seconds = {key: [run["seconds"] for run in found] for key, found in runs.items()}
        rows.append(row(f"{name}: evaluation, {given.videos} videos", seconds, f"within {off:.0e}"))
    return rows


def script(given: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for name in given.peers:
        peer = checkout(name)
        built = list((peer / "libs/utils").glob("nms_1d_cpu*.so"))
        if not built:
            print(f"{name}: nms_1d_cpu is not built, eval.py is left out", file=sys.stderr)
            continue
        seconds: dict[str, list[float]] = {"stock": [], "ours": []}
        parts: dict[str, dict[str, float]] = {}
        shown: dict[str, list[str]] = {}
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            made = workload("prepare", peer, folder, given.videos)
            train(peer, folder, made["training"])
            stock = with_float(peer, folder / name)
            native = folder / "native"  # where both find the extension
            native.mkdir()
            shutil.copy(built[0], native)
            for _ in range(given.repeats):
                for which, root, options in (
                    ("stock", stock, ("--skip", STOCK)),
                    ("ours", peer, ()),
                ):
                    text, used = launched(
                        *(WORKLOADS, "evaluate_script", "--peer", root),
                        *("--folder", folder, "--number", "0"),
                        options=("--device", "cpu", *options),
                        cwd=root,
                        native=native,
                    )
                    found = json.loads(text.splitlines()[-1])
                    seconds[which].append(used)
                    rest = used - sum(found["seconds"].values())
                    parts[which] = {**found["seconds"], "workers and rest": rest}
                    shown[which] = re.findall(
                        r"(?:mAP|Recall\S*)\s*[:=]\s*([\d.]+)", found["shown"]
                    )
        same = bool(shown["ours"]) and shown["stock"] == shown["ours"]
        require(same, f"{name}: eval.py shows other figures: {shown}")
        label = f"{name}: eval.py, {given.videos} videos"
        rows.append(row(label, seconds, f"the same, average mAP {shown['ours'][-1]}"))
        rows[-1]["parts"] = parts
        for which, found in parts.items():
            words = ", ".join(f"{part} {used:.1f}" for part, used in found.items())
            print(f"  {which}: {words}", file=sys.stderr, flush=True)
    return rows


def train(peer: Path, folder: Path, config: str) -> None:
    """Trains with the peer's own ``train.py`` and takes the last weights."""
    output = ("--output", "made")
    if peer.name == "TemporalMaxer":
        output = ("--save_ckpt_dir", str(folder / "training_made"))
    launched(peer / "train.py", config, *output, options=("--device", "cpu"), cwd=peer)
    workload("last_weights", peer, folder, 0)


def with_float(peer: Path, copy: Path) -> Path:
    """Copies a peer and writes ``float`` where its evaluator has ``np.float``."""
    shutil.copytree(peer, copy, ignore=shutil.ignore_patterns(".git", "data", "ckpt"))
    metrics = copy / "libs/utils/metrics.py"
    metrics.write_text(re.sub(r"\bnp\.float\b", "float", metrics.read_text()))
    return copy


def attention(given: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for name, what, work in (
        ("TadTR", "training step", "attention"),
        ("OpenTAD", "attention layer, 4 levels", "attention"),
        ("OpenTAD", "training step of its TadTR", "opentad_step"),
    ):
        if work == "opentad_step" and find_spec("mmengine") is None:
            print("OpenTAD: its training step needs mmengine and mmcv", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = workload(work, checkout(name), Path(folder), max(6, given.repeats))
        stock, ours = found["first_losses"]
        off = abs(stock - ours) / abs(stock)
        require(off <= 1e-5, f"{name}: losses {stock} and {ours}")
        rows.append(row(f"{name}: {what}", found["seconds"], f"losses within {off:.0e}"))
    return rows


def nms(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Soft-NMS of one problem: theirs in C++ and ours in the same order, bit for bit."""
    import torch
    from peers import nms_1d

    from tal_fast.ops.soft_nms_literal import soft_nms_literal

    torch.set_num_threads(1)
    native, _ = nms_1d.actionformer()
    rows = []
    for count in (100, 2000):
        generator = torch.Generator().manual_seed(count)
        begin = torch.rand(count, generator=generator) * 300
        length = torch.exp(torch.randn(count, generator=generator) * 0.9 + 1.2)
        segments = torch.stack([begin, begin + length], 1)
        scores = torch.rand(count, generator=generator)
        found = torch.empty(count, 3)

        def stock(
            segments: Any = segments, scores: Any = scores, found: Any = found
        ) -> tuple[Any, Any]:
            kept = native.softnms(segments, scores, found, 0.1, 0.5, 0.001, 2)
            return kept, found[: len(kept)]

        def ours(segments: Any = segments, scores: Any = scores) -> tuple[Any, Any]:
            return soft_nms_literal(segments, scores)

        same = all(torch.equal(a, b) for a, b in zip(stock(), ours(), strict=True))
        require(same, f"soft-NMS of {count} segments: other bits")
        calls = 20_000 // count
        seconds: dict[str, list[float]] = {"stock": [], "ours": []}
        for _ in range(9):
            for which, call in (("stock", stock), ("ours", ours)):
                begin_at = time.process_time()
                for _ in range(calls):
                    call()
                seconds[which].append((time.process_time() - begin_at) / calls * 1e3)
        rows.append(row(f"soft-NMS of {count} segments, in ms", seconds, "the same bits"))
    return rows


def start(given: argparse.Namespace) -> list[dict[str, Any]]:
    seconds: dict[str, list[float]] = {"stock": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "script.py"
        file.write_text("import torch\n")
        for _ in range(max(5, given.repeats)):
            for which, command in (
                ("stock", [sys.executable, str(file)]),
                ("ours", [sys.executable, "-m", "tal_fast.compat", str(file)]),
            ):
                before = os.times()
                environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
                subprocess.run(command, check=True, env=environment)
                after = os.times()
                used = after.children_user + after.children_system
                seconds[which].append(used - before.children_user - before.children_system)
    return [row("start with torch", seconds, "")]


def require(agrees: bool, otherwise: str) -> None:
    if not agrees:
        raise SystemExit(f"bench_compat: {otherwise}")


def row(name: str, seconds: dict[str, list[float]], agree: str) -> dict[str, Any]:
    # The least: what else the machine does only adds to it.
    stock, ours = (min(seconds[which]) for which in ("stock", "ours"))
    found = {"row": name, "stock": stock, "ours": ours, "ratio": stock / ours, "agree": agree}
    print(f"| {name} | {stock:.2f} | {ours:.2f} | {stock / ours:.1f} | {agree} |", flush=True)
    return {**found, "seconds": seconds}


ROWS = {
    "evaluation": evaluation,
    "script": script,
    "attention": attention,
    "nms": nms,
    "start": start,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; all")
    parser.add_argument("--videos", type=int, default=212)
    parser.add_argument("--peers", nargs="+", default=POINT_DETECTORS, choices=POINT_DETECTORS)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path, help="the rows as JSON")
    given = parser.parse_args()
    if unknown := set(given.rows) - set(ROWS):
        parser.error(f"expected rows among {', '.join(ROWS)}, got {', '.join(sorted(unknown))}")
    print("| | stock, CPU s | ours, CPU s | ratio | figures |\n|---|---|---|---|---|", flush=True)
    found = []
    for name in given.rows or ROWS:
        try:
            found += ROWS[name](given)
        except PeerMissingError as missing:
            print(f"{name}: {missing}", file=sys.stderr)
    if given.out is not None:
        given.out.write_text(json.dumps({"machine": machine.describe(), "rows": found}, indent=1))


if __name__ == "__main__":
    main()
