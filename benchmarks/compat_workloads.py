# SPDX-License-Identifier: Apache-2.0
"""What bench_compat.py runs, stock and ours, in a process of its own under ``tal_fast.compat``.

Each prints one line of JSON. Files of a peer come unchanged from ``TAL_FAST_PEERS``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = 20
INSTANCES = 15  # of a video, as THUMOS14 has them
DETECTIONS = 200
CHANNELS = 32  # of the made features; theirs have 2048
STRIDE, FRAMES, FPS = 4, 16, 25.0
WIDTH = 64  # of the made models; theirs have 512
SIGNAL = 0.9  # the most that an instance shifts its rows, in standard deviations of the noise
TRAINING_VIDEOS = 100


def database(videos: int, seed: int = 0, subset: str = "Test") -> dict[str, Any]:
    """Annotations in the form that the three read."""
    rng = np.random.default_rng(seed)
    found = {}
    for i in range(videos):
        duration = float(rng.uniform(60, 300))
        label = rng.choice(CLASSES, 2)
        start = np.sort(rng.uniform(0, duration - 12, INSTANCES))
        length = np.minimum(np.exp(rng.normal(1.2, 0.7, INSTANCES)), 11.0)
        found[f"video_{subset.lower()}_{i:07d}"] = {
            "subset": subset,
            "duration": duration,
            "fps": FPS,
            "annotations": [
                {
                    "segment": [float(s), float(s + n)],
                    "label": f"class{c}",
                    "label_id": int(c),
                }
                for s, n, c in zip(start, length, rng.choice(label, INSTANCES), strict=True)
            ],
        }
    # Every class has an instance, and its number.
    for c in range(CLASSES):
        first = found[f"video_{subset.lower()}_{c % videos:07d}"]["annotations"]
        first.append({"segment": [1.0, 4.0 + c / 10], "label": f"class{c}", "label_id": c})
    return found


def detections(truth: dict[str, Any], seed: int = 1) -> dict[str, Any]:
    """Detections around the instances and elsewhere, as ``evaluate`` is given them."""
    rng = np.random.default_rng(seed)
    columns: dict[str, list[Any]] = {"t-start": [], "t-end": [], "label": [], "score": []}
    names = []
    for name, video in truth.items():
        owner = rng.integers(0, len(video["annotations"]), DETECTIONS)
        for i in owner.tolist():
            annotation = video["annotations"][i]
            start, end = annotation["segment"]
            off = rng.normal(0, 0.25 * (end - start), 2)
            right = rng.random() < 0.7
            columns["t-start"].append(start + off[0])
            columns["t-end"].append(max(end + off[1], start + off[0] + 0.1))
            columns["label"].append(annotation["label_id"] if right else rng.integers(CLASSES))
            columns["score"].append(rng.random() * (1.0 if right else 0.6))
        names += [name] * DETECTIONS
    arrays = {key: np.array(values, dtype=np.float64) for key, values in columns.items()}
    arrays["label"] = arrays["label"].astype(np.int64)
    arrays["score"] = arrays["score"].astype(np.float32)
    return {"video-id": names, **arrays}


def cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def evaluation(peer: Path, folder: Path, videos: int) -> dict[str, Any]:
    """The evaluation stage of ActionFormer, TriDet or TemporalMaxer on made detections."""
    sys.path.insert(0, str(peer))
    metrics = importlib.import_module("libs.utils.metrics")
    truth = database(videos)
    file = folder / "evaluation.json"
    file.write_text(json.dumps({"database": truth}))
    found = detections(truth)
    evaluator = metrics.ANETdetection(
        str(file), "test", tiou_thresholds=np.linspace(0.3, 0.7, 5), num_workers=1
    )
    begin = cpu_seconds()
    with contextlib.redirect_stdout(io.StringIO()):
        result = evaluator.evaluate(found, verbose=False)
    seconds = cpu_seconds() - begin
    figures = np.concatenate([np.ravel(np.asarray(part)) for part in result])
    return {"seconds": seconds, "figures": figures.tolist(), "classes": evaluator.ap.tolist()}


def features(video: dict[str, Any], rng: np.random.Generator) -> Any:
    """Noise in which rows of an instance are shifted towards its class: float32 [T, C].

    How far is drawn per instance, so that some are found with ease and others hardly.
    """
    rows = int(video["duration"] * FPS - FRAMES) // STRIDE + 1
    found = rng.normal(size=(rows, CHANNELS))
    classes = np.random.default_rng(7).normal(size=(CLASSES, CHANNELS))
    center = (np.arange(rows) * STRIDE + FRAMES / 2) / FPS
    for annotation in video["annotations"]:
        start, end = annotation["segment"]
        within = (center >= start) & (center < end)
        found[within] += rng.uniform(0.1, SIGNAL) * classes[annotation["label_id"]]
    return found.astype(np.float32)


def prepare(peer: Path, folder: Path, videos: int) -> dict[str, Any]:
    """Features, annotations, and configurations for ``train.py`` and ``eval.py``.

    Training has videos of its own, and crops of a quarter of the length with a short schedule.
    """
    import yaml

    files = [f for f in (peer / "configs").glob("*.yaml") if f.name.endswith("_thumos_i3d.yaml")]
    config_file = min(files or [peer / "configs/thumos_i3d.yaml"], key=lambda file: len(file.name))
    config = yaml.safe_load(config_file.read_text())
    tested, trained = database(videos), database(TRAINING_VIDEOS, 1, "Validation")
    truth = {**tested, **trained}
    (folder / "features").mkdir(exist_ok=True)
    rng = np.random.default_rng(2)
    for name, video in truth.items():
        np.save(folder / "features" / f"{name}.npy", features(video, rng))
    (folder / "annotations.json").write_text(json.dumps({"database": truth}))
    # TemporalMaxer's train.py evaluates every epoch: on as few videos as have every class.
    first = {name: tested[name] for name in [*tested][:CLASSES]}
    (folder / "training.json").write_text(json.dumps({"database": {**first, **trained}}))
    config["dataset"].update(
        json_file=str(folder / "annotations.json"),
        feat_folder=str(folder / "features"),
        input_dim=CHANNELS,
    )
    config["model"].update(embd_dim=WIDTH, fpn_dim=WIDTH, head_dim=WIDTH)
    if "sgp_mlp_dim" in config["model"]:
        config["model"]["sgp_mlp_dim"] = WIDTH * 3 // 2
    config["test_cfg"]["max_seg_num"] = DETECTIONS
    config["loader"]["num_workers"] = 1  # they keep their workers, so 0 is none
    config["output_folder"] = str(folder)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    config["dataset"].update(
        json_file=str(folder / "training.json"), max_seq_len=config["dataset"]["max_seq_len"] // 4
    )
    config["loader"]["batch_size"] = 4
    config["opt"].update(learning_rate=1e-3, warmup_epochs=2, epochs=10)
    (folder / "training.yaml").write_text(yaml.safe_dump(config))
    return {name: str(folder / f"{name}.yaml") for name in ("config", "training")}


def last_weights(peer: Path, folder: Path, number: int) -> dict[str, Any]:
    """Takes the trained weights, not their average, from the last checkpoint of ``train.py``.

    ``eval.py`` reads averages. After a few hundred steps a third of theirs is still the start.
    """
    import torch

    found = torch.load(
        max((folder / "training_made").glob("*.pth.tar")), map_location="cpu", weights_only=False
    )
    (folder / "checkpoint").mkdir(exist_ok=True)
    kept = {"state_dict_ema": found["state_dict"], "epoch": found["epoch"]}
    torch.save(kept, folder / "checkpoint/epoch_001.pth.tar")
    return {"checkpoint": str(folder / "checkpoint"), "epoch": found["epoch"]}


def evaluate_script(peer: Path, folder: Path, number: int) -> dict[str, Any]:
    """Runs ``eval.py`` with the trained weights; CPU seconds of its parts in this process.

    Returns:
        Seconds until the first video, in the model without its NMS, in the NMS and in the
        evaluation (without its workers, which the caller sees), and what the script printed.
    """
    import torch

    sys.path.insert(0, str(peer))
    meta_archs = importlib.import_module("libs.modeling.meta_archs")
    metrics = importlib.import_module("libs.utils.metrics")
    seconds = {"start": 0.0, "model": 0.0, "nms": 0.0, "evaluation": 0.0}

    def timed(owner: Any, name: str, part: str) -> None:
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            begin = time.process_time()
            seconds["start"] = seconds["start"] or begin
            try:
                return original(*args, **kwargs)
            finally:
                seconds[part] += time.process_time() - begin

        setattr(owner, name, call)

    timed(meta_archs, "batched_nms", "nms")
    timed(metrics.ANETdetection, "evaluate", "evaluation")
    timed(torch.nn.DataParallel, "forward", "model")
    sys.argv = ["eval.py", str(folder / "config.yaml"), str(folder / "checkpoint")]
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        runpy.run_path(str(peer / "eval.py"), run_name="__main__")
    seconds["model"] -= seconds["nms"]
    return {"seconds": seconds, "shown": shown.getvalue()}


def attention(peer: Path, folder: Path, steps: int) -> dict[str, Any]:
    """Training steps with the peer's core and with ours in its place, in turn."""
    import torch

    from tal_fast import compat

    torch.manual_seed(0)
    if peer.name == "TadTR":
        sys.path.insert(0, str(Path(__file__).parent))
        from peers.tadtr_training import OfficialTadTR

        official = OfficialTadTR(2048, 256, 4, 4, 1024)
        module = sys.modules["models.ops.temporal_deform_attn.temporal_deform_attn"]
        name = "deform_attn_core_pytorch"
        features = torch.randn(16, 2048, 128)
        mask = torch.zeros(16, 128, dtype=torch.bool)
        labels = [torch.tensor([1, 2])] * 16
        segments = [torch.tensor([[0.2, 0.1], [0.6, 0.2]])] * 16

        def step() -> float:
            loss = official.loss(official.forward(features, mask), labels, segments)
            loss.backward()
            official.update()
            return float(loss.detach())

        parameters = official.model
    else:
        path = peer / "opentad/models/transformer/layers/deformable.py"
        spec = importlib.util.spec_from_file_location("deformable", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["deformable"] = module
        spec.loader.exec_module(module)
        compat.installation.current().examiner.examine(module)
        name = "multi_scale_deformable_attn_pytorch"
        layer = module.MultiScaleDeformableAttention(256, 8, 4, 4, 0.0, batch_first=True)
        lengths = torch.tensor([192, 96, 48, 24])
        starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)[:-1]])
        x = torch.randn(4, 360, 256)
        reference = torch.rand(4, 360, 4)

        def step() -> float:
            out = layer(
                x, value=x, reference_points=reference, spatial_shapes=lengths,
                level_start_index=starts,
            )  # fmt: skip
            loss = out.square().mean()
            loss.backward()
            layer.zero_grad()
            return float(loss.detach())

        parameters = layer

    def switch(which: str) -> None:
        if peer.name != "TadTR":  # without dropout, and not in sys.modules
            setattr(module, name, cores[which])
        elif which == "ours":
            compat.install()
        else:
            compat.uninstall()

    ours = getattr(module, name)
    cores = {"ours": ours, "stock": ours.__wrapped__}
    seconds: dict[str, list[float]] = {"stock": [], "ours": []}
    start = {key: value.clone() for key, value in parameters.state_dict().items()}
    losses: dict[str, list[float]] = {"stock": [], "ours": []}
    for number in range(steps + 1):
        for which in cores:
            switch(which)
            if number == 0:  # both begin at the same weights
                parameters.load_state_dict(start)
            torch.manual_seed(number)  # of dropout
            begin = time.process_time()
            losses[which].append(step())
            if number:
                seconds[which].append(time.process_time() - begin)
    return {"seconds": seconds, "first_losses": [losses[which][0] for which in ("stock", "ours")]}


def opentad_step(peer: Path, folder: Path, steps: int) -> dict[str, Any]:
    """Training steps of OpenTAD's TadTR (its THUMOS14 configuration, 8 windows), in turn."""
    import torch

    from tal_fast import compat

    sys.path.insert(0, str(peer))
    config = importlib.import_module("mmengine.config").Config
    models = importlib.import_module("opentad.models")
    torch.distributed.init_process_group(  # its losses are averaged over the processes
        "gloo", init_method=f"file://{folder}/store", rank=0, world_size=1
    )
    torch.manual_seed(0)
    model = models.build_detector(config.fromfile(peer / "configs/tadtr/thumos_i3d.py").model)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    batch = {
        "inputs": torch.randn(8, 2048, 256),
        "masks": torch.ones(8, 256, dtype=torch.bool),
        "metas": [{}] * 8,
        "gt_segments": [torch.tensor([[40.0, 60.0], [150.0, 190.0]])] * 8,
        "gt_labels": [torch.tensor([1, 2])] * 8,
    }
    start = {key: value.clone() for key, value in model.state_dict().items()}
    seconds: dict[str, list[float]] = {"stock": [], "ours": []}
    losses: dict[str, list[float]] = {"stock": [], "ours": []}
    # Without its extensions stock does not import; they stay ours, as provided modules do.
    for number in range(steps + 1):
        for which in seconds:
            if which == "ours":
                compat.install()
            else:
                compat.uninstall()
            if number == 0:  # both begin at the same weights
                model.load_state_dict(start)
            torch.manual_seed(number)  # of dropout
            begin = time.process_time()
            loss = model(**batch, return_loss=True)["cost"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[which].append(float(loss.detach()))
            if number:
                seconds[which].append(time.process_time() - begin)
    torch.distributed.destroy_process_group()
    return {"seconds": seconds, "first_losses": [losses[which][0] for which in seconds]}


WORKLOADS = {
    "evaluation": evaluation,
    "prepare": prepare,
    "last_weights": last_weights,
    "evaluate_script": evaluate_script,
    "attention": attention,
    "opentad_step": opentad_step,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", choices=list(WORKLOADS))
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--number", type=int, required=True)
    given = parser.parse_args()
    print(json.dumps(WORKLOADS[given.workload](given.peer, given.folder, given.number)))


if __name__ == "__main__":
    main()
