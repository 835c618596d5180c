# SPDX-License-Identifier: Apache-2.0
"""The command line: help, exit status, messages; the work itself is tested elsewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import started

from tal_fast import cli
from tal_fast.data import open_dataset
from tal_fast.errors import ConfigError, DataError
from tal_fast.study import StudyResult

COMMANDS = [
    ["info"],
    ["import-checkpoint"],
    ["prepare"],
    ["prepare", "csv"],
    ["prepare", "json"],
    ["prepare", "hapt"],
    ["prepare", "sp-sw-har"],
    ["prepare", "thumos14"],
    ["prepare", "activitynet13"],
    ["prepare", "synthetic"],
    ["pack"],
    ["validate"],
    ["train"],
    ["predict"],
    ["evaluate"],
    ["study"],
    ["study", "run"],
    ["study", "demo"],
    ["study", "report"],
    ["study", "fit"],
    ["study", "extrapolate"],
    ["study", "plan"],
    ["study", "draw"],
    ["profile"],
    ["profile", "model"],
    ["profile", "machine"],
    ["profile", "train"],
    ["profile", "predict"],
    ["profile", "compare"],
    ["profile", "nsys"],
    ["profile", "ncu"],
    ["profile", "py-spy"],
]


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    from tal_fast.data.synthetic import make_synthetic

    out = tmp_path_factory.mktemp("cli") / "tiny"
    return make_synthetic(out, size="demo", train_videos=6, test_videos=3, channels=8)


@pytest.fixture
def truth(tmp_path) -> Path:
    path = tmp_path / "annotations.json"
    annotations = [{"segment": [1.0, 2.0], "label": "run"}]
    video = {"subset": "test", "duration": 9.0, "fps": 30.0, "annotations": annotations}
    path.write_text(json.dumps({"database": {"v": video}}))
    return path


def predictions(tmp_path, label="run") -> Path:
    path = tmp_path / "results.json"
    found = [{"segment": [1.0, 2.0], "label": label, "score": 0.9}]
    path.write_text(json.dumps({"version": "1", "results": {"v": found}, "external_data": {}}))
    return path


class TestHelp:
    @pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
    @pytest.mark.parametrize("option", ["-h", "--help"])
    def test_every_command_has_help_with_an_example(self, capsys, command, option):
        status, out, _ = run(capsys, *command, option)
        assert status == 0
        assert "Usage: tal-fast " + command[0] in out
        assert "Example: tal-fast " in out

    def test_top(self, capsys):
        status, out, _ = run(capsys, "-h")
        assert status == 0
        commands = {"info", "prepare", "pack", "validate", "train", "predict", "evaluate"}
        commands |= {"study", "profile"}
        assert commands <= set(out.split())

    @pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
    def test_every_option_is_in_one_group(self, capsys, command):
        _, out, _ = run(capsys, *command, "-h")
        titles = re.findall(r"^([A-Z][a-z ]+):\n", out, re.MULTILINE)
        assert len(set(titles)) == len(titles) > 0
        listed = out.partition("  Example: ")[0]
        options = re.findall(r"^  (?:-\w, )?(--[a-z-]+)", listed, re.MULTILINE)
        assert len(set(options)) == len(options) > 0
        assert options.count("--help") == 1
        assert not re.search(r"<list\[|<str>|<int|<float>", out), "words of Python's"

    @pytest.mark.parametrize("command", [c for c in COMMANDS if len(c) == 1], ids=" ".join)
    def test_what_commands_do_is_not_cut(self, capsys, monkeypatch, command):
        monkeypatch.setenv("COLUMNS", "80")
        for group in ([], command):
            _, out, _ = run(capsys, *group, "-h")
            listed = out.partition("Options:")[0].partition("\n\n")[2]
            assert not re.search(r"\w,?\.\.\.$", listed, re.MULTILINE), out

    def test_common_options_come_first(self, capsys):
        _, out, _ = run(capsys, "study", "run", "-h")
        first = out.partition("Options:")[2].partition("What is drawn and trained:")[0]
        for option in ("--data", "--out", "--model", "--fractions", "--repetitions", "--jobs"):
            assert f"  {option} " in first
        assert "--gpus-per-trial" not in first
        _, out, _ = run(capsys, "-h")
        order = [out.index(f"{title}:\n") for title in ("Data", "Models", "Studies and costs")]
        assert order == sorted(order)

    def test_completion(self):
        done = subprocess.run(
            [sys.executable, "-c", "import tal_fast.cli; tal_fast.cli.main()"],
            env={
                **os.environ,
                "_TAL_FAST_COMPLETE": "complete_bash",
                "COMP_WORDS": "tal-fast study ext",
                "COMP_CWORD": "2",
            },
            capture_output=True,
            text=True,
        )
        assert done.stdout.split() == ["extrapolate"]

    def test_help_imports_nothing_heavy(self):
        code = (
            "import sys, tal_fast.cli\n"
            "tal_fast.cli.main(['study', 'run', '-h'])\n"
            "heavy = {'torch', 'numpy', 'scipy', 'matplotlib', 'rich', 'yaml', 'tal_fast.data'}\n"
            "print('HEAVY', sorted(heavy & set(sys.modules)))"
        )
        output = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        assert output.rstrip().endswith("HEAVY []")

    def test_help_is_quick(self, record_property):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "tal_fast", "-h"], capture_output=True, check=True)
        # Recorded, not judged: another load on the machine must not fail a test.
        record_property("seconds", time.perf_counter() - start)

    def test_module_and_script_agree(self):
        output = subprocess.run(
            [sys.executable, "-m", "tal_fast", "study", "-h"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert output.startswith("Usage: tal-fast study")


class TestStatus:
    @pytest.mark.parametrize(
        "arguments",
        [
            ["bogus"],
            ["study", "run", "--bogus"],
            ["study", "run"],
            ["study", "run", "--data", "d", "--out", "o", "--jobs", "0"],
            ["study", "run", "--data", "d", "--out", "o", "--repetitions", "x"],
            ["study", "run", "--data", "d", "--out", "o", "--fractions", "1.5"],
            ["study", "run", "--data", "d", "--out", "o", "--fractions", "a:b"],
            ["study", "run", "--data", "d", "--out", "o", "--split", "other"],
            ["study", "run", "--data", "d", "--out", "o", "--model", "tadtr-smal"],
            ["train", "--data", "d", "--out", "o", "--set", "training.epoch=3"],
            ["train", "--data", "d", "--out", "o", "--set", "epochs"],
            ["train", "--data", "d", "--out", "o", "--model", ""],
            ["train", "--data", "d", "--out", "o", "--threads", "100000"],
            ["train", "--data", "d", "--out", "o", "--seed", "99999999999999999999"],
            ["train", "--data", "d", "--out", "o", "--set", "training.learning_rate=.inf"],
            ["study", "run", "--data", "d", "--out", "o", "--threads", "100000"],
            ["prepare", "synthetic", "--out", "o", "--size", "dem"],
            ["evaluate", "--annotations", "a", "--predictions", "p", "--tiou", "0.3:2"],
            ["profile", "predict", "--out", "x", "--lengths", "128"],
            ["profile", "predict", "--out", "x", "--model", "tadtr"],
            ["profile", "predict", "--out", "x", "--model", "tadtr", "--lengths", "0"],
            ["profile", "model", "--channels", "0", "--classes", "2"],
            ["profile", "model", "--channels", "8", "--classes", "2", "--lengths", "128,x"],
            ["profile", "model", "--channels", "8", "--classes", "2", "--lengths", "9:5:1"],
            ["profile", "model", "--channels", "8", "--classes", "2", "--lengths", "0"],
            ["profile", "model", "--channels", "8", "--classes", "2", "--model", "tadrt"],
            ["profile", "model", "--channels", "8", "--classes", "2", "--stride", "0"],
        ],
        ids=" ".join,
    )
    def test_usage_and_settings_are_2(self, capsys, arguments, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        status, out, err = run(capsys, *arguments)
        assert status == 2
        assert out == ""
        assert "rror: " in err
        assert "Traceback" not in err
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        "arguments",
        [
            ["study", "run", "--data", "nowhere", "--out", "o"],
            ["study", "report", "--study", "nowhere"],
            ["train", "--data", "nowhere", "--out", "o"],
            ["predict", "--checkpoint", "c", "--data", "nowhere", "--out", "o"],
            ["evaluate", "--annotations", "nowhere", "--predictions", "nowhere"],
            ["prepare", "hapt", "--archive", "nowhere", "--out", "o"],
        ],
        ids=" ".join,
    )
    def test_bad_data_is_1(self, capsys, arguments, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        status, out, err = run(capsys, *arguments)
        assert status == 1
        assert out == ""
        assert err.startswith("error: ")
        assert "nowhere" in err
        assert len(err.splitlines()) == 1

    def test_messages_suggest(self, capsys):
        _, _, err = run(
            capsys, "study", "run", "--data", "d", "--out", "o", "--model", "tadtr-smal"
        )
        assert "tadtr-small" in err
        _, _, err = run(capsys, "train", "--data", "d", "--out", "o", "--set", "training.epoch=3")
        assert "did you mean 'training.epochs'" in err

    def test_no_arguments_show_help(self, capsys):
        status, out, err = run(capsys)
        assert status == 2
        assert "Usage: tal-fast" in out + err

    @pytest.mark.parametrize(
        ("error", "status", "message"),
        [
            (ConfigError("a setting"), 2, "error: a setting"),
            (DataError("a file"), 1, "error: a file"),
            (OSError(28, "No space left on device", "x.pt"), 1, "error: x.pt: No space left on"),
            (KeyboardInterrupt(), 130, "interrupted"),
            (
                MemoryError("Unable to"),
                1,
                "error: not enough memory: Unable to",
            ),
            (
                RuntimeError("DefaultCPUAllocator: can't allocate memory: 64 bytes\nline"),
                1,
                "error: not enough memory: DefaultCPUAllocator: can't allocate",
            ),
        ],
    )
    def test_errors_of_commands(self, capsys, monkeypatch, error, status, message):
        def fail(path, **options):
            raise error

        monkeypatch.setattr("tal_fast.study.report_study", fail)
        found, out, err = run(capsys, "study", "report", "--study", "x")
        assert (found, out) == (status, "")
        assert err.startswith(message)

    def test_traceback_on_request(self, monkeypatch, capsys):
        monkeypatch.setenv("TAL_FAST_TRACEBACK", "1")
        with pytest.raises(DataError, match="no study here"):
            cli.main(["study", "report", "--study", "nowhere"])

    @pytest.mark.parametrize("error", [ZeroDivisionError(), RuntimeError("a bug")])
    def test_bugs_keep_their_traceback(self, monkeypatch, error):
        def fail(path, **options):
            raise error

        monkeypatch.setattr("tal_fast.study.report_study", fail)
        with pytest.raises(type(error)):
            cli.main(["study", "report", "--study", "nowhere"])


class TestCommands:
    def test_info(self, capsys):
        status, out, err = run(capsys, "info", "--json", "/dev/null")
        assert status == 0
        assert "torch:" in out
        assert "isa:" in out
        assert err == "numbers: /dev/null\nnext: tal-fast study demo --out results/demo\n"

    def test_json_on_standard_output_is_alone_there(self, capsys, truth, tmp_path):
        status, out, err = run(capsys, "info", "--json", "-")
        assert status == 0
        assert "torch" in json.loads(out)
        assert "torch:" in err
        assert "next: " in err
        arguments = ["--annotations", truth, "--predictions", predictions(tmp_path)]
        status, out, err = run(capsys, "evaluate", *arguments, "--subset", "test", "--json", "-")
        assert status == 0
        assert json.loads(out)["average_map"] == 1.0
        assert "mAP" in err

    @pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
    def test_json_is_one_option(self, capsys, command):
        _, out, _ = run(capsys, *command, "-h")
        if "--json " in out:
            text = " ".join(out.split())
            assert "--json FILE Also write this file; - is standard output, and all else" in text

    def test_info_for_scripts(self, capsys, tmp_path):
        assert run(capsys, "info", "--json", tmp_path / "info.json")[0] == 0
        facts = json.loads((tmp_path / "info.json").read_text())
        assert {"tal_fast", "torch", "isa", "cuda", "packages"} <= set(facts)

    def test_prepare_synthetic(self, capsys, tmp_path, monkeypatch):
        from tal_fast.data import synthetic

        small = synthetic.SIZES["demo"].__class__(
            **{**vars(synthetic.SIZES["demo"]), "train_videos": 4, "test_videos": 2}
        )
        monkeypatch.setitem(synthetic.SIZES, "demo", small)
        out = tmp_path / "data"
        status, text, _ = run(capsys, "prepare", "synthetic", "--out", out, "--seed", 3)
        assert status == 0
        assert "6 videos (4 train, 2 test)" in text
        assert (out / "dataset.yaml").exists()
        status, _, err = run(capsys, "prepare", "synthetic", "--out", out)
        assert status == 1
        assert "already exists" in err
        assert run(capsys, "prepare", "synthetic", "--out", out, "--overwrite")[0] == 0

    def test_evaluate(self, capsys, truth, tmp_path):
        out = tmp_path / "scores.json"
        arguments = ["--annotations", truth, "--predictions", predictions(tmp_path)]
        status, text, _ = run(capsys, "evaluate", *arguments, "--subset", "test", "--json", out)
        assert status == 0
        assert "100.00" in text
        scores = json.loads(out.read_text())
        assert scores["average_map"] == 1.0
        assert scores["tiou_thresholds"] == [0.3, 0.4, 0.5, 0.6, 0.7]

    def test_where_json_cannot_be_written_nothing_is_done(self, capsys, truth, tmp_path):
        arguments = ["--annotations", truth, "--predictions", predictions(tmp_path)]
        arguments += ["--subset", "test", "--json"]
        file = tmp_path / "file"
        file.touch()
        status, out, err = run(capsys, "evaluate", *arguments, file / "scores.json")
        assert (status, out) == (2, "")
        assert "--json" in err
        assert "file" in err
        status, out, err = run(capsys, "evaluate", *arguments, tmp_path)
        assert (status, out) == (2, "")
        assert "found a directory" in err
        assert run(capsys, "evaluate", *arguments, tmp_path / "new/scores.json")[0] == 0
        assert (tmp_path / "new/scores.json").exists()

    def test_evaluate_a_split(self, capsys, data, tmp_path):
        video = open_dataset(data).splits["test"][0]
        label = open_dataset(data).classes[0]
        results = {video: [{"segment": [1.0, 2.0], "label": label, "score": 0.9}]}
        content = {"model": "tridet-small", "results": results}
        (tmp_path / "results.json").write_text(json.dumps(content))
        arguments = ["--annotations", data, "--predictions", tmp_path / "results.json"]
        counts = {}
        for which in (["--split", "test"], ["--subset", "validation"], ["--split", "all"], []):
            content = tmp_path / "scores.json"
            status, _, err = run(capsys, "evaluate", *arguments, *which, "--json", content)
            assert status == 0, err
            assert f"next: tal-fast study run --data {data} --model tridet-small --out " in err
            counts[" ".join(which)] = json.loads(content.read_text())["num_videos"]
        assert counts == {"--split test": 3, "--subset validation": 3, "--split all": 9, "": 3}
        status, _, err = run(capsys, "evaluate", *arguments, "--split", "tset")
        assert status == 2
        assert "split: expected one of train, test, all, got 'tset'; did you mean 'test'" in err

    def test_evaluate_unknown_label(self, capsys, truth, tmp_path):
        arguments = ["--annotations", truth, "--predictions", predictions(tmp_path, "hop")]
        status, _, err = run(capsys, "evaluate", *arguments)
        assert status == 1
        assert "'hop'" in err

    def test_unknown_split(self, capsys, data, tmp_path):
        arguments = ["--data", data, "--out", tmp_path / "o", "--videos", "trian"]
        status, _, err = run(capsys, "train", *arguments)
        assert status == 2
        assert "expected one of train, test, all, got 'trian'; did you mean 'train'" in err

    def test_study_run_passes_everything_on(self, capsys, monkeypatch, tmp_path):
        asked = []

        def fake(spec):
            asked.append(spec)
            return StudyResult([], 0, 4, {"curve": tmp_path / "curve.csv"}, ["no picture"])

        monkeypatch.setattr("tal_fast.study.run_study", fake)
        arguments = ["--data", "d", "--out", "o", "--fractions", "0.5,1", "--repetitions", "2"]
        arguments += ["--split", "random", "--seed", "4", "--set", "training.epochs=1"]
        arguments += ["--set", "training.batch_size=2", "--jobs", "2", "--threads", "1"]
        arguments += ["--trust-times"]
        status, out, err = run(capsys, "study", "run", *arguments)
        assert status == 0
        (spec,) = asked
        assert (spec.data, spec.out, spec.model) == (Path("d"), Path("o"), "tadtr-small")
        assert (spec.fractions, spec.repetitions, spec.split) == ((0.5, 1.0), 2, "random")
        assert spec.overrides == {"training.epochs": 1, "training.batch_size": 2}
        assert (spec.seed, spec.jobs, spec.threads) == (4, 2, 1)
        assert spec.trust_times
        assert "all 4 trials were there already, nothing was trained" in out
        assert str(tmp_path / "curve.csv") in out
        assert "note: no picture" in err

    def test_study_run_crosses(self, capsys, monkeypatch, data, tmp_path):
        asked = []
        monkeypatch.setattr(
            "tal_fast.study.run_study",
            lambda spec: asked.append(spec) or StudyResult([], 1, 0, {}),
        )
        arguments = ["study", "run", "--data", data, "--out", tmp_path / "o", "--videos", "1,3"]
        arguments += ["--sampling", "video,nested-window", "--budget", "epochs, steps"]
        arguments += ["--ema", "off,plain", "--seeds", "2"]
        assert run(capsys, *arguments)[0] == 0
        (spec,) = asked
        total = len(open_dataset(data).splits["train"])
        assert spec.fractions == (round(1 / total, 6), round(3 / total, 6))
        assert spec.samplings == ("video", "nested-window")
        assert (spec.budgets, spec.ema, spec.seeds) == (("epochs", "steps"), ("off", "plain"), 2)
        for option in ("--sampling video,nested-window", "--budget epochs,steps", "--seeds 2"):
            assert option in spec.command()
        status, _, err = run(capsys, *arguments, "--fractions", "0.5")
        assert status == 2
        assert "videos: expected either fractions or videos, got both" in err

    def test_study_demo(self, capsys, monkeypatch, tmp_path):
        asked, made = [], []
        monkeypatch.setattr(
            "tal_fast.study.run_study",
            lambda spec: asked.append(spec) or StudyResult([], 1, 0, {}),
        )
        monkeypatch.setattr(
            "tal_fast.data.synthetic.make_synthetic",
            lambda out, **options: made.append((out, options)),
        )
        assert run(capsys, "study", "demo", "--out", tmp_path / "demo")[0] == 0
        assert made == [(tmp_path / "demo" / "data", {"size": "demo", "seed": 0})]
        assert asked[0].data == tmp_path / "demo" / "data"
        assert asked[0].jobs == 2

    def test_demo_data_is_made_once_and_checked(self, capsys, monkeypatch, tmp_path, data):
        monkeypatch.setattr("tal_fast.study.run_study", lambda spec: StudyResult([], 0, 1, {}))
        (tmp_path / "data").symlink_to(data)
        assert run(capsys, "study", "demo", "--out", tmp_path)[0] == 0
        (tmp_path / "data").unlink()
        (tmp_path / "data").mkdir()
        status, _, err = run(capsys, "study", "demo", "--out", tmp_path)
        assert status == 1
        assert "to make the demo data again" in err


class TestPackAndValidate:
    def test_pack_then_verify(self, capsys, data, tmp_path):
        out = tmp_path / "store"
        arguments = ["--features", data / "features", "--out", out, "--dtype", "bfloat16"]
        status, text, err = run(capsys, "pack", *arguments)
        assert status == 0, err
        assert "9 videos" in text
        assert "rounding to bfloat16" in text
        status, text, _ = run(capsys, "pack", *arguments)
        assert status == 0
        assert "9 of them by an earlier run" in text
        status, text, _ = run(capsys, "pack", "--out", out, "--verify")
        assert (status, text) == (0, "9 videos, all as they were packed\n")
        status, _, err = run(capsys, "pack", *arguments[:-1], "float32")
        assert status == 2
        assert "begun with dtype 'bfloat16', now 'float32'" in err

    def test_pack_needs_features_and_known_words(self, capsys, tmp_path):
        status, _, err = run(capsys, "pack", "--out", tmp_path / "o")
        assert status == 2
        assert "--features: expected at least one" in err
        status, _, err = run(capsys, "pack", "--features", "x", "--out", "o", "--dtype", "int8")
        assert status == 2
        assert "expected dtype among float32, float16, bfloat16, got 'int8'" in err

    def test_a_pickle_is_not_read_unasked(self, capsys, tmp_path):
        import pickle

        import numpy as np

        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "a.pkl").write_bytes(pickle.dumps(np.ones((3, 2), np.float32)))
        arguments = ["--features", tmp_path / "in", "--out", tmp_path / "out"]
        status, _, err = run(capsys, "pack", *arguments)
        assert status == 2
        assert "pickles are only read with --allow-pickle" in err
        assert run(capsys, "pack", *arguments, "--allow-pickle")[0] == 0

    def test_a_link_that_leads_nowhere(self, capsys, tmp_path):
        import numpy as np

        h5py = pytest.importorskip("h5py")
        features, truth = tmp_path / "x.h5", tmp_path / "a.json"
        with h5py.File(features, "w") as file:
            file["a"] = np.ones((40, 2), np.float32)
            file["b"] = h5py.ExternalLink("gone.h5", "/b")
        video = {"subset": "s", "duration": 10.0, "fps": 4.0,
                 "annotations": [{"segment": [1, 2], "label": "walk"}]}  # fmt: skip
        truth.write_text(json.dumps({"database": {"a": video, "b": video}}))
        message = "dataset 'b': its external link leads nowhere, expected a dataset at gone.h5: /b"
        status, _, err = run(capsys, "pack", "--features", features, "--out", tmp_path / "out")
        assert status == 1
        assert message in err
        status, text, _ = run(
            capsys, "validate", "--annotations", truth, "--features", features, "--stride", "1",
            "--frames", "1", "--split", "train=s",
        )  # fmt: skip
        assert status == 1
        assert message in " ".join(text.split())

    def test_validate_a_data_directory(self, capsys, data, tmp_path):
        content = tmp_path / "v.json"
        arguments = ["--data", data, "--json", content, "--report", tmp_path / "page"]
        status, text, err = run(capsys, "validate", *arguments, "--accept", "class-missing")
        assert status == 0, text + err
        assert "training may start" in text
        assert json.loads(content.read_text())["ok"] is True
        assert (tmp_path / "page" / "index.html").is_file()
        status, text, _ = run(capsys, "validate", *arguments)
        assert status == 1, "six training videos do not hold every class"
        assert "training may not start: class-missing" in text
        assert json.loads(content.read_text())["ok"] is False

    def test_validate_annotations_and_features(self, capsys, data):
        import yaml

        feature = yaml.safe_load((data / "dataset.yaml").read_text())["feature"]
        arguments = ["--annotations", data / "annotations.json", "--features", data / "features"]
        arguments += ["--split", "train=training", "--split", "test=validation"]
        arguments += ["--frames", feature["frames"], "--accept", "class-missing"]
        arguments += ["--fps", feature["fps"]] if feature["fps"] else []
        status, text, _ = run(capsys, "validate", *arguments, "--stride", feature["stride"])
        assert status == 0, text
        status, text, _ = run(capsys, "validate", *arguments, "--stride", 3 * feature["stride"])
        assert status == 1
        assert "training may not start: timing" in text
        assert f"stride {feature['stride']:g}" in text

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "expected --data or --annotations"),
            (["--data", "x", "--annotations", "y"], "expected --data or --annotations"),
            (["--data", "x", "--features", "y"], "expected no --features"),
            (["--annotations", "x", "--features", "y"], "--stride: expected the frames between"),
            (["--annotations", "x", "--split", "a"], "--split: expected NAME=SUBSET, got 'a'"),
            (["--annotations", "x", "--accept", "timng"], "did you mean 'timing'"),
        ],
    )
    def test_wrong_usage_of_validate(self, capsys, arguments, message):
        status, _, err = run(capsys, "validate", *arguments)
        assert status == 2
        assert message in err

    @pytest.mark.parametrize("name", ["thumos14", "activitynet13"])
    def test_prepare_passes_everything_on(self, capsys, monkeypatch, name):
        from tal_fast.data.prepare import FeatureChoice, Repairs

        asked = []

        class Report:
            def lines(self):
                return ["done"]

        def fake(*arguments, **options):
            asked.append((arguments, options))
            return Report()

        monkeypatch.setattr(f"tal_fast.data.prepare.{name}.prepare_{name}", fake)
        arguments = ["--annotations", "a.json", "--features", "rgb", "--features", "flow"]
        arguments += ["--template", "%s.npy", "--out", "o", "--stride", "8", "--frames", "8"]
        arguments += ["--fps", "25", "--pack", "float16", "--out-of-range", "clamp"]
        arguments += ["--non-positive", "drop", "--missing", "skip", "--exclude", "x"]
        status, text, err = run(capsys, "prepare", name, *arguments)
        assert status == 0, err
        assert text == "done\n"
        assert err == "next: tal-fast validate --data o\n"
        (((annotations, choice, out), options),) = asked
        assert (annotations, out) == (Path("a.json"), Path("o"))
        assert choice == FeatureChoice(
            [Path("rgb"), Path("flow")], ["%s.npy"], None, "TC", 8, 8, 25, pack="float16"
        )
        assert options["repairs"] == Repairs("clamp", "drop", "skip", ["x"])

    def test_prepare_sp_sw_har(self, capsys, tmp_path):
        arguments = ["--source", tmp_path / "gone", "--out", tmp_path / "out"]
        status, _, err = run(capsys, "prepare", "sp-sw-har", *arguments)
        assert status == 1
        assert "gone: no such file or folder" in err


def test_broken_pipe(tmp_path):
    """``tal-fast ... | head`` ends without a traceback."""
    with started(
        [sys.executable, "-m", "tal_fast", "info"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        process.stdout.close()
        error = process.stderr.read().decode()
    assert "Traceback" not in error


def test_train_names_classes_without_a_training_video(capsys, data, tmp_path):
    status, _, err = run(capsys, "train", "--data", data, "--out", tmp_path / "run")
    assert status == 1
    assert "no training video has an instance of BasketballDunk" in err


@pytest.fixture
def few(tmp_path) -> Path:
    """Four videos of 30 s, one without features, one with an instance of all of it."""
    import numpy as np

    from tal_fast.data import DatasetSpec, FeatureSpec, save_spec

    (tmp_path / "few" / "features").mkdir(parents=True)
    database = {
        name: {
            "subset": "validation" if name == "d" else "training",
            "duration": 30.0,
            "annotations": [
                {"label": "walk", "segment": [0.0, 30.0] if name == "b" else [3.0, 5.0]},
                {"label": "run", "segment": [7.0, 8.0]},
            ],
        }
        for name in "abcd"
    }
    (tmp_path / "few" / "annotations.json").write_text(json.dumps({"database": database}))
    for name in "abd":
        np.save(tmp_path / "few" / "features" / f"{name}.npy", np.ones((300, 8), np.float32))
    save_spec(
        DatasetSpec("few", feature=FeatureSpec(fps=10), exclude={"lost": ["c"]}), tmp_path / "few"
    )
    return tmp_path / "few"


def test_tables_are_whole_on_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    curve = Path(__file__).parents[1] / "docs/results/hapt"
    status, out, _ = run(capsys, "study", "fit", "--study", curve, "--draws", 5)
    assert status == 0
    assert "backtest" in out
    assert "\u2026" not in out


def test_what_is_left_out_or_never_learned_is_said_at_the_start(capsys, few, tmp_path):
    small = ["d_model=32", "num_heads=2", "encoder_layers=1", "decoder_layers=1", "feedforward=16"]
    settings = [x for text in small for x in ("--set", f"model.{text}")]
    settings += ["--set", "training.epochs=1", "--threads", 1]
    left_out = (
        f"note: 1 of the 4 videos of {few} left out of training and prediction, lost (exclude): c\n"
    )
    unheld = (
        "note: 1 of 4 instances are never learned, no window of 128 rows holds them: walk 1 of 2\n"
    )
    checkpoint, results = tmp_path / "run/checkpoint.pt", tmp_path / "results.json"
    after_training = (
        f"next: tal-fast predict --checkpoint {checkpoint} --data {few} --out "
        f"{tmp_path / 'run/results.json'}\n"
    )
    train = ["train", "--data", few, "--out", tmp_path / "run", *settings]
    status, _, err = run(capsys, *train)
    assert (status, err) == (0, left_out + unheld + after_training)
    saved = checkpoint.read_bytes()
    status, _, err = run(capsys, *train)
    assert status == 2
    assert f"out: {tmp_path / 'run'} holds a training that has ended" in err
    assert checkpoint.read_bytes() == saved
    train.append("--no-resume")
    for name in ("study.yaml", "trial.json"):
        (tmp_path / "run" / name).touch()
        status, _, err = run(capsys, *train)
        assert status == 2
        assert f"run is a folder of a study ({name})" in err
        (tmp_path / "run" / name).unlink()
    predict = ["--checkpoint", checkpoint, "--data", few, "--threads", 1]
    status, _, err = run(capsys, "predict", *predict, "--out", results)
    after = f"next: tal-fast evaluate --annotations {few} --split test --predictions {results}\n"
    assert (status, err) == (0, left_out + after)
    status, out, err = run(capsys, "validate", "--data", few, "--accept", "timing")
    assert "left out of training and prediction (exclude); scoring counts them" in out
    assert "'walk': 1 of 2" in out
    # A class of which nothing is left.
    text = (few / "annotations.json").read_text().replace("[3.0, 5.0]", "[0.0, 30.0]")
    (few / "annotations.json").write_text(text)
    study = ["study", "run", "--data", few, "--out", tmp_path / "study"]
    for arguments in (train, study):
        status, _, err = run(capsys, *arguments)
        assert status == 1
        assert "no window of 128 rows holds any instance of walk (1 of 2 classes)" in err
    status, out, _ = run(capsys, "validate", "--data", few)
    assert status == 1
    assert "training may not start: never-learned" in out
    status, out, _ = run(capsys, "validate", "--data", few, "--window", 256)
    assert "never-learned" not in out


@pytest.mark.slow
def test_train_predict_evaluate_and_study(capsys, tmp_path):
    """The real thing, end to end, on small videos that hold every class."""
    from tal_fast.data.synthetic import make_synthetic

    data = make_synthetic(tmp_path / "data", size="demo", channels=8)
    tiny = ["--set", "training.epochs=2", "--set", "training.batch_size=16"]
    model = ["--data", data, "--model", "tadtr-small", *tiny]
    status, out, err = run(capsys, "train", *model, "--out", tmp_path / "run", "--threads", 1)
    assert status == 0, err
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    results = tmp_path / "results.json"
    arguments = ["--checkpoint", checkpoint, "--data", data, "--out", results]
    assert run(capsys, "predict", *arguments)[0] == 0
    arguments = ["--annotations", data, "--predictions", results]
    status, out, err = run(capsys, "evaluate", *arguments, "--subset", "validation")
    assert status == 0, err
    assert "mAP" in out

    study = [*model, "--fractions", "0.5,1", "--repetitions", "2", "--out", tmp_path / "study"]
    status, out, err = run(capsys, "study", "run", *study, "--jobs", 2)
    assert status == 0, err
    assert "100 %" in out
    before = sorted((tmp_path / "study" / "trials").rglob("*"))
    assert {p.name for p in before} >= {"checkpoint.pt", "metrics.json", "trial.json", "log.csv"}
    status, out, err = run(capsys, "study", "run", *study)
    assert status == 0, err
    assert "all 4 trials were there already, nothing was trained" in out
    assert sorted((tmp_path / "study" / "trials").rglob("*")) == before
