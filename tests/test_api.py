# SPDX-License-Identifier: Apache-2.0
"""tal_fast's packages by attribute, and its five calls."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tal_fast
from tal_fast import cli
from tal_fast.data import DatasetSpec, FeatureSpec, save_spec
from tal_fast.data.dataset_spec import load_spec
from tal_fast.errors import ConfigError, DataError

PACKAGES = [
    *("compat", "curves", "data", "errors", "evaluation"),
    *("models", "ops", "profiling", "study", "training"),
]
SMALL = {
    "model.d_model": 32,
    "model.num_heads": 2,
    "model.encoder_layers": 1,
    "model.decoder_layers": 1,
    "model.feedforward": 16,
    "training.epochs": 2,
    "training.batch_size": 4,
}


def in_a_fresh_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


class TestPackages:
    def test_the_import_loads_nothing(self):
        """By modules: times say nothing on a busy machine."""
        loaded = in_a_fresh_process(
            "import sys; before = set(sys.modules); import tal_fast\n"
            "print(sorted(m for m in set(sys.modules) - before if m.startswith('tal_fast')))\n"
            "print([m for m in ('torch', 'numpy', 'tal_fast._C') if m in sys.modules])"
        )
        assert loaded.splitlines() == ["['tal_fast']", "[]"]

    def test_all_of_it_by_attribute(self):
        names = in_a_fresh_process(
            f"import tal_fast\nfor name in {PACKAGES!r}: print(getattr(tal_fast, name).__name__)"
        )
        assert names.split() == [f"tal_fast.{name}" for name in PACKAGES]

    @pytest.mark.parametrize("use", ["data.open_dataset", "open_dataset", "evaluation.evaluate"])
    def test_what_needs_no_torch_loads_none(self, use):
        assert in_a_fresh_process(
            f"import sys, tal_fast; tal_fast.{use}; print('torch' in sys.modules)"
        ) == ("False")

    @pytest.mark.parametrize("name", ["packing", "prepare", "validation"])
    def test_packages_of_the_data_too(self, name):
        found = in_a_fresh_process(f"from tal_fast import data; print(data.{name}.__name__)")
        assert found == f"tal_fast.data.{name}"

    def test_dir_has_everything_before_its_first_use(self):
        names = in_a_fresh_process("import tal_fast; print(*dir(tal_fast))").split()
        assert {*PACKAGES, *tal_fast.__all__} <= set(names)

    def test_everything_public_is_there(self):
        assert [name for name in tal_fast.__all__ if not hasattr(tal_fast, name)] == []
        from tal_fast import api

        calls = {name for name in tal_fast.__all__ if callable(getattr(tal_fast, name))}
        assert calls == {"evaluate", "open_dataset", "predict", "run_study", "train"}
        assert all(getattr(tal_fast, name) is getattr(api, name) for name in calls)

    def test_what_is_not_there_is_an_attribute_error(self):
        with pytest.raises(AttributeError, match="module 'tal_fast' has no attribute 'opps'"):
            _ = tal_fast.opps

    @pytest.mark.parametrize("call", ["train", "predict", "evaluate", "run_study"])
    def test_calls_say_arguments_results_and_errors(self, call):
        text = getattr(tal_fast, call).__doc__
        assert all(part in text for part in ("Args:", "Returns:", "Raises:"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Ten videos of 30 s whose features carry two classes; one has lost its features."""
    path = tmp_path_factory.mktemp("api") / "mine"
    (path / "features").mkdir(parents=True)
    database = {}
    for number in range(10):
        rng = np.random.default_rng(number)
        array = rng.normal(size=(300, 8)).astype(np.float32)
        annotations = []
        for label, start in (("run", 5.0 + number), ("walk", 18.0 + number % 3)):
            array[round(10 * start) : round(10 * (start + 3)), label == "run"] += 3.0
            annotations.append({"label": label, "segment": [start, start + 3.0]})
        subset = "validation" if number >= 6 else "training"
        database[f"v{number}"] = {
            "subset": subset, "duration": 30.0, "annotations": annotations,
        }  # fmt: skip
        if number != 9:
            np.save(path / "features" / f"v{number}.npy", array)
    (path / "annotations.json").write_text(json.dumps({"database": database}))
    spec = DatasetSpec("mine", feature=FeatureSpec(fps=10), exclude={"lost": ["v9"]})
    save_spec(spec, path)
    return path


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "first"
    return tal_fast.train(folder, out, settings=SMALL, seed=3, threads=1, progress=False)


class TestTrain:
    def test_gives_where_the_weights_are(self, trained):
        assert trained.checkpoint.name == "checkpoint.pt"
        assert trained.checkpoint.exists()
        assert (trained.epochs, trained.videos, trained.unit) == (2, 6, "window of 128 rows")
        assert "2 epochs" in str(trained)
        assert "of 6 videos" in str(trained)
        config = tal_fast.training.load_config(trained.checkpoint.with_name("config.yaml"))
        assert config.name == "tadtr-small"
        assert config.training.seed == 3

    def test_progress_and_notes(self, folder, tmp_path, capsys):
        events = []
        run = tal_fast.train(
            tal_fast.open_dataset(folder), tmp_path / "run", settings=SMALL, videos=["v0", "v1"],
            threads=1, progress=events.append,
        )  # fmt: skip
        assert run.videos == 2
        assert events[-1].step == run.steps
        err = capsys.readouterr().err
        left_out = (
            f"1 of the 10 videos of {folder} left out of training and prediction, lost (exclud"
        )
        assert f"note: {left_out}" in err

    def test_the_same_settings_in_three_forms(self, folder, tmp_path):
        from tal_fast.training.plan import plan_training

        texts = [f"{key}={value}" for key, value in SMALL.items()]
        first = plan_training(folder, tmp_path / "a", settings=SMALL, seed=3).config
        second = plan_training(folder, tmp_path / "b", settings=texts, seed=3).config
        third = plan_training(folder, tmp_path / "c", config=first).config
        assert first == second == third
        tal_fast.training.save_config(first, tmp_path / "config.yaml")
        from_file = plan_training(folder, tmp_path / "d", config=tmp_path / "config.yaml")
        assert from_file.config == first

    def test_the_model_of_a_settings_file_counts(self, folder, tmp_path):
        from tal_fast.training.plan import plan_training

        file = tmp_path / "config.yaml"
        file.write_text("name: temporalmaxer-small\n")
        assert plan_training(folder, tmp_path, config=file).config.name == "temporalmaxer-small"
        file.write_text("training: {epochs: 3}\n")
        plan = plan_training(folder, tmp_path, config=file)
        assert (plan.config.name, plan.config.training.epochs) == ("tadtr-small", 3)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"videos": "trian"}, "videos: expected one of train, test, all, got 'trian'; did you"),
            ({"videos": ["v0", "v1l"]}, r"videos: no video 'v1l' in data set 'mine' \(.*'v1"),
            ({"videos": ["v9"]}, "videos: no video 'v9'"),
            ({"settings": {"training.epoch": 3}}, r"did you mean 'training\.epochs'"),
            ({"settings": ["training.epochs"]}, "expected section.field=value"),
            ({"model": "tadrt"}, "did you mean 'tadtr'"),
        ],
    )
    def test_bad_arguments(self, folder, tmp_path, options, message):
        with pytest.raises((ConfigError, DataError), match=message):
            tal_fast.train(folder, tmp_path / "run", **options)
        assert not (tmp_path / "run").exists()

    def test_a_complete_config_stands_alone(self, folder, tmp_path):
        config = tal_fast.training.preset("tadtr-small")
        with pytest.raises(ConfigError, match="model: config holds all settings"):
            tal_fast.train(folder, tmp_path, config=config, model="tridet")
        with pytest.raises(ConfigError, match="settings: config holds all settings"):
            tal_fast.train(folder, tmp_path, config=config, seed=3)

    def test_what_has_ended_is_not_replaced(self, folder, trained):
        with pytest.raises(ConfigError, match=r"holds a training that has ended.*resume=False"):
            tal_fast.train(folder, trained.checkpoint.parent, settings=SMALL)


class TestPredictAndEvaluate:
    def test_in_memory_as_through_files(self, folder, trained, tmp_path):
        data = tal_fast.open_dataset(folder)
        found = tal_fast.predict(trained, data, progress=False)
        assert found.videos == ("v6", "v7", "v8")
        out = tmp_path / "new" / "results.json"
        again = tal_fast.predict(trained.checkpoint.parent, folder, out, progress=False)
        assert len(again) == len(found)
        scores = [
            tal_fast.evaluate(truth, results)
            for truth in (data, folder, str(folder / "dataset.yaml"))
            for results in (found, out, json.loads(out.read_text()))
        ]
        assert len({score.average_map for score in scores}) == 1
        score = scores[0]
        assert score.num_videos == 4, "the video without features counts, as missed"
        assert list(score.map_at) == [0.3, 0.4, 0.5, 0.6, 0.7]
        assert score.average_map == pytest.approx(np.mean(list(score.map_at.values())))

    def test_predictions_that_are_there_are_not_replaced(self, folder, trained, tmp_path):
        out = tmp_path / "results.json"
        out.write_text("{}")
        with pytest.raises(DataError, match=r"results\.json: already exists; --overwrite \(overwr"):
            tal_fast.predict(trained, folder, out, progress=False)
        assert out.read_text() == "{}"
        tal_fast.predict(trained, folder, out, progress=False, overwrite=True)
        assert json.loads(out.read_text())["results"]
        tal_fast.predict(trained, folder, "/dev/null", progress=False)
        words = ["predict", "--checkpoint", trained.checkpoint, "--data", folder, "--out", out]
        words = list(map(str, words))
        assert cli.main(words) == 1
        assert cli.main([*words, "--overwrite"]) == 0

    def test_progress(self, folder, trained):
        calls = []
        tal_fast.predict(
            trained, folder, videos=["v7"], progress=lambda *at: calls.append(at), device="cpu"
        )
        done, total = calls[-1]
        assert done == total > 0

    def test_data_of_another_rate(self, folder, trained, tmp_path, capsys):
        """Its detections would be in other seconds, and no worse in form than right ones."""
        other = tmp_path / "other"
        shutil.copytree(folder, other)
        spec = load_spec(other / "dataset.yaml")
        save_spec(replace(spec, name="other", feature=replace(spec.feature, fps=20.0)), other)
        with pytest.raises(DataError, match="trained on 10 rows per second, there are 20 in other"):
            tal_fast.predict(trained, other, progress=False)
        out = tmp_path / "results.json"
        command = ["predict", "--checkpoint", trained.checkpoint, "--data", other, "--out", out]
        command = list(map(str, [*command, "--threads", 1]))
        assert cli.main(command) == 1
        assert "there are 20 in other" in capsys.readouterr().err
        assert not out.exists()
        assert cli.main([*command, "--other-rows"]) == 0
        err = capsys.readouterr().err
        assert re.search(r"note: .* trained on 10 rows per second, there are 20 in other", err)
        assert out.exists()

    def test_which_videos_are_scored(self, folder, trained):
        found = tal_fast.predict(trained, folder, videos="train", progress=False)
        with pytest.raises(DataError, match="'v0'"):
            tal_fast.evaluate(folder, found)  # the test videos are others
        by_split = tal_fast.evaluate(folder, found, "0.3:0.7:0.2", split="train")
        by_subset = tal_fast.evaluate(folder, found, [0.3, 0.5, 0.7], subset="training")
        opened = tal_fast.open_dataset(folder)
        of_opened = tal_fast.evaluate(opened, found, [0.3, 0.5, 0.7], subset="training")
        assert by_split.map_at == by_subset.map_at == of_opened.map_at
        assert by_split.num_videos == 6
        assert tal_fast.evaluate(folder, found, split="all").num_videos == 10
        file = folder / "annotations.json"
        assert tal_fast.evaluate(file, found, subset="training").num_videos == 6
        assert tal_fast.evaluate(file, found).num_videos == 10

    def test_bad_arguments(self, folder, trained, tmp_path):
        found = tal_fast.predict(trained, folder, progress=False)
        with pytest.raises(ConfigError, match="split: expected one of train, test, all, got"):
            tal_fast.evaluate(folder, found, split="tets")
        with pytest.raises(ConfigError, match="split: expected either split or subset, got both"):
            tal_fast.evaluate(folder, found, split="test", subset="validation")
        with pytest.raises(ConfigError, match="split: only a data directory has splits"):
            tal_fast.evaluate(folder / "annotations.json", found, split="test")
        with pytest.raises(ConfigError, match="tiou_thresholds: expected values in"):
            tal_fast.evaluate(folder, found, "0.3:2")
        with pytest.raises(tal_fast.errors.TrainingError, match="gone"):
            tal_fast.predict(tmp_path / "gone.pt", folder)


class TestWhatANotebookShows:
    def test_short_words_for_large_things(self, folder, trained):
        data = tal_fast.open_dataset(folder)
        assert repr(data) == (
            "TALDataset('mine': 9 videos (6 train, 3 test), 18 instances of 2 classes, 8 channels, "
            f"'{folder}')"
        )
        assert repr(data.annotations) == "Annotations(18 instances of 2 classes in 9 videos)"
        found = tal_fast.predict(trained, data, progress=False)
        assert repr(found) == f"Detections({len(found)} of 2 classes in 3 videos)"
        score = tal_fast.evaluate(data, found)
        shown = f"EvaluationResult(average mAP {100 * score.average_map:.2f} points; "
        assert repr(score).startswith(shown)
        assert "0.5: " in repr(score)
        assert str(score) == score.table()


class TestRunStudy:
    @pytest.fixture
    def asked(self, monkeypatch):
        specs = []
        result = tal_fast.study.StudyResult([], 0, 4, {"page": Path("report.html")})
        monkeypatch.setattr("tal_fast.study.run_study", lambda spec: specs.append(spec) or result)
        return specs

    def test_defaults_are_those_of_a_study(self, asked, tmp_path):
        result = tal_fast.run_study("data", tmp_path)
        assert asked == [tal_fast.study.StudySpec(data=Path("data"), out=tmp_path)]
        assert repr(result) == (
            "StudyResult(\n  0 trials run, 4 there already\n  page: report.html\n)"
        )

    def test_everything_is_passed_on(self, asked, folder, tmp_path):
        tal_fast.run_study(
            tal_fast.open_dataset(folder), str(tmp_path), model="tridet-small", videos=[3, 6],
            repetitions=2, sampling="video,nested-window", settings={"training.epochs": 1}, seed=4,
            jobs=2, threads=1, budgets="epochs, steps", ema=["off", "plain"], keep="all",
        )  # fmt: skip
        (spec,) = asked
        assert spec == tal_fast.study.StudySpec(
            data=folder, out=tmp_path, model="tridet-small", fractions=(0.5, 1.0), repetitions=2,
            samplings=("video", "nested-window"), overrides={"training.epochs": 1}, seed=4,
            jobs=2, threads=1, budgets=("epochs", "steps"), ema=("off", "plain"), keep="all",
        )  # fmt: skip

    def test_bad_arguments(self, asked, folder, tmp_path):
        with pytest.raises(TypeError, match="no argument 'budget'; did you mean 'budgets'"):
            tal_fast.run_study(folder, tmp_path, budget="steps")
        with pytest.raises(ConfigError, match="expected either fractions or videos, got both"):
            tal_fast.run_study(folder, tmp_path, fractions=0.5, videos=[3])
        with pytest.raises(ConfigError, match="expected values in"):
            tal_fast.run_study(folder, tmp_path, fractions=[0.5, 2])
        assert not asked

    @pytest.mark.slow
    def test_for_real(self, folder, tmp_path):
        result = tal_fast.run_study(
            folder, tmp_path, fractions=[0.5, 1], repetitions=1, settings=SMALL, threads=1
        )
        (curve,) = result.curves
        assert curve.share.tolist() == [50.0, 100.0]
        assert "50 %: " in repr(curve)
        assert "2 trials run, 0 there already" in repr(result)


@pytest.mark.parametrize(
    ("model", "settings", "steps", "said"),
    [
        ("tridet", [], 360, "keep about 70 % of their random start"),
        ("tridet-small", [], 360, None),  # a small preset's trainings are short
        ("tadtr-small", ["training.ema=plain"], 360, "keep about 70 % of their random start"),
        ("tadtr-small", ["training.ema=plain"], 3500, None),
        ("tadtr-small", ["training.ema=plain", "training.ema_decay=0.99"], 360, None),
        ("tadtr-small", ["training.ema=warmup"], 360, None),
        # The last weights are those of the checkpoint.
        ("tadtr-small", ["training.ema=[off,plain]"], 360, None),
    ],
)
def test_an_average_that_keeps_its_random_start_is_told(tmp_path, model, settings, steps, said):
    from tal_fast.training import load_config
    from tal_fast.training.plan import TrainingPlan
    from tal_fast.training.told import TrainingSummary

    config = load_config(preset=model, overrides=settings)
    plan = TrainingPlan(config, None, [], tmp_path, resume=True, first=True, notes=())
    summary = TrainingSummary(tmp_path / "checkpoint.pt", {}, 40, steps, 18, 1.0, 40, {}, 18, "")
    notes = plan.notes_after(summary)
    assert [said in note for note in notes] == ([] if said is None else [True])
