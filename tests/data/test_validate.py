# SPDX-License-Identifier: Apache-2.0
"""Every planted fault is found, sound data has none, and those of public annotations are known."""

import html.parser
import json
import sys

import numpy as np
import pytest

from tal_fast.data.dataset import open_dataset
from tal_fast.data.streams import streams_of
from tal_fast.data.validation import FeatureQuestion, validate, validate_dataset, write_report
from tal_fast.data.validation.result import CHECKS
from tal_fast.data.validation.timing import Proposal, propose
from tal_fast.data.windows import WindowRule, WindowSet
from tal_fast.errors import ConfigError, DataError, MissingExtraError

CHANNELS = 5


class Planted:
    """Sound data of 12 videos (stride 4, 16 frames, 30 fps); plant a fault, then look."""

    def __init__(self, path):
        self.path = path
        self.rng = np.random.default_rng(0)
        self.database = {}
        self.features = {}
        self.options = {}
        self.stride, self.frames, self.fps = 4, 16, 30.0
        for i in range(12):
            seconds = float(10 + 7 * i)
            rows = int((seconds * 30 - 16) // 4) + 1
            self.database[f"clip{i:02d}"] = {
                "subset": "testing" if i % 3 == 2 else "training",
                "duration": seconds,
                "fps": 30.0,
                "annotations": [
                    {"label": label, "label_id": k, "segment": [1.0 + k, 2.5 + k]}
                    for k, label in enumerate(("jump", "run", "swim"))
                ],
            }
            self.features[f"clip{i:02d}"] = self.rng.normal(size=(rows, CHANNELS)).astype("f4")
        (path / "features").mkdir()

    def instance(self, video, position=0):
        return self.database[video]["annotations"][position]

    def look(self, **options):
        for name, values in self.features.items():
            np.save(self.path / "features" / f"{name}.npy", values)
        text = json.dumps({"database": self.database})
        (self.path / "annotations.json").write_text(text)
        return self.question(**options)

    def question(self, **options):
        question = FeatureQuestion(
            streams_of(self.path / "features"), self.stride, self.frames, self.fps
        )
        options = {"splits": {"train": "training", "test": "testing"}, **self.options, **options}
        return validate(self.path / "annotations.json", question, **options)


@pytest.fixture
def planted(tmp_path):
    return Planted(tmp_path)


def test_sound_data_has_no_findings(planted):
    calls = []
    result = planted.look(progress=lambda *args: calls.append(args))
    assert result.findings == ()
    assert result.ok
    assert result.fitting == 1
    assert (result.channels, result.content) == (CHANNELS, True)
    assert calls == [(i + 1, 12, f"clip{i:02d}") for i in range(12)]
    assert [(s.name, s.videos, s.instances) for s in result.splits] == [
        ("train", 8, 24), ("test", 4, 12),
    ]  # fmt: skip
    assert result.table().endswith("training may start")


def edit(video, **changes):
    def plant(p):
        p.database[video].update(changes)

    return plant


def segment(video, start, end):
    def plant(p):
        p.instance(video)["segment"] = [start, end]

    return plant


def annotation(video, **changes):
    def plant(p):
        p.instance(video).update(changes)

    return plant


def feature(video, change):
    def plant(p):
        p.features[video] = change(p.features[video])

    return plant


def value(row, channel, number):
    def change(array):
        array[row, channel] = number
        return array

    return change


def drop_file(p):
    del p.features["clip03"]


def add_file(p):
    p.features["nobody"] = p.features["clip03"] + 1


def no_class_in_training(p):
    for name, entry in p.database.items():
        if entry["subset"] == "training":
            del entry["annotations"][1]
            assert name


def constant(p):
    for array in p.features.values():
        array[:, 3] = 0.5


def copy(to):
    def plant(p):
        p.features[to] = p.features["clip00"].copy()
        p.database[to]["duration"] = p.database["clip00"]["duration"]

    return plant


def twice(p):
    p.database["clip04"]["annotations"].append(dict(p.instance("clip04")))


def twin(p):
    p.database["v_CLIP00"] = {**p.database["clip00"], "subset": "testing"}
    p.features["v_CLIP00"] = p.features["clip00"] * 2


def rare(p):
    item = p.instance("clip00")
    p.database["clip00"]["annotations"] += [
        {**item, "segment": [1 + 0.004 * i, 3]} for i in range(400)
    ]


@pytest.mark.parametrize(
    ("plant", "check", "severity", "text"),
    [
        (edit("clip01", duration=None), "duration", "error", "video 'clip01'"),
        (edit("clip01", duration=-3), "duration", "error", "video 'clip01'"),
        (annotation("clip01", label=3), "malformed", "error", "'clip01', annotation 0"),
        (annotation("clip01", segment=[1]), "malformed", "error", "'clip01', annotation 0"),
        (annotation("clip01", segment=[1, "2"]), "malformed", "error", "'clip01', annotation 0"),
        (annotation("clip01", segment=[1, float("nan")]), "malformed", "error", "annotation 0"),
        (annotation("clip01", label_id=2), "label", "error", "'jump' with 2, elsewhere"),
        (segment("clip01", 2, 2), "non-positive", "error", "'clip01', annotation 0: [2, 2]"),
        (segment("clip01", 3, 2), "non-positive", "error", "[3, 2]"),
        (segment("clip01", -0.5, 2), "out-of-range", "error", "[-0.5, 2] in a video of 17 s"),
        (segment("clip01", 3, 17.1), "out-of-range", "error", "[3, 17.1] in a video of 17 s"),
        (twice, "duplicate", "warning", "[1, 2.5] jump as annotation 0"),
        (edit("clip01", annotations=[]), "no-instance", "warning", "video 'clip01'"),
        (edit("clip01", subset="nope"), "subset", "warning", "'clip01': subset 'nope'"),
        (no_class_in_training, "class-missing", "error", "'run', 4 instances elsewhere"),
        (rare, "imbalance", "warning", "'jump' 408, 'run' 8"),
        (drop_file, "missing-features", "error", "'clip03': no 'clip03.npy'"),
        (add_file, "extra-features", "warning", "video 'nobody'"),
        (feature("clip01", lambda a: a.astype(int)), "unreadable", "error", "got int64"),
        (feature("clip01", lambda a: a[:, :3]), "channels", "error", "'clip01': 3"),
        (feature("clip01", lambda a: a[:CHANNELS].T[:, :4]), "channels", "error", "'clip01': 4"),
        (feature("clip01", lambda a: a[:60]), "timing", "error", "17.00 s, but 60 rows cover 8.40"),
        (feature("clip01", value(5, 2, np.nan)), "not-finite", "error",
         "'clip01': 1 of 124 rows, first row 5, channel 2: nan"),
        (feature("clip01", value(5, 2, -np.inf)), "not-finite", "error", "channel 2: -inf"),
        (constant, "constant-channel", "warning", "channel 3: 0.5 in every row"),
        (copy("clip01"), "same-features", "warning", "'clip00' (train) and 'clip01' (train)"),
        (copy("clip02"), "leakage", "error", "'clip00' (train) and 'clip02' (test)"),
        (twin, "leakage", "error", "'clip00' in train, 'v_CLIP00' in test"),
    ],
)  # fmt: skip
def test_planted_fault(planted, plant, check, severity, text):
    plant(planted)
    result = planted.look()
    found = [finding for finding in result.findings if finding.check == check]
    assert [(f.severity, f.count) for f in found] == [(severity, 1)]
    assert text in found[0].examples[0]
    assert result.ok == (severity != "error")
    # Nothing else is found, but for what the fault itself brings along.
    brought = {
        "no_class_in_training": set(), "twin": set(), "copy": {"timing"},
    }.get(plant.__qualname__.split(".")[0], set())  # fmt: skip
    if check == "channels":
        brought = {"timing", "never-learned"}  # of swapped axes
    assert {f.check for f in result.findings} - {check} <= brought
    if severity == "error":
        accepted = planted.question(accept=[check, *brought])
        assert accepted.ok
        assert next(f for f in accepted.findings if f.check == check).severity == "accepted"
        assert f"training may not start: {check}" in result.table()


def test_unknown_label_and_ignored_ones(planted):
    planted.instance("clip05")["label"] = "jmp"
    del planted.instance("clip05")["label_id"]
    result = planted.look(classes=("jump", "run", "swim"))
    (finding,) = result.errors
    assert finding.check == "label"
    assert "'jmp'; did you mean 'jump'" in finding.examples[0]
    assert planted.question(classes=("jump", "run", "swim"), ignore_labels=["jmp"]).ok


def test_only_in_the_training_split(planted):
    for entry in planted.database.values():
        if entry["subset"] == "testing":
            del entry["annotations"][2]
    (finding,) = planted.look().findings
    assert (finding.check, finding.severity) == ("class-missing", "warning")
    assert "only in split 'train'" in finding.message


def test_rules_for_segments_beyond_the_video(planted):
    planted.instance("clip01")["segment"] = [3, 99]
    result = planted.look(out_of_range="clamp")
    assert result.ok
    assert result.count("out-of-range") == 1
    assert "training sees them cut to the video" in result.findings[0].message
    assert "scoring takes them as they are" in result.findings[0].message
    planted.instance("clip01")["segment"] = [98, 99]
    result = planted.look(out_of_range="clamp")
    assert "outside the video; training leaves them out" in result.findings[0].message


def test_repeated_video(planted):
    planted.look()
    path = planted.path / "annotations.json"
    entry = json.dumps(planted.database["clip00"])
    path.write_text(path.read_text().replace('{"clip00"', f'{{"clip03": {entry}, "clip00"'))
    (finding,) = planted.question().errors
    assert (finding.check, finding.examples) == ("repeated-video", ("video 'clip03'",))


def test_groups_that_must_stay_together(planted):
    result = planted.look(group=r"clip0?(\d)")
    # clip00 and clip10, clip01 and clip11 share a digit; 11 is tested and 1 trained on.
    (finding,) = result.errors
    assert (finding.check, finding.count) == ("leakage", 1)
    assert "'1': 'clip01' in train, 'clip11' in test" in finding.examples[0]
    result = planted.question(group=r"user\d+")
    assert result.count("leakage") == 12
    with pytest.raises(ConfigError, match="group '\\(' is no expression"):
        planted.question(group="(")


def test_features_that_have_to_be_packed(planted):
    planted.look()
    folder = planted.path / "features"
    for file in list(folder.iterdir()):
        np.savez(file.with_suffix(".npz"), np.load(file))
        file.unlink()
    result = planted.question()
    assert result.count("unreadable") == 12
    assert "tal-fast pack" in result.errors[0].examples[0]


class TestTiming:
    @pytest.mark.parametrize(
        ("stride", "frames", "fps"), [(8, 16, 30), (4, 16, 25), (16, 16, 30), (1, 1, 10)]
    )
    @pytest.mark.parametrize("padded", [False, True])
    def test_the_settings_that_fit_are_proposed(self, planted, stride, frames, fps, padded):
        """The data were made with other settings than the ones that are said."""
        rng = np.random.default_rng(1)
        for name, entry in planted.database.items():
            entry["duration"] = seconds = round(float(rng.uniform(20, 300)), 2)
            count = int(seconds * fps)
            rows = -(-count // stride) if padded else (count - frames) // stride + 1
            planted.features[name] = rng.normal(size=(rows, CHANNELS)).astype("f4")
        planted.fps = float(fps)
        planted.stride = stride * 2
        result = planted.look()
        assert result.count("timing") == 12
        assert result.fitting == 0
        assert result.proposals[0].stride == stride
        assert result.proposals[0].fps == fps
        assert result.proposals[0].fitting == 1
        planted.stride, planted.frames = stride, result.proposals[0].frames
        assert planted.question().ok
        if not padded:
            planted.frames = frames
            assert planted.question().ok

    def test_wrong_fps(self, planted):
        planted.fps = 25.0
        result = planted.look()
        assert result.count("timing") == 12
        best = result.proposals[0]
        assert (best.stride, best.fps) == (4, None), "the annotations say 30, and 30 fits"
        for entry in planted.database.values():
            del entry["fps"]
        best = planted.look().proposals[0]
        assert best.stride / best.fps == pytest.approx(4 / 30, rel=0.01)
        assert "fits 100.0 % of the videos" in str(best)
        assert "settings that fit rows and durations better" in result.table()

    def test_each_videos_own_fps(self, planted):
        rng = np.random.default_rng(1)
        for name, entry in planted.database.items():
            entry["fps"] = float(rng.choice([24, 25, 30, 60]))
            rows = int((entry["duration"] * entry["fps"] - 16) // 4) + 1
            planted.features[name] = rng.normal(size=(rows, CHANNELS)).astype("f4")
        result = planted.look()
        assert (result.proposals[0].stride, result.proposals[0].fps) == (4, None)
        assert result.proposals[0].fitting == 1
        planted.fps = None
        assert planted.look().ok
        del planted.database["clip03"]["fps"]
        (finding,) = planted.look().errors
        assert (finding.check, finding.count) == ("timing", 1)
        assert "no fps in the annotations" in finding.message

    def test_some_cut_videos_do_not_spoil_the_proposal(self, planted):
        for name in ("clip09", "clip10"):
            planted.features[name] = planted.features[name][:40]
        planted.stride = 8
        best = planted.look().proposals[0]
        assert (best.stride, best.fps) == (4, 30)
        assert best.fitting == pytest.approx(10 / 12)

    def test_resized_features(self, planted):
        for name in planted.features:
            planted.features[name] = planted.rng.normal(size=(100, CHANNELS)).astype("f4")
        result = planted.look()
        assert result.proposals[0].fixed_rows == 100
        assert "every video has 100 rows whatever its duration" in result.table()

    def test_nothing_to_propose(self):
        few = np.array([10.0, 20.0])
        assert propose(few, few, None, Proposal(1, 1.0, 1, 0)) == []
        same = np.full(9, 30.0)
        assert propose(same + np.arange(9), same, None, Proposal(1, 1.0, 1, 0)) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accept": ["timng"]}, "expected accept among .* did you mean 'timing'"),
        ({"out_of_range": "cut"}, "expected out_of_range 'error', 'clamp' or 'keep', got 'cut'"),
    ],
)
def test_bad_arguments(planted, options, message):
    with pytest.raises(ConfigError, match=message):
        planted.look(**options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"no such file \(annotations\)"),
        ("{", "not valid JSON"),
        ("[]", "expected an object of videos, got list"),
        ("{}", "expected an object 'database'"),
        ('{"a": {"duration_second": 3}, "b": {}}', "video 'b': expected duration_second"),
    ],
)
def test_files_that_cannot_be_looked_at(tmp_path, text, message):
    if text is not None:
        (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=r"x\.json: " + message):
        validate(tmp_path / "x.json")


def test_bad_table_of_subsets(tmp_path):
    (tmp_path / "x.json").write_text('{"a": {"duration_second": 3}}')
    (tmp_path / "s.csv").write_text("name,subset\na,training\n")
    with pytest.raises(
        DataError,
        match=r"s\.csv: line 1: .* video and subset .*, got name, s",
    ):
        validate(tmp_path / "x.json", subsets=tmp_path / "s.csv")
    for text, message in (
        ("video,subset\na\n", "row 2: expected 2 columns, got 1"),
        ("video,subset\na,x\na,y\n", "row 3: video 'a' is in subset 'y', above it is in 'x'"),
    ):
        (tmp_path / "s.csv").write_text(text)
        with pytest.raises(DataError, match=rf"s\.csv: {message}"):
            validate(tmp_path / "x.json", subsets=tmp_path / "s.csv")
    with pytest.raises(DataError, match=r"gone\.csv: no such file"):
        validate(tmp_path / "x.json", subsets=tmp_path / "gone.csv")


def test_what_a_data_directory_leaves_out(tiny):
    tiny.database["d"]["annotations"].append({"label": "fly", "label_id": 2, "segment": [4, 5]})
    tiny.database["a"]["annotations"].append({"label": "fly", "label_id": 2, "segment": [2.6, 3]})
    tiny.spec["exclude"] = {"camera fell": ["a"], "typo": ["bb"]}
    del tiny.features["b"], tiny.features["a"]
    tiny.features["x"] = tiny.values(7, 12)
    tiny.spec["unmatched"] = "skip"
    result = validate_dataset(tiny.write())
    assert [(f.check, f.severity, f.examples) for f in result.findings] == [
        ("excluded", "error", ("video 'bb'; did you mean 'b'?",)),
        ("class-missing", "error", ("'fly', 1 instance elsewhere",)),
        ("excluded", "warning", ("video 'a'",)),
        ("missing-features", "warning", ("video 'b'",)),
        ("extra-features", "warning", ("video 'x'",)),
    ]
    assert [(s.name, s.videos) for s in result.splits] == [("train", 1), ("test", 1)]
    assert not result.ok
    del tiny.spec["exclude"]["typo"], tiny.spec["unmatched"]
    found = {f.check for f in validate_dataset(tiny.write()).errors}
    assert found == {"class-missing", "missing-features", "extra-features"}


def test_instances_that_no_window_holds(tiny):
    """At 10 rows a second; c has 333 rows, windows of 128 begin every 32."""
    tiny.database["c"]["annotations"] += [
        {"label": "run", "label_id": 1, "segment": [5, 22.2]},  # 172 rows, 128 are less than 3/4
        {"label": "jump", "label_id": 0, "segment": [5, 22]},
        {"label": "swim", "label_id": 2, "segment": [10, 30]},
    ]
    tiny.database["d"]["annotations"].append({"label": "swim", "label_id": 2, "segment": [1, 2]})
    result = validate_dataset(tiny.write())
    assert [(f.check, f.severity, f.count, f.examples) for f in result.findings] == [
        ("never-learned", "error", 1, ("'swim': 1 of 1",)),
        ("never-learned", "warning", 1, ("'run': 1 of 4",)),
    ]
    assert "into any window of 128 rows" in result.findings[1].message
    # As the set of windows itself counts.
    data = open_dataset(tiny.path)
    windows = WindowSet(data, data.splits["train"])
    assert windows.unheld == {"run": (1, 4), "swim": (1, 1)}
    assert validate_dataset(tiny.path, windows=WindowRule(length=256)).findings == ()
    # What is cut to its video first, and what is a fault of its own.
    tiny.database["c"]["annotations"][2:] = [{"label": "run", "label_id": 1, "segment": [25, 50]}]
    tiny.database["d"]["annotations"].pop()
    assert {f.check for f in validate_dataset(tiny.write()).findings} == {"out-of-range"}
    for rule, count in (("clamp", 0), ("keep", 1)):
        tiny.spec["out_of_range"] = rule
        assert validate_dataset(tiny.write()).count("never-learned") == count
        data = open_dataset(tiny.path)
        assert len(WindowSet(data, data.splits["train"]).unheld) == count


def test_a_data_directory(tiny):
    result = validate_dataset(tiny.write())
    # Its features are counted up from row to row, and all classes are in both splits.
    assert result.ok, result.table()
    assert result.findings == ()
    tiny.spec["feature"]["stride"] = 2
    result = validate_dataset(tiny.write() / "dataset.yaml", content=False)
    assert not result.ok
    assert not result.content
    assert result.count("timing") == 4
    assert result.proposals[0].stride == 1
    assert validate_dataset(tiny.path, accept=["timing"]).ok


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfvideo,subset\na,training\n",
        b"video, subset\r\n a, training \r\n\r\n",
        b'"number", "video", "subset"\n1, "a", "training"\n',
    ],
)
def test_table_of_subsets_from_a_spreadsheet(tmp_path, text):
    (tmp_path / "x.json").write_text('{"a": {"duration_second": 3}}')
    (tmp_path / "s.csv").write_bytes(text)
    (split,) = validate(tmp_path / "x.json", subsets=tmp_path / "s.csv").splits
    assert (split.name, split.videos) == ("training", 1)


class Tags(html.parser.HTMLParser):
    void = ("meta", "path", "polyline", "circle", "rect")

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.texts = [], [], []

    def handle_starttag(self, tag, attributes):
        self.addresses += [v for k, v in attributes if k in ("src", "href")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        if tag in self.void:
            return
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


class TestPage:
    def test_whole_and_self_contained(self, planted):
        planted.instance("clip01")["segment"] = [3, 2]
        planted.instance("clip00")["label"] = "<b>jump & run</b>"
        del planted.instance("clip00")["label_id"]
        planted.stride = 8
        result = planted.look()
        path = write_report(planted.path / "new" / "page", result)
        text = path.read_text()
        tags = Tags()
        tags.feed(text)
        assert tags.open == []
        assert tags.addresses == []
        assert "<b>jump & run" not in text
        shown = " ".join(tags.texts)
        assert "Training may not start" in shown
        assert "stride 4, fps 30" in shown
        assert text.count("<circle") == 12
        assert text.count("<svg") == 4
        for check in CHECKS:
            assert check in shown

    def test_annotations_alone(self, planted):
        planted.look()
        result = validate(planted.path / "annotations.json")
        text = write_report(planted.path / "page", result).read_text()
        assert "Without features" in text
        assert "<circle" not in text

    def test_without_jinja2(self, planted, monkeypatch):
        monkeypatch.setitem(sys.modules, "jinja2", None)
        with pytest.raises(MissingExtraError, match=r"the page needs jinja2.*pip install .*jinja2"):
            write_report(planted.path, planted.look())


def test_json_has_everything_and_no_objects(planted):
    planted.stride = 8
    content = json.loads(json.dumps(planted.look().to_dict()))
    assert content["ok"] is False
    assert content["findings"][0]["check"] == "timing"
    assert content["proposals"][0]["stride"] == 4
    assert content["splits"][0]["per_class"] == {"jump": 8, "run": 8, "swim": 8}


def test_known_faults_of_thumos14(test_data):
    path = test_data / "thumos14.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    result = validate(path, splits={"train": "Validation", "test": "Test"})
    assert {f.check: f.count for f in result.findings} == {"out-of-range": 30}
    assert [(s.videos, s.instances) for s in result.splits] == [(200, 3007), (212, 3358)]
    assert not result.ok
    assert validate(path, accept=["out-of-range"]).ok


def test_known_faults_of_activitynet(test_data):
    path = test_data / "anet13" / "anet_anno_action.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    result = validate(path, subsets=test_data / "anet13" / "video_info_new.csv")
    assert {f.check: f.count for f in result.findings} == {
        "out-of-range": 215, "non-positive": 12, "no-instance": 1, "duplicate": 50,
    }  # fmt: skip
    assert [(s.name, s.videos, s.instances) for s in result.splits] == [
        ("training", 9649, 14859), ("validation", 4728, 7293), ("testing", 4851, 0),
    ]  # fmt: skip
    assert len(result.classes) == 200
    assert [f.check for f in result.errors] == ["out-of-range", "non-positive"]
