# SPDX-License-Identifier: Apache-2.0
"""Labels that are numbers: the class that has this label_id in the annotations, or an error."""

import json

import numpy as np
import pytest

from tal_fast.data import Annotations, load_annotations, save_annotations
from tal_fast.errors import DataError
from tal_fast.evaluation import Detections, Evaluator, evaluate, write_results

WALK, RUN, SIT = ("walk", 1), ("run", 2), ("sit", 3)


def truth_of(*items, **more):
    """A video with an instance of each (label, label_id) every 3 s."""
    annotations = [
        {
            "segment": [3 * k, 3 * k + 1],
            "label": name,
            **({} if number is None else {"label_id": number}),
        }
        for k, (name, number) in enumerate(items)
    ]
    video = {"subset": "t", "duration": 50.0, "annotations": annotations}
    return {"database": {"v": video}, **more}


def found_of(*labels):
    return {
        "results": {
            "v": [
                {"segment": [3 * k, 3 * k + 1], "label": label, "score": 0.9}
                for k, label in enumerate(labels)
            ]
        }
    }


def directory(tmp_path, truth, classes):
    (tmp_path / "annotations.json").write_text(json.dumps(truth))
    (tmp_path / "dataset.yaml").write_text(
        json.dumps({"name": "x", "splits": {"test": "t"}, "classes": classes})
    )
    return tmp_path


@pytest.fixture(params=["mapping", "loaded", "directory", "saved", "other order"])
def scored(request, tmp_path):
    """Scores predictions against annotations that were read in one of several ways."""

    def score(truth, found):
        names = list(dict.fromkeys(a["label"] for a in truth["database"]["v"]["annotations"]))
        source = {
            "mapping": lambda: truth,
            "loaded": lambda: load_annotations(truth),
            "directory": lambda: directory(tmp_path, truth, None),
            "saved": lambda: save_annotations(load_annotations(truth), tmp_path / "saved.json"),
            "other order": lambda: directory(tmp_path, truth, names[::-1]),
        }[request.param]
        return evaluate(source(), found).average_map

    return score


class TestIdsAreKept:
    def test_on_every_way(self, scored):
        assert scored(truth_of(WALK, RUN, SIT), found_of(1, 2)) == pytest.approx(2 / 3)
        assert scored(truth_of(WALK, RUN, SIT), found_of(1, 2, 3)) == 1.0

    def test_with_holes_and_in_any_order(self, scored):
        truth = truth_of(("walk", 40), ("run", 7), ("sit", -2))
        assert scored(truth, found_of(40, 7, -2)) == 1.0
        assert scored(truth, found_of(7, 40, -2)) == pytest.approx(1 / 3)

    def test_ids_are_of_the_whole_file(self):
        truth = truth_of(WALK, RUN)
        truth["database"]["w"] = {**truth_of(SIT)["database"]["v"], "subset": "u"}
        for source in (truth, load_annotations(truth)):
            assert evaluate(source, found_of(1, 2), subset="t").average_map == 1.0
            assert evaluate(source, found_of(3, 2), subset="t").average_map == 0.5

    @pytest.mark.parametrize("names", [["sit", "run", "walk"], ["jump", "sit", "run", "walk"]])
    def test_a_list_in_another_order_renumbers_nothing(self, names):
        truth = truth_of(WALK, RUN, SIT, classes=names)
        for source in (truth, load_annotations(truth), load_annotations(truth, classes=names)):
            assert evaluate(source, found_of(1, 2)).average_map == pytest.approx(2 / 3)
            with pytest.raises(DataError, match="label 0 is not among the"):
                evaluate(source, found_of(0))

    def test_a_list_numbers_what_has_no_instance_where_it_agrees(self):
        names = ["jump", "walk", "run", "sit", "hop"]
        truth = truth_of(WALK, RUN, SIT, classes=names)
        result = evaluate(truth, found_of(1, 2, 4))
        assert dict(zip(result.classes, result.predictions_per_class.tolist(), strict=True)) == {
            "jump": 0, "walk": 1, "run": 1, "sit": 0, "hop": 1,
        }  # fmt: skip

    def test_a_list_alone_numbers_the_classes(self, scored):
        items = [(name, None) for name in ("walk", "run", "sit")]
        names = ["sit", "walk", "run"]
        assert evaluate(truth_of(*items, classes=names), found_of(1, 2, 0)).average_map == 1.0
        listed = load_annotations(truth_of(*items), classes=names)
        assert evaluate(listed, found_of(1, 2, 0)).average_map == 1.0

    def test_annotations_made_by_hand_number_by_their_list(self):
        loaded = load_annotations(truth_of(WALK, RUN, SIT))
        by_hand = Annotations(loaded.videos, loaded.classes)
        assert evaluate(by_hand, found_of(0, 1, 2)).average_map == 1.0

    def test_subsets_and_selections_keep_them(self):
        loaded = load_annotations(truth_of(WALK, RUN, SIT))
        for source in (loaded.subset("t"), loaded.select(["v"])):
            assert evaluate(source, found_of(1, 2, 3)).average_map == 1.0

    def test_written_and_collected_results(self, tmp_path):
        truth = load_annotations(truth_of(WALK, RUN, SIT))
        arrays = (np.array([[0, 1], [3, 4]]), np.array([0, 1], np.uint8), np.ones(2))
        path = write_results(tmp_path / "r.json", {"v": arrays}, np.array([1, 2]))
        assert json.loads(path.read_text())["results"]["v"][1]["label"] == 2
        assert evaluate(truth, path).average_map == pytest.approx(2 / 3)
        assert evaluate(truth, Detections.from_videos({"v": arrays}, [1, 2])).average_map == (
            pytest.approx(2 / 3)
        )
        evaluator = Evaluator(truth)
        evaluator.add("v", arrays[0], np.array([1, 2], np.int16), arrays[2])
        assert evaluator.result().average_map == pytest.approx(2 / 3)


DOUBTFUL = [
    ((WALK, RUN, ("sit", None)), r"incomplete \(1 of 3 .*annotation 2 \('sit'\)"),
    ((WALK, RUN, SIT, ("walk", None)), r"incomplete \(1 of 4 .*annotation 3 \('walk'\)"),
    ((WALK, RUN, ("sit", "3")), r"incomplete \(1 of 3"),
    ((WALK, RUN, ("sit", True)), r"incomplete \(1 of 3"),
    ((WALK, RUN, ("sit", 1)), r"'sit' with label_id 1 contradicts label_id 1 of 'walk'"),
    ((WALK, RUN, SIT, ("run", 4)), r"'run' with label_id 4 contradicts label_id 2 of 'run'"),
    ((("walk", None), ("run", None)), r"no numbers \(no label_id"),
]


class TestIdsInDoubt:
    @pytest.mark.parametrize(("items", "message"), DOUBTFUL)
    @pytest.mark.parametrize("strict", [False, True])
    def test_numbers_are_an_error_and_names_are_not(self, items, message, strict):
        truth = truth_of(*items)
        with pytest.raises(
            DataError, match=rf"'v', prediction 1: label 1 is not among .* classes .*{message}"
        ):
            evaluate(truth, found_of("run", 1), dialect="opentad", strict=strict)
        names = [name for name, _ in items]
        assert evaluate(truth, found_of(*names)).average_map == 1.0

    @pytest.mark.parametrize(("items", "message"), DOUBTFUL)
    def test_loaded_annotations(self, items, message, tmp_path):
        truth = truth_of(*items)
        names = [name for name, _ in items]
        contradicting = "contradicts" in message
        loaded = load_annotations(truth, classes=sorted(set(names)) if contradicting else None)
        with pytest.raises(DataError, match=message):
            evaluate(loaded, found_of(1))
        assert evaluate(loaded, found_of(*names)).average_map == 1.0
        if "1 of 3" in message:  # a class without a number stays one
            saved = save_annotations(loaded, tmp_path / "saved.json")
            with pytest.raises(DataError, match="incomplete"):
                evaluate(saved, found_of(1))

    def test_doubt_in_another_subset(self):
        truth = truth_of(WALK, RUN)
        truth["database"]["w"] = {**truth_of(("walk", None))["database"]["v"], "subset": "u"}
        for source in (truth, load_annotations(truth)):
            with pytest.raises(DataError, match=r"incomplete \(1 of 3 .*video 'w', annotation 0"):
                evaluate(source, found_of(1, 2), subset="t")

    def test_lists_that_differ(self):
        truth = truth_of(("walk", None), ("run", None), classes=["walk", "run"])
        loaded = load_annotations(truth, classes=["run", "walk"])
        with pytest.raises(DataError, match="two lists of classes order them differently"):
            evaluate(loaded, found_of(0, 1))

    def test_a_label_outside_the_list(self):
        truth = truth_of(("walk", None), ("run", None), classes=["walk"])
        with pytest.raises(DataError, match=r"incomplete \('run' has no label_id and is not in"):
            evaluate(truth, found_of(0, 1))
