# SPDX-License-Identifier: Apache-2.0
"""docs/own-data.md and docs/python.md: their commands and their Python are run."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from tal_fast import cli
from tal_fast.data import open_dataset
from tal_fast.data.prepare.segment_table import COLUMNS, read_segment_table

ROOT = Path(__file__).parents[1]
OWN_DATA = (ROOT / "docs" / "own-data.md").read_text("utf-8")
PYTHON = (ROOT / "docs" / "python.md").read_text("utf-8")
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```sh\n(.*?)```", OWN_DATA, re.DOTALL)
    for line in block.replace("\\\n", " ").strip().splitlines()
]
# What the fast run leaves out of the page, since it trains twelve models.
STUDY = [command for command in COMMANDS if command[:2] == ["tal-fast", "study"]]


def make_features(monkeypatch, out: Path) -> None:
    script = ROOT / "examples" / "features_from_numpy.py"
    monkeypatch.setattr("sys.argv", [str(script), str(out)])
    runpy.run_path(str(script), run_name="__main__")


def run(monkeypatch, command: list[str]) -> None:
    if command[0] == "python":
        assert command[1] == "examples/features_from_numpy.py"
        make_features(monkeypatch, Path(command[2]))
    else:
        assert command[0] == "tal-fast"
        assert cli.main(command[1:]) == 0, shlex.join(command)


class TestOwnData:
    def test_from_the_table_to_map(self, monkeypatch, tmp_path, capsys):
        monkeypatch.chdir(tmp_path)
        for command in COMMANDS:
            if command in STUDY:
                continue
            run(monkeypatch, [word.replace("epochs=40", "epochs=1") for word in command])
        output = capsys.readouterr()
        assert "training may start" in output.out
        assert "mAP" in output.out
        assert output.err.count("next: tal-fast") == 5, "every command says what comes next"
        splits = open_dataset("data/mine").splits
        assert (len(splits["train"]), len(splits["test"])) == (10, 4), "as the page says"

    @pytest.mark.slow
    def test_everything_as_the_page_has_it(self, monkeypatch, tmp_path, capsys):
        monkeypatch.chdir(tmp_path)
        for command in COMMANDS:
            run(monkeypatch, command)
        assert (tmp_path / "results/mine/report.html").exists()

    @pytest.mark.parametrize("command", STUDY, ids=" ".join)
    def test_commands_of_studies_have_these_options(self, capsys, command):
        assert cli.main([*command[1:3], "-h"]) == 0
        text = capsys.readouterr().out.split()
        assert [w for w in command[3:] if w.startswith("--") and w not in text] == []

    def test_options_in_the_text_exist(self, capsys):
        known = ""
        for command in (
            ["prepare", "csv"], ["validate"], ["train"], ["predict"], ["evaluate"],
            ["study", "run"], ["study", "extrapolate"],
        ):  # fmt: skip
            cli.main([*command, "-h"])
            known += capsys.readouterr().out
        named = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", OWN_DATA))
        assert named - set(known.split()) == set()

    def test_the_table_is_that_of_the_code(self, monkeypatch, tmp_path):
        (shown,) = re.findall(r"```csv\n(.*?)```", OWN_DATA, re.DOTALL)
        (tmp_path / "shown.csv").write_text(shown)
        of_page = read_segment_table(tmp_path / "shown.csv")
        make_features(monkeypatch, tmp_path)
        made = read_segment_table(tmp_path / "segments.csv")
        assert set(of_page.segments) <= set(made.segments)
        assert set(of_page.labels()) <= set(made.labels())
        rows = re.findall(r"^\| (`.*?) \|", OWN_DATA, re.MULTILINE)
        assert set(re.findall(r"`(\w+)`", " ".join(rows))) == set(COLUMNS)


class TestPython:
    def test_the_page_runs(self, monkeypatch, tmp_path, capsys):
        monkeypatch.chdir(tmp_path)
        make_features(monkeypatch, Path("data/raw"))
        prepare = next(command for command in COMMANDS if command[1:3] == ["prepare", "csv"])
        run(monkeypatch, prepare)
        code = "\n".join(re.findall(r"```python\n(.*?)```", PYTHON, re.DOTALL))
        # A study of one short trial instead of two.
        code = code.replace("fractions=[0.5, 1]", "fractions=[1], threads=1")
        code = code.replace('"training.epochs": 2', '"training.epochs": 1')
        exec(code, {})
        assert "TALDataset('mine': 14 videos" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["own-data.md", "python.md"])
def test_links_lead_somewhere(page):
    text = (ROOT / "docs" / page).read_text("utf-8")
    targets = re.findall(r"\]\(([^)#]+)\)", text)
    assert [name for name in targets if not (ROOT / "docs" / name).exists()] == []
