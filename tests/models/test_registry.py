# SPDX-License-Identifier: Apache-2.0
"""Models by name, and classes of one's own that are not whole."""

from __future__ import annotations

import importlib.metadata
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tal_fast.data import open_dataset
from tal_fast.data.synthetic import make_synthetic
from tal_fast.errors import ConfigError, TrainingError
from tal_fast.models import TadTR, available, code_of, detector_of, recipe, registry
from tal_fast.study import StudySpec, run_study
from tal_fast.training import load_config, train
from tal_fast.training.inference import detect

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_model.py"
HEAD = "from tal_fast.models import Candidates, Detector\nimport torch\n"


def own(tmp_path, body, name="Mine"):
    path = tmp_path / "own.py"
    path.write_text(HEAD + body)
    return f"{path}:{name}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "data"
    make_synthetic(folder, size="demo", train_videos=20, test_videos=6, channels=8)
    return folder


def test_presets_are_found_by_name():
    assert recipe("tadtr-small").detector is detector_of("tadtr") is TadTR
    assert len(set(available())) == len(available())
    with pytest.raises(ConfigError, match="unknown model 'actionfromer'; did you mean 'actionf"):
        recipe("actionfromer")


def test_votes_are_cast_where_the_official_codes_cast_them():
    # They ignore voting where each class is suppressed by itself, whatever their settings say.
    found = {}
    for name in available():
        post = load_config(preset=name).detector.postprocess
        if post.nms_classes == "all":
            found[name] = (post.voting, post.voting_weight)
        else:
            assert post.voting == 0.0, name
    assert found == {
        "actionformer-anet-tsp": (0.9, "score_iou"),
        "actionformer-anet-i3d": (0.9, "score_iou"),
        "tridet-anet-tsp": (0.95, "score"),
    }


@pytest.mark.parametrize(
    ("body", "name", "message"),
    [
        ("class Mine(Detector:\n", "Mine", r"cannot be imported: SyntaxError: .*own\.py, line 3\)"),
        ("raise OSError('no disk')\n", "Mine", "cannot be imported: OSError: no disk"),
        (
            "class Mine(Detector):\n    def forward(self, features, mask): ...\n",
            "Mine",
            "Mine lacks candidates, loss",
        ),
        (
            "class Other(Detector): ...\n",
            "Othr",
            r"no 'Othr'; did you mean 'Other'\? .*: Other\)",
        ),
        (
            "class Mine(Detector):\n    forward = loss = candidates = Config = dict\n",
            "Mine",
            r"Mine\.Config: expected a dataclass that derives from tal_fast\.models\.Detec.*'dict'",
        ),
        (
            "class Mine(Detector):\n    forward = loss = candidates = dict\n    recipe = 5\n",
            "Mine",
            r"Mine\.recipe: expected \{section: \{field: value\}\}, got 5",
        ),
        (
            "class Mine(Detector):\n    forward = loss = candidates = dict\n"
            "    presets = {'a': {'model': 3}}\n",
            "Mine",
            r"Mine\.presets\['a'\]: expected \{section: .*, got \{'model': 3\}",
        ),
        (
            "Mine = 3\n",
            "Mine",
            "expected a class that derives from tal_fast.models.Detector, got 3",
        ),
    ],
)
def test_what_is_wrong_with_a_class_is_said(tmp_path, body, name, message):
    with pytest.raises(ConfigError, match=message):
        load_config(preset=own(tmp_path, body, name))


def test_places_without_a_module(tmp_path):
    with pytest.raises(ConfigError, match=r"no file .*none\.py"):
        recipe(f"{tmp_path / 'none.py'}:Mine")
    with pytest.raises(ConfigError, match="cannot be imported: ModuleNotFoundError: No module na"):
        recipe("no_such_package.models:Mine")


BROKEN = """
class Mine(Detector):
    def __init__(self, in_channels, num_classes, config=None):
        super().__init__(in_channels, num_classes, config)
        self.weight = torch.nn.Parameter(torch.zeros(in_channels, num_classes))
    def forward(self, features, mask):
        return features @ self.weight
    def loss(self, output, targets, whole):
        return {loss}
    def candidates(self, output, mask):
        return Candidates(output.sigmoid().amax(-1), output.argmax(-1), output[..., :2])
"""


@pytest.mark.parametrize(
    ("loss", "found"),
    [
        ("output.sum()", "got Tensor"),
        ("{'loss': output.sum()}", r"got a dict of shapes \{'loss': \[\]\}"),
        ("{'total': output.sum(-1)}", r"got a dict of shapes \{'total': \[\d+, \d+\]\}"),
        ("{'total': 1.0}", r"got a dict of shapes \{'total': '\?'\}|'total': \['\?'\]"),
    ],
)
def test_a_loss_that_is_none(folder, tmp_path, loss, found):
    config = load_config(preset=own(tmp_path, BROKEN.replace("{loss}", loss)))
    data = open_dataset(folder)
    message = r"Mine\.loss: expected a dict of scalar tensors with 'total' among them, " + found
    with pytest.raises(ConfigError, match=message):
        train(config, data, data.splits["train"], tmp_path / "out")


GOOD = BROKEN.replace("{loss}", "{'total': output.sum()}")
CANDIDATES = "Candidates(output.sigmoid().amax(-1), output.argmax(-1), output[..., :2])"


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ("None", "expected Candidates, got None"),
        ("(output, output, output)", r"expected Candidates, got tuple\(\[\d+, \d+, \d+\], .*"),
        ("Candidates(output, output, None)", "expected the tensors scores, labels and segments"),
        (
            "Candidates(output, output.argmax(-1), output[..., :2])",
            r"expected scores \[\d+, K\], .*, got Candidates\(scores \[\d+, \d+, \d+\], labels",
        ),
        (
            "Candidates(output[..., 0], output.argmax(-1), output[..., :3])",
            r"expected .* segments \[\d+, K, 2\] .*, got .*segments \[\d+, \d+, 3\], valid None",
        ),
        (
            "Candidates(output[..., 0], output[..., 0], output[..., :2])",
            "expected labels of int64, got torch.float32",
        ),
        (
            "Candidates(output[..., 0], output.argmax(-1), output[..., :2], mask.long())",
            "expected valid of bool, got torch.int64",
        ),
        (
            "Candidates(output[..., 0], output.argmax(-1) + 99, output[..., :2])",
            r"expected labels in \[0, \d+\), got 99",
        ),
        (
            "Candidates(output @ output, None, None)",
            r"given output \[\d+, \d+, \d+\], mask \[\d+, \d+\]: RuntimeError: .*, line \d+ of ",
        ),
    ],
)
def test_candidates_that_are_none(folder, tmp_path, candidates, message):
    config = load_config(preset=own(tmp_path, GOOD.replace(CANDIDATES, candidates)))
    data = open_dataset(folder)
    model = detector_of(config.name)(data.channels, data.num_classes, config.detector)
    with pytest.raises(ConfigError, match=rf"Mine\.candidates(:|,) {message}"):
        detect(model, data, data.splits["test"], config.training)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        ("None", r"Mine\.forward: expected a NamedTuple of tensors, got None"),
        (
            "features.transpose(1, 2) @ self.weight",
            r"Mine\.forward, given features \[\d+, \d+, 8\], mask \[\d+, \d+\]: RuntimeError: .*, "
            r"line 9 of .*py \(TAL_FAST_TRACEBACK=1",
        ),
        (
            "features @ self.wieght",
            r"Mine\.forward, given .*: AttributeError: .*wieght.*, line 9 of",
        ),
    ],
)
def test_a_forward_that_fails(folder, tmp_path, forward, message):
    text = GOOD.replace("features @ self.weight", forward)
    config = load_config(preset=own(tmp_path, text))
    data = open_dataset(folder)
    with pytest.raises(ConfigError, match=message):
        train(config, data, data.splits["train"], tmp_path / "out")


HEADER = "def __init__(self, in_channels, num_classes, config=None):"
SUPER = "super().__init__(in_channels, num_classes, config)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            (HEADER, "def __init__(self, in_channels):\n        num_classes = config = None"),
            r"__init__: expected \(self, in_channels, num_classes, config\), "
            r"found \(self, in_channels\)",
        ),
        (
            (HEADER, "def __init__(self, in_channels, num_classes, *, config=None):"),
            r"__init__: expected \(self, .*, found \(self, in_channels, num_classes, \*, conf",
        ),
        (
            (SUPER, "pass"),
            r"__init__, given in_channels 8, num_classes 20, config DetectorConfig: "
            r"AttributeError: cannot assign parameters? before .*, line 7 of .*own\.py",
        ),
        (
            (SUPER, "torch.nn.Module.__init__(self)"),
            r"__init__: expected it to call super\(\).__init__\(in_channels, .*\); "
            "afterwards in_channels is None, not 8",
        ),
        (
            ("torch.zeros(", "torch.zeroes("),
            r"__init__, given .*: AttributeError: .*zeroes.*line 7",
        ),
        (
            ("    def forward", "    def start(self, counts):\n        1 / 0\n    def forward"),
            r"start, given instances list: ZeroDivisionError: .*, line 9 of",
        ),
        (
            (
                "    def forward",
                "    def parameter_groups(self):\n        return []\n    def forward",
            ),
            "parameter_groups: expected parameters, got none",
        ),
        (
            (
                "    def forward",
                "    parameter_groups = torch.nn.Module.parameters\n    def forward",
            ),
            "parameter_groups: expected a list of ParameterGroup, got generator",
        ),
        (
            (
                "class Mine(Detector):",
                "class Mine(Detector):\n    clips = classmethod(lambda *_, **__: [])",
            ),
            r"clips: expected a tal_fast\.data\.ClipSet, got list, which has no dataset",
        ),
        (
            ("'total': output.sum()", "'total': output.sum().detach()"),
            r"loss: expected a 'total' that depends on the parameters, got one without a grad",
        ),
        (
            ("'total': output.sum()", "'total': output.detach().requires_grad_().sum()"),
            r"loss: expected a 'total' that depends .*, its gradient reaches none of them",
        ),
        (
            ("output[..., :2])", "output[..., :2] + float('nan'))"),
            r"candidates: expected finite scores and segments, got nan in (\d+) of \1 values of se",
        ),
        (
            ("output[..., :2])", "output[..., :2] - torch.arange(2))"),
            r"candidates: expected segments with start <= end, got \[0, -1\]",
        ),
        (
            ("output.argmax(-1), output[..., :2])", "output.argmax(-1), output[:1, ..., :2])"),
            r"candidates: expected scores \[2, K\], .*, got .*segments \[1, \d+, 2\]",
        ),
        (("return Candidates(", "return list("), "candidates, given .*: TypeError: list expected"),
        (
            (
                "        return Candidates(",
                "        assert self.training\n        return Candidates(",
            ),
            r"candidates, given .*: AssertionError: , line 13 of",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(folder, tmp_path, change, message):
    assert change[0] in GOOD
    config = load_config(
        preset=own(tmp_path, GOOD.replace(*change)), overrides={"training.batch_size": 2}
    )
    data = open_dataset(folder)
    steps = []
    with pytest.raises(ConfigError, match=rf"Mine\.{message}"):
        train(config, data, data.splits["train"], tmp_path / "out", progress=steps.append)
    assert not steps
    assert not list((tmp_path / "out").glob("*.pt"))


def test_a_dry_run_leaves_no_trace_in_the_training(folder, tmp_path, monkeypatch):
    # It has dropout, running averages, a count of its own, and draws from Python and NumPy.
    body = GOOD.replace(
        "= torch.nn.Parameter", "= torch.nn.Parameter(torch.rand(8, 20) * random()) #"
    ).replace(
        "        return features @ self.weight",
        "        self.calls = getattr(self, 'calls', 0) + 1\n"
        "        x = torch.nn.functional.dropout(features @ self.weight, 0.5, self.training)\n"
        "        return x.sort(-1).values * (self.calls + np.random.rand())",
    )
    name = own(tmp_path, "from random import random\nimport numpy as np\n" + body)
    changes = {"training.epochs": 1, "training.batch_size": 4, "training.tensorboard": "never"}
    config = load_config(preset=name, overrides=changes)
    data = open_dataset(folder)

    def weights(out):
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        train(config, data, data.splits["train"], tmp_path / out)
        return torch.load(tmp_path / out / "checkpoint.pt", weights_only=True)["model"]["weight"]

    with_it = weights("with")
    monkeypatch.setattr("tal_fast.training.trainer.dry_run", lambda *_: None)
    assert torch.equal(with_it, weights("without"))


def test_a_lack_of_memory_is_no_mistake_of_a_model(folder, tmp_path):
    forward = "(_ for _ in ()).throw(RuntimeError('CUDA out of memory'))"
    config = load_config(preset=own(tmp_path, GOOD.replace("features @ self.weight", forward)))
    data = open_dataset(folder)
    with pytest.raises(RuntimeError, match=r"^CUDA out of memory"):
        train(config, data, data.splits["train"], tmp_path / "out")


def test_installed_packages_offer_models(monkeypatch):
    def points(name, value):
        entry = importlib.metadata.EntryPoint(name, value, registry.ENTRY_POINTS)
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry])
        registry._presets.cache_clear()

    try:
        points("theirs", f"{EXAMPLE}:RowDetector")
        assert "theirs" in available()
        assert load_config(preset="theirs").detector.model.width == 64
        points("tadtr", f"{EXAMPLE}:RowDetector")
        with pytest.raises(ConfigError, match=r"two models are called 'tadtr': .*TadTR and .*Row"):
            available()
    finally:
        monkeypatch.undo()
        registry._presets.cache_clear()


def test_the_example_runs_through_a_study_of_two_shares(folder, tmp_path):
    spec = StudySpec(
        data=folder,
        out=tmp_path / "study",
        model=f"{EXAMPLE}:RowDetector",
        fractions=(0.5, 1.0),
        repetitions=2,
        overrides={
            "training.epochs": 2,
            "model.width": 16,
            "training.tensorboard": "never",
        },
        jobs=2,
        threads=1,
    )
    result = run_study(spec)
    (curve,) = result.curves
    assert len(curve.points) == 2
    assert (tmp_path / "study" / "curve.csv").exists()


def test_changed_code_is_another_study_and_another_training(folder, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(EXAMPLE.read_text())
    name = f"{file}:RowDetector"
    assert code_of("tadtr-small") is None
    spec = StudySpec(
        data=folder,
        out=tmp_path / "study",
        model=name,
        fractions=(1.0,),
        repetitions=1,
        overrides={"training.epochs": 1, "training.batch_size": 4},
        threads=1,
    )
    run_study(spec)
    before = code_of(name)
    file.write_text(file.read_text() + "\n# another program\n")
    assert code_of(name) != before
    with pytest.raises(ConfigError, match="holds a study with other settings: code is"):
        run_study(spec)


def test_code_edited_while_it_trains_is_not_what_trained(folder, tmp_path):
    data = open_dataset(folder)
    file = tmp_path / "edited.py"
    file.write_text(EXAMPLE.read_text())
    changes = {"training.epochs": 2, "training.batch_size": 2, "training.tensorboard": "never"}
    config = load_config(preset=f"{file}:RowDetector", overrides=changes)
    videos = list(data.splits["train"])

    def edit_and_stop(event):
        if event.step == 1:
            file.write_text(EXAMPLE.read_text() + "\n# edited\n")
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(config, data, videos, tmp_path / "run", progress=edit_and_stop)
    with pytest.raises(TrainingError, match="other settings, code or videos"):
        train(config, data, videos, tmp_path / "run")
    file.write_text(EXAMPLE.read_text())
    train(config, data, videos, tmp_path / "run")


def test_a_module_of_the_working_directory_on_the_command_line(folder, tmp_path):
    (tmp_path / "mine.py").write_bytes(EXAMPLE.read_bytes())
    words = ["train", "--data", str(folder), "--model", "mine:RowDetector", "--out", "run"]
    settings = ["--set", "training.epochs=1", "--set", "model.width=8"]
    code = f"import sys; from tal_fast.cli import main; sys.exit(main({[*words, *settings]!r}))"
    # As the console script, which does not look into the working directory by itself.
    path = [item for item in sys.path if item]
    done = subprocess.run(
        [sys.executable, "-P", "-c", code] if sys.version_info >= (3, 11) else
        [sys.executable, "-c", "import sys; sys.path.remove(''); " + code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "checkpoint.pt").exists()
    # It learns from whole videos, which are no windows.
    assert re.search(r"1 epoch, \d+ steps over (\d+) clips of \1 videos in", done.stdout)
