# SPDX-License-Identifier: Apache-2.0
import copy
import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import tal_fast
from tal_fast import cli
from tal_fast.data import load_annotations, open_dataset
from tal_fast.errors import DataError
from tal_fast.evaluation import Detections, evaluate, read_ground_truth

TRUTH = {
    "version": "1",
    "database": {
        "train1": {"subset": "training", "annotations": [{"segment": [0, 5], "label": "jump"}]},
        "test1": {
            "subset": "test",
            "duration": 60,
            "fps": 30,
            "annotations": [
                {"segment": [0, 10], "label": "run"},
                {"segment": [20.0, 30.0], "label": "throw"},
            ],
        },
        "test2": {"subset": "test", "annotations": [{"segment": [5, 15], "label": "run"}]},
        "test3": {"subset": "test", "annotations": []},
    },
}
FOUND = {
    "version": "1",
    "results": {
        "test1": [
            {"segment": [0, 10], "label": "run", "score": 0.9},
            {"segment": [20, 29], "label": "throw", "score": 0.8},
        ],
        "test2": [{"segment": [40, 50], "label": "run", "score": 1}],
    },
    "external_data": {},
}


@pytest.fixture
def truth():
    return copy.deepcopy(TRUTH)


@pytest.fixture
def found():
    return copy.deepcopy(FOUND)


class TestEvaluate:
    def test_values(self, truth, found):
        result = evaluate(truth, found, subset="test")
        # run: false, hit of two instances; throw: perfect; jump has no instance in the subset.
        assert result.classes == ("jump", "run", "throw")
        assert np.isnan(result.ap[0]).all()
        assert result.ap[1].tolist() == [0.25] * 5
        assert result.ap[2].tolist() == [1.0] * 5
        assert result.average_map == 0.625
        assert result.map_per_threshold.tolist() == [0.625] * 5
        assert result.tiou_thresholds == (0.3, 0.4, 0.5, 0.6, 0.7)
        assert (result.num_videos, result.num_ground_truth, result.num_predictions) == (3, 3, 3)
        assert result.absent_classes == ("jump",)
        assert result.dialect == "tal_fast"

    def test_without_subset_every_video_counts(self, truth, found):
        result = evaluate(truth, found)
        assert result.num_videos == 4
        assert result.ap[0].tolist() == [0.0] * 5
        assert result.average_map == pytest.approx(1.25 / 3)

    def test_paths_and_mappings_agree(self, truth, found, tmp_path):
        (tmp_path / "gt.json").write_text(json.dumps(truth))
        (tmp_path / "found.json").write_text(json.dumps(found))
        by_path = evaluate(tmp_path / "gt.json", str(tmp_path / "found.json"), (0.5,), "test")
        by_mapping = evaluate(truth, found, (0.5,), "test")
        assert by_path.to_dict() == by_mapping.to_dict()

    def test_annotations_of_the_data_layer(self, truth, found):
        del truth["database"]["train1"]
        for video in truth["database"].values():
            video["duration"] = 60
        annotations = load_annotations(truth)
        assert evaluate(annotations, found).average_map == 0.625
        assert evaluate(annotations, found, subset="test").average_map == 0.625
        with pytest.raises(DataError, match=r"'test1' \(and 1 more\) is not in ground truth"):
            evaluate(annotations.select(["test3"]), found)

    def test_detections_object(self, truth):
        found = Detections.from_videos({"test1": ([[0, 10]], ["run"], [0.9])}, ["run"])
        assert evaluate(truth, found, subset="test").ap[1, 0] == 0.5

    def test_detections_may_be_columns_of_a_matrix(self, truth):
        rows = np.array([[0, 10, 0.9], [20, 30, 0.8]])
        number = np.zeros(2, dtype=np.int64)
        found = Detections(("test1",), ("run",), number, number, *rows.T)
        assert evaluate(truth, found, subset="test").ap[1, 0] == 0.5

    def test_empty_results(self, truth):
        for content in ({"results": {}}, {"results": {"test1": []}}):
            with pytest.raises(DataError, match="expected at least one prediction, got none"):
                evaluate(truth, content, subset="test")
            lenient = evaluate(truth, content, subset="test", dialect="opentad", strict=True)
            assert lenient.average_map == 0.0

    def test_numpy_numbers_are_numbers(self, truth, found):
        entry = found["results"]["test1"][0]
        entry["segment"] = np.array(entry["segment"], dtype=np.float32)
        entry["score"] = np.float32(0.5)
        assert evaluate(truth, found, subset="test").average_map == 0.625

    def test_numpy_ground_truth(self, truth, found):
        entry = truth["database"]["test1"]
        entry["duration"] = np.float32(60)
        entry["annotations"] = np.array(
            [
                {"segment": np.array([0, 10], np.float32), "label": np.str_("run")},
                {"segment": torch.tensor([20, 30]), "label": np.str_("throw")},
            ]
        )
        assert evaluate(truth, found, subset="test").average_map == 0.625
        assert read_ground_truth(truth).durations[1] == 60
        entry["duration"] = 10**400
        assert read_ground_truth(truth).durations is None

    def test_input_is_left_alone(self, truth, found):
        evaluate(truth, found, subset="test")
        assert (truth, found) == (TRUTH, FOUND)

    def test_to_dict_is_json(self, truth, found):
        text = json.dumps(evaluate(truth, found, subset="test").to_dict(), allow_nan=False)
        content = json.loads(text)
        assert content["average_map"] == 0.625
        assert content["classes"][0] == {
            "name": "jump",
            "ground_truth": 0,
            "predictions": 0,
            "true_positives": [0] * 5,
            "ap": [None] * 5,
        }

    def test_table(self, truth, found):
        lines = evaluate(truth, found, (0.5, 0.75), "test").table().splitlines()
        assert lines[0].split() == [
            "class",
            "instances",
            "predictions",
            "AP@0.5",
            "AP@0.75",
            "mean",
        ]
        assert lines[2].split() == ["jump", "0", "0", "-", "-", "-"]
        assert lines[3].split() == ["run", "2", "2", "25.00", "25.00", "25.00"]
        assert lines[-3].split() == ["mAP", "3", "3", "62.50", "62.50", "62.50"]
        assert lines[-1] == "1 class without ground truth is left out of the means"
        assert len({len(line) for line in lines[:-2]}) == 1

    def test_importing_does_not_import_torch(self):
        code = "import sys, tal_fast.evaluation; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestDataDirectory:
    """Scoring looks at the annotations of a data directory and at nothing else of it."""

    @pytest.fixture
    def folder(self, tmp_path):
        """Two test videos and a training video, each with features, and an instance cut short."""
        run = {"label": "run", "label_id": 1}
        database = {
            name: {
                "subset": "training" if name == "c" else "test",
                "duration": 10.0,
                "fps": 1.0,
                "annotations": [{**run, "segment": [4.0, 14.0] if name == "a" else [1.0, 3.0]}],
            }
            for name in "abc"
        }
        database["x"] = {**database["c"], "subset": "none of the splits"}
        (tmp_path / "annotations.json").write_text(json.dumps({"database": database}))
        (tmp_path / "dataset.yaml").write_text(
            "name: x\nsplits: {train: training, test: test}\nout_of_range: clamp\n"
            "unmatched: skip\nfeature: {channels: 2}\n"
        )
        (tmp_path / "features").mkdir()
        for name in "abc":
            np.save(tmp_path / "features" / f"{name}.npy", np.zeros((10, 2), np.float32))
        return tmp_path

    def found(self, **segments):
        return {
            "results": {
                name: [{"segment": segment, "label": "run", "score": 0.5}]
                for name, segment in segments.items()
            }
        }

    def test_lost_features_change_no_number(self, folder):
        found = self.found(b=[1.0, 3.0])
        assert evaluate(folder, found, subset="test").average_map == 0.5
        (folder / "features" / "a.npy").unlink()
        assert evaluate(folder, found, subset="test").average_map == 0.5
        shutil.rmtree(folder / "features")
        assert evaluate(str(folder), found, subset="test").average_map == 0.5
        assert sorted(read_ground_truth(folder / "dataset.yaml").videos) == ["a", "b", "c"]

    def test_truth_is_not_cut(self, folder):
        truth = self.found(a=[4.0, 14.0], b=[1.0, 3.0])
        assert evaluate(folder, truth, (0.9,), subset="test").average_map == 1.0
        cut = self.found(a=[4.0, 10.0], b=[1.0, 3.0])
        assert evaluate(folder, cut, (0.9,), subset="test").average_map == 0.25
        # Targets of training are.
        assert open_dataset(folder).annotations.videos["a"].segments.tolist() == [[4.0, 10.0]]

    def test_segments_beyond_their_video_are_noted_where_they_are_scored(self, folder):
        found = self.found(a=[4.0, 14.0], b=[1.0, 3.0])
        notes = [str(note) for note in evaluate(folder, found, subset="test").notes]
        assert notes == [
            "1 segment reaches beyond the video; they are scored as the annotations have them"
        ]
        other = evaluate(folder, self.found(c=[1.0, 3.0]), subset="training")
        assert not other.notes
        cut = load_annotations(folder / "annotations.json", out_of_range="clamp")
        of_all = self.found(a=[4.0, 14.0], **{name: [1.0, 3.0] for name in "bcx"})
        (note,) = evaluate(cut, of_all).notes
        assert "1 cut to it and 0 left out when they were loaded" in str(note)

    def test_videos_of_another_split_are_named_as_such(self, folder):
        message = (
            "2 of 3 predicted videos not in split 'train' of .*, but 2 of split 'test', the first "
            r"is 'a'; score what was predicted with --split test \(split='test'\)"
        )
        found = self.found(a=[1, 2], b=[1, 2], c=[1, 2])
        with pytest.raises(DataError, match=message):
            tal_fast.evaluate(folder, found, split="train")
        with pytest.raises(DataError, match="2 of split 'test'"):
            tal_fast.evaluate(open_dataset(folder), found, split="train")

    def test_a_table_is_no_annotation_file(self, tmp_path):
        table = tmp_path / "segments.csv"
        table.write_text("video,start,end,label\na,1,2,run\n")
        message = r"got a table; make .*: tal-fast prepare csv --segments \S+segments\.csv --featur"
        with pytest.raises(DataError, match=message):
            evaluate(table, self.found(a=[1, 2]))

    def test_subsets_are_compared_as_the_dialect_does(self, folder):
        text = (folder / "annotations.json").read_text().replace('"test"', '"Test"')
        (folder / "annotations.json").write_text(text)
        spec = (folder / "dataset.yaml").read_text().replace("test: test", "test: Test")
        (folder / "dataset.yaml").write_text(spec)
        found = self.found(b=[1.0, 3.0])
        assert evaluate(folder, found, subset="test", dialect="actionformer").average_map == 0.5
        with pytest.raises(DataError, match=r"expected a subset among .*'Test'.*, got 'test'"):
            evaluate(folder, found, subset="test")

    @pytest.mark.filterwarnings("ignore:.*'walk' has no instance")
    @pytest.mark.parametrize("strict", [False, True])
    @pytest.mark.parametrize(("dialect", "average"), [("mmaction2", 1.0), ("tadtr", None)])
    def test_rules_for_names_and_listed_classes(self, folder, dialect, average, strict):
        file = folder / "annotations.json"
        content = json.loads(file.read_text())
        content["database"] = {f"v_{name}": entry for name, entry in content["database"].items()}
        file.write_text(json.dumps({**content, "classes": ["walk", "run"]}))
        cut = "" if dialect == "mmaction2" else "v_"
        found = self.found(**{cut + "a": [4.0, 14.0], cut + "b": [1.0, 3.0]})
        options = {"subset": "test", "dialect": dialect, "strict": strict}
        alone = evaluate(file, found, **options).average_map
        assert alone == (average or (0.5 if strict else 1.0))
        for source in (folder, load_annotations(file, out_of_range="keep")):
            assert evaluate(source, found, **options).average_map == alone

    def test_on_the_command_line(self, folder, capsys):
        (folder / "features" / "a.npy").unlink()
        (folder / "found.json").write_text(json.dumps(self.found(a=[4.0, 14.0], b=[-1.0, 3.0])))
        arguments = ["evaluate", "--annotations", str(folder), "--subset", "test"]
        arguments += ["--predictions", str(folder / "found.json"), "--tiou", "0.5"]
        assert cli.main(arguments) == 0
        captured = capsys.readouterr()
        mean, unit = captured.out.splitlines()[-2:]
        assert mean.split() == ["mAP", "2", "2", "100.00", "100.00"]
        assert unit == "in points, 0 to 100"
        assert "note: 1 of 2 predictions start before 0 s" in captured.err
        assert cli.main([*arguments, "--strict-times"]) == 1
        assert "video 'b', prediction 0: expected a start >= 0 s" in capsys.readouterr().err

    def test_a_directory_that_is_none(self, tmp_path):
        with pytest.raises(DataError, match=r"expected a data directory, with a dataset\.yaml"):
            evaluate(tmp_path, self.found())


class TestClassOrder:
    @staticmethod
    def classes(*ids):
        items = [{"segment": [0, 1], "label": name} for name in ("c", "a", "b")]
        for item, number in zip(items, ids, strict=False):
            item["label_id"] = number
        return read_ground_truth({"database": {"v": {"annotations": items}}}).classes

    def test_by_label_id(self):
        assert self.classes(0, 2, 1) == ("c", "b", "a")

    @pytest.mark.parametrize("ids", [(), (0, 2), (0, 0, 1), (0, 1, "2"), (0, 1, True)])
    def test_by_name_when_an_id_is_missing_or_unclear(self, ids):
        assert self.classes(*ids) == ("a", "b", "c")


class TestBadPredictions:
    @pytest.mark.parametrize(
        ("record", "message"),
        [
            ({"score": math.nan}, "video 'test1', prediction 1: expected a finite score, got nan"),
            ({"score": math.inf}, "prediction 1: expected a finite score, got inf"),
            ({"score": "0.5"}, "prediction 1: expected score as a number, got '0.5'"),
            ({"score": None}, "prediction 1: expected score as a number, got None"),
            ({"score": True}, "prediction 1: expected score as a number, got True"),
            ({"score": 10**400}, "prediction 1: expected score as a number, got 1000"),
            ({"segment": [9, 2]}, r"prediction 1: segment \[9.0, 2.0\] ends before it starts"),
            ({"segment": [0, math.nan]}, r"prediction 1: segment \[0.0, nan\] is not finite"),
            ({"segment": [-math.inf, 0]}, r"prediction 1: segment \[-inf, 0.0\] is not finite"),
            (
                {"segment": [1]},
                r"prediction 1: expected segment \[start, end\] in seconds, got \[1",
            ),
            ({"segment": [1, 2, 3]}, r"prediction 1: expected segment \[start, end\]"),
            ({"segment": "12"}, r"prediction 1: expected segment \[start, end\].*got '12'"),
            ({"segment": 5}, r"prediction 1: expected segment \[start, end\].*got 5"),
            ({"segment": [1, "2"]}, "prediction 1: expected the segment's end as a number"),
            ({"segment": [None, 2]}, "prediction 1: expected the segment's start as a number"),
            ({"label": 7}, "prediction 1: label 7 is not among the 3 classes"),
            ({"label": None}, "prediction 1: expected label as a class name or number, got None"),
            ({"label": "trow"}, "label 'trow' is not among the 3 classes.*did you mean 'throw'"),
        ],
    )
    def test_bad_value(self, truth, found, record, message):
        found["results"]["test1"][1].update(record)
        with pytest.raises(DataError, match=message):
            evaluate(truth, found, subset="test")

    @pytest.mark.parametrize("key", ["segment", "label", "score"])
    def test_missing_key(self, truth, found, key):
        del found["results"]["test2"][0][key]
        with pytest.raises(DataError, match=f"video 'test2', prediction 0: no '{key}' among"):
            evaluate(truth, found, subset="test")

    def test_record_is_no_object(self, truth, found):
        found["results"]["test2"] = [["run", 0, 1]]
        with pytest.raises(DataError, match="video 'test2', prediction 0: expected an object"):
            evaluate(truth, found, subset="test")

    def test_video_is_no_list(self, truth, found):
        found["results"]["test2"] = {"segment": [0, 1]}
        with pytest.raises(DataError, match="video 'test2': expected a list of predictions"):
            evaluate(truth, found, subset="test")

    def test_unknown_video(self, truth, found):
        found["results"]["tset2"] = []
        with pytest.raises(DataError, match=r"video 'tset2' is not in.*did you mean 'test2'"):
            evaluate(truth, found, subset="test")

    def test_video_of_another_subset(self, truth, found):
        found["results"]["train1"] = []
        message = "1 of 3 predicted videos not in subset 'test'.*, but 1 of subset 'training', the"
        with pytest.raises(DataError, match=message):
            evaluate(truth, found, subset="test")
        evaluate(truth, found)

    def test_faults_are_counted(self, truth, found):
        for record in found["results"]["test1"]:
            record["score"] = math.nan
        with pytest.raises(DataError, match=r"prediction 0: .* got nan \(and 1 more\)"):
            evaluate(truth, found, subset="test")

    @pytest.mark.parametrize("content", [{}, {"results": []}, {"detections": {}}])
    def test_no_results(self, truth, content):
        with pytest.raises(DataError, match=r"predictions: expected an object with .* 'results'"):
            evaluate(truth, content)

    def test_file_names_are_in_the_message(self, truth, tmp_path):
        path = tmp_path / "found.json"
        path.write_text(
            '{"results": {"test1": [{"segment": [0, 1], "label": "run", "score": NaN}]}}'
        )
        with pytest.raises(DataError, match=r"found\.json: video 'test1', prediction 0: .*got nan"):
            evaluate(truth, path)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"results": {"test1": [', "not valid JSON at line 1.*is it truncated"),
            ('{"results": {"tes', "not valid JSON.*Unterminated string.*is it truncated"),
            ("", "not valid JSON.*the file is empty"),
            ("{'results': {}}", "not valid JSON at line 1, column 2"),
            ("[1, 2]", "expected an object with an object 'results', got list"),
            ("\x80", "not valid JSON|expected JSON in UTF-8"),
            ("[" * 100_000, "nested too deeply|not valid JSON"),
        ],
    )
    def test_bad_file(self, truth, tmp_path, text, message):
        path = tmp_path / "found.json"
        path.write_text(text, encoding="latin-1")
        with pytest.raises(DataError, match=message) as caught:
            evaluate(truth, path)
        assert str(path) in str(caught.value)

    def test_missing_file(self, truth, tmp_path):
        with pytest.raises(DataError, match=r"none\.json: no such file \(predictions\)"):
            evaluate(truth, tmp_path / "none.json")

    def test_directory(self, truth, tmp_path):
        with pytest.raises(DataError, match="cannot be read: expected a file, found a dir"):
            evaluate(truth, tmp_path)

    def test_wrong_type(self, truth):
        with pytest.raises(DataError, match="predictions: expected a path or a mapping, got list"):
            evaluate(truth, [1, 2])


class TestBadGroundTruth:
    @pytest.mark.parametrize(
        ("record", "message"),
        [
            (
                {"segment": [30, 20]},
                "video 'test1', annotation 1: segment .* ends before it starts",
            ),
            ({"segment": [0, math.nan]}, "video 'test1', annotation 1: segment .* is not finite"),
            ({"segment": [3]}, r"video 'test1', annotation 1: expected segment \[start, end\]"),
            ({"segment": ["a", 3]}, "annotation 1: expected the segment's start as a number"),
            ({"label": 7}, "video 'test1', annotation 1: expected label as a class name, got 7"),
        ],
    )
    def test_bad_value(self, truth, found, record, message):
        truth["database"]["test1"]["annotations"][1].update(record)
        with pytest.raises(DataError, match=message):
            evaluate(truth, found, subset="test")

    @pytest.mark.parametrize(
        ("key", "message"),
        [
            ("segment", "annotation 1: no 'segment' among"),
            ("label", "annotation 1: expected label"),
        ],
    )
    def test_missing_key(self, truth, found, key, message):
        del truth["database"]["test1"]["annotations"][1][key]
        with pytest.raises(DataError, match=f"video 'test1', {message}"):
            evaluate(truth, found, subset="test")

    def test_segments_of_other_subsets_are_not_looked_at(self, truth, found):
        truth["database"]["train1"]["annotations"][0]["segment"] = None
        evaluate(truth, found, subset="test")

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            ([], "video 'test1': expected an object, got list"),
            ({"annotations": {}}, "video 'test1': expected a list of annotations, got dict"),
            ({"annotations": [3]}, "video 'test1', annotation 0: expected an object, got 3"),
        ],
    )
    def test_bad_video(self, truth, found, entry, message):
        truth["database"]["test1"] = entry
        with pytest.raises(DataError, match=message):
            evaluate(truth, found)

    def test_unknown_subset(self, truth, found):
        message = "expected a subset among .*'test', 'training'.*, got 'tests'; did you mean 'test'"
        with pytest.raises(DataError, match=message):
            evaluate(truth, found, subset="tests")

    def test_no_instance(self, truth):
        truth["database"]["test3"]["subset"] = "empty"
        with pytest.raises(DataError, match="expected at least one annotation in subset 'empty'"):
            evaluate(truth, {"results": {}}, subset="empty")

    @pytest.mark.parametrize("content", [{}, {"database": []}, {"videos": {}}])
    def test_no_database(self, found, content):
        with pytest.raises(DataError, match=r"ground truth: expected an object with .* 'database'"):
            evaluate(content, found)

    def test_truncated(self, truth, found, tmp_path):
        text = json.dumps(truth)
        for size in range(len(text)):
            (tmp_path / "gt.json").write_text(text[:size])
            with pytest.raises(DataError, match=r"gt\.json: not valid JSON"):
                evaluate(tmp_path / "gt.json", found)

    def test_wrong_type(self, found):
        with pytest.raises(DataError, match="ground truth: expected a path or a mapping, got int"):
            evaluate(3, found)
