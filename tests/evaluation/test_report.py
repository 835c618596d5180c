# SPDX-License-Identifier: Apache-2.0
"""The page and the command; that the page looks right is checked by eye in a browser."""

import html.parser
import json
import re

import numpy as np
import pytest

from tal_fast.cli import main
from tal_fast.errors import ConfigError, DataError
from tal_fast.evaluation import evaluate, evaluate_arrays, write_report

NAMES = ("jump & <run>", "swim")


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    database = {
        f"clip {v}": {
            "subset": "test",
            "duration": 100.0,
            "annotations": [
                {"segment": [s, s + 5], "label": NAMES[n % 2]}
                for n, s in enumerate(rng.uniform(1, 90, 4).tolist())
            ],
        }
        for v in range(5)
    }
    results = {
        video: [
            {
                "segment": sorted(np.abs(a["segment"] + rng.normal(0, 1.5, 2)).tolist()),
                "label": NAMES[rng.integers(2)],
                "score": float(rng.random()),
            }
            for a in entry["annotations"] * 3
        ]
        for video, entry in database.items()
    }
    return {"database": database}, {"results": results}


class Tags(html.parser.HTMLParser):
    """Fails on a tag that is not closed, and collects addresses."""

    void = ("meta", "br", "path", "polyline")

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.count = [], [], {}

    def handle_starttag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.addresses += [v for k, v in attributes if k in ("src", "href")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parse(path):
    tags = Tags()
    tags.feed(path.read_text(encoding="utf-8"))
    assert tags.open == []
    return tags


class TestPage:
    def test_whole_and_self_contained(self, case, tmp_path):
        path = write_report(tmp_path / "new" / "folder", evaluate(*case), replicates=50)
        assert path == tmp_path / "new" / "folder" / "index.html"
        tags = parse(path)
        assert tags.addresses == []
        text = path.read_text(encoding="utf-8")
        assert "url(" not in text
        assert "http" not in text
        assert "jump &amp; &lt;run&gt;" in text
        assert "<run>" not in text
        assert "nan" not in text.lower().replace("dominant", "")
        assert tags.count["svg"] == 2 + 2 + 4  # curves, profiles, timelines
        assert text.count("interval over videos") == 1

    def test_chosen_videos(self, case, tmp_path):
        path = write_report(tmp_path, evaluate(*case), videos=["clip 3"], replicates=0)
        text = path.read_text(encoding="utf-8")
        assert re.findall(r"<summary><b>(.*?)</b>", text) == ["clip 3"]
        assert "interval over videos" not in text
        instances = case[0]["database"]["clip 3"]["annotations"]
        for a in instances:
            assert f"{a['segment'][0]:.2f} to {a['segment'][1]:.2f} s, " in text
        with pytest.raises(ConfigError, match=r"video 'clip 33' is not .*did you mean 'clip 3'"):
            write_report(tmp_path, evaluate(*case), videos=["clip 33"])

    @pytest.mark.parametrize("dialect", ["tal_fast", "thumos", "opentad"])
    def test_every_way_of_counting(self, case, tmp_path, dialect):
        case[0]["database"]["clip 0"]["annotations"][0]["label"] = "Ambiguous"
        parse(write_report(tmp_path, evaluate(*case, dialect=dialect), replicates=5))

    def test_from_arrays_and_without_predictions(self, tmp_path):
        result = evaluate_arrays([0, 0], [0, 0], [[0, 10], [5, 5]], [], [], [], [])
        assert "video 0" in write_report(tmp_path, result, replicates=5).read_text("utf-8")

    def test_a_mean_that_is_nan(self, case, tmp_path):
        case[0]["database"]["other"] = {
            "subset": "train",
            "annotations": [{"segment": [0, 1], "label": "rare"}],
        }
        case[1]["results"]["clip 0"][0]["label"] = "rare"
        result = evaluate(*case, subset="test", dialect="tadtr", strict=True)
        with pytest.raises(DataError, match="expected a result with its arrays and a mean"):
            write_report(tmp_path, result)


class TestCommand:
    @pytest.fixture
    def files(self, case, tmp_path):
        paths = tmp_path / "truth.json", tmp_path / "found.json"
        for path, content in zip(paths, case, strict=True):
            path.write_text(json.dumps(content))
        return ["evaluate", "--annotations", str(paths[0]), "--predictions", str(paths[1])]

    def test_everything_at_once(self, case, files, tmp_path, capsys):
        out = tmp_path / "out.json"
        status = main(
            [*files, "--tiou", "0.5", "--bootstrap", "40", "--errors", "--recall", "--against",
             files[-1], "--json", str(out), "--report", str(tmp_path / "page"), "--video", "clip 2"]
        )  # fmt: skip
        assert status == 0
        shown = capsys.readouterr().out
        assert "95% interval over videos" in shown
        assert "within the noise over videos" in shown
        assert "mAP gained without" in shown
        content = json.loads(out.read_text())
        assert content["average_map"] == evaluate(*case, (0.5,)).average_map
        assert {"bootstrap", "against", "errors", "recall_at_kx"} <= set(content)
        assert content["average_recall"]["AR@100"] > 0
        assert content["against"]["difference"] == 0
        assert "clip 2" in (tmp_path / "page" / "index.html").read_text("utf-8")

    def test_dialects_and_notes(self, case, files, capsys):
        case[0]["database"]["clip 0"]["annotations"].append({"segment": [0, 0], "label": "swim"})
        truth = files[2]
        with open(truth, "w") as file:
            json.dump(case[0], file)
        assert main([*files, "--dialect", "actionformer"]) == 0
        captured = capsys.readouterr()
        assert "note: 1 of 21 instances left out: shorter" in captured.err
        assert main([*files, "--dialect", "actionformr"]) == 2
        assert "did you mean 'actionformer'" in capsys.readouterr().err
        assert main([*files, "--ties", "random"]) == 2
