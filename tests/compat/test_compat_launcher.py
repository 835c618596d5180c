# SPDX-License-Identifier: Apache-2.0
"""``python -m tal_fast.compat``: runs scripts as Python does, and says what it did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import made_originals
import pytest
from processes import HANG

import tal_fast

NMS = made_originals.TEMPORAL_NMS.format(comparison="<=")
ROOT = Path(tal_fast.__file__).parents[1]


def write(path: Path, text: str) -> Path:
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def launch(*command, cwd: Path, code: int = 0, **environment: str):
    done = subprocess.run(
        [sys.executable, "-m", "tal_fast.compat", *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        timeout=HANG,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    assert done.returncode == code, done.stderr
    return done


SHOW = """
import json, sys
from helper import value
facts = {
    "argv": sys.argv,
    "path": sys.path[0],
    "name": __name__,
    "file": __file__,
    "is_main": sys.modules["__main__"].__dict__ is globals(),
    "value": value,
    "doc": __doc__,
    "torch": "torch" in sys.modules,
}
print(json.dumps(facts))
sys.exit(7)
"""


def test_a_script_runs_as_python_runs_it(tmp_path):
    (tmp_path / "scripts").mkdir()
    write(tmp_path / "scripts/helper.py", "value = 5\n")
    script = write(tmp_path / "scripts/show.py", f'"""Words."""{SHOW}')
    done = launch("scripts/show.py", "--flag", "-x", "1", cwd=tmp_path, code=7)
    facts = json.loads(done.stdout)
    plain = subprocess.run(
        [sys.executable, "scripts/show.py", "--flag", "-x", "1"],
        capture_output=True, text=True, check=False, cwd=tmp_path, timeout=HANG,
    )  # fmt: skip
    assert facts == json.loads(plain.stdout)
    assert facts["file"] == str(script)
    assert not facts["torch"]
    assert done.stderr == ""  # nothing to report


def test_a_module_runs_as_python_runs_it(tmp_path):
    write(tmp_path / "helper.py", "value = 5\n")
    write(tmp_path / "show.py", SHOW)
    done = launch("-m", "show", "a", cwd=tmp_path, code=7)
    assert json.loads(done.stdout)["argv"] == [str(tmp_path / "show.py"), "a"]


MAIN = f"""
{NMS}
import numpy as np
import multiprocessing

def work(i):
    import worker_made
    return hasattr(worker_made.temporal_nms, "__wrapped__")

if __name__ == "__main__":
    assert hasattr(temporal_nms, "__wrapped__")
    rows = np.array([[0.0, 10.0, 0.9], [1.0, 10.0, 0.8], [20.0, 30.0, 0.7]])
    print(temporal_nms(rows, 0.5)[:, 2].tolist())
    for method in ("spawn", "fork"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            print(method, pool.map(work, [0]))
"""


def test_functions_of_the_script_and_of_its_workers(tmp_path):
    write(tmp_path / "worker_made.py", NMS)
    write(tmp_path / "main.py", MAIN)
    done = launch("--report", tmp_path / "report.json", "main.py", cwd=tmp_path)
    assert done.stdout.splitlines() == ["[0.9, 0.7]", "spawn [True]", "fork [True]"]
    assert done.stderr.count("tal_fast.compat:") == 1  # workers say nothing
    assert "__main__.temporal_nms" in done.stderr
    entries = json.loads((tmp_path / "report.json").read_text())["entries"]
    assert [(e["kind"], e["name"], e["calls"]) for e in entries] == [
        ("replaced", "__main__.temporal_nms", 1),
        ("in line", "__main__.multiprocessing", 0),  # its processes and managers, not its pools
    ]


def test_dry_run_shows_and_does_nothing(tmp_path):
    write(tmp_path / "worker_made.py", NMS)
    write(
        tmp_path / "main.py",
        """
        import sys
        sys.path.insert(0, "elsewhere")
        import worker_made
        import missing_made
        def temporal_nms(segments, iou): ...
        if __name__ == "__main__":
            open("touched", "w")
        """,
    )
    done = launch("--dry-run", "main.py", cwd=tmp_path)
    assert "replaced  worker_made.temporal_nms" in done.stdout
    assert "expected parameters (segments, thresh)" in done.stdout
    assert "main.py:5: not run" in done.stderr
    assert not (tmp_path / "touched").exists()
    # Without a main block, what is no import or definition stays out.
    write(tmp_path / "flat.py", "import worker_made\nopen('touched', 'w')\n")
    done = launch("--dry-run", "flat.py", cwd=tmp_path)
    assert "worker_made.temporal_nms" in done.stdout
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([], "expected a script, got none"),
        (["nowhere.py"], "expected a script, got 'nowhere.py': nothing there"),
        (["."], "a folder without __main__.py"),
        (["--skip", "nothing", "main.py"], "expected skip to name one of"),
        (["--nms", "fast", "main.py"], "expected nms to be one of"),
        (["--device", "gpu", "main.py"], "expected device to be one of"),
        (["--dry-run", "-m", "main"], "expected a script with --dry-run"),
        (["beside/main.py"], "would shadow each other"),
    ],
)
def test_wrong_command_lines(tmp_path, command, message):
    write(tmp_path / "main.py", "")
    (tmp_path / "beside/tal_fast").mkdir(parents=True)
    write(tmp_path / "beside/main.py", "")
    done = launch(*command, cwd=tmp_path, code=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_script_that_fails_fails_as_ever(tmp_path):
    write(tmp_path / "main.py", "def f():\n    return 1 / 0\nif __name__ == '__main__':\n    f()\n")
    done = launch("main.py", cwd=tmp_path, code=1)
    assert f'File "{tmp_path}/main.py", line 2, in f' in done.stderr
    assert "ZeroDivisionError" in done.stderr


CUDA = """
import torch
from torch import nn

def main():
    model = nn.Linear(2, 2).cuda()
    model = nn.DataParallel(model, device_ids=["cuda:0"])
    x = torch.ones(3, 2).to("cuda", non_blocking=True)
    y = torch.zeros(3, 2, device=torch.device("cuda:0"))
    torch.cuda.synchronize()
    assert nn.Linear(2, 2).to(0).weight.to(1).to(torch.device("cuda", 0)).device.type == "cpu"
    assert torch.zeros(1).to(device="cuda:0", dtype=torch.int64).pin_memory().dtype == torch.int64
    assert torch.ones(1).to(torch.zeros(1)).to(torch.float64).dtype == torch.float64
    assert 3 % torch.cuda.device_count() == 0
    torch.save({"model": model.state_dict()}, "model.pth")
    state = torch.load("model.pth", map_location=lambda storage, place: storage.cuda(0))
    model.load_state_dict(state["model"])
    print((model(x) + y).device, list(state["model"]), type(model.module).__name__)
    torch.distributed.init_process_group(
        "nccl", init_method="file://" + __file__ + ".store", rank=0, world_size=1
    )
    print(torch.distributed.get_backend())
    torch.distributed.destroy_process_group()

if __name__ == "__main__":
    main()
"""


def test_a_script_for_a_gpu(tmp_path):
    write(tmp_path / "main.py", CUDA)
    done = launch("--device", "cpu", "main.py", cwd=tmp_path)
    assert done.stdout.splitlines() == ["cpu ['module.weight', 'module.bias'] Linear", "gloo"]
    # Without, it says which call needs one.
    done = launch("main.py", cwd=tmp_path, code=1, CUDA_VISIBLE_DEVICES="")
    assert "main.py:6: `model = nn.Linear(2, 2).cuda()` needs a GPU" in done.stderr
    assert "--device cpu" in done.stderr
