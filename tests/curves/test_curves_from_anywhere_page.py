# SPDX-License-Identifier: Apache-2.0
"""The commands and the code of docs/curves-from-anywhere.md do what the page says."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from tal_fast import cli
from tal_fast.curves import read_curves

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/curves-from-anywhere.md").read_text("utf-8")
TABLE = ROOT / "docs/examples/made-curves.csv"
COMMANDS = [
    shlex.split(line)[1:]
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]


def placed(words: list[str], folder: Path) -> list[str]:
    """A command of the page, from the root, writing into a folder."""
    found = [str(ROOT / word) if word.startswith("docs/") else word for word in words]
    return [str(folder / word) if word.startswith("curves.") else word for word in found]


def test_commands(tmp_path, capsys):
    assert [words[1] for words in COMMANDS] == ["fit", "extrapolate", "plan", "draw"]
    for words in COMMANDS:
        assert cli.main([*placed(words, tmp_path), "--draws", "20"]) == 0, words
    out = capsys.readouterr().out
    assert "A: 7 levels from 5 to 100 %" in out
    assert "B at 200 % of the data: mAP" in out
    assert {"curves.svg", "curves.pdf"} == {path.name for path in tmp_path.iterdir()}


def test_the_picture_is_that_of_the_command(tmp_path):
    words = next(words for words in COMMANDS if words[1] == "draw")
    assert cli.main([*placed(words, tmp_path), "--json", str(tmp_path / "c.json")]) == 0
    found, kept = (
        re.findall(r"<text[^>]*>([^<]*)<", path.read_text("utf-8"))
        for path in (tmp_path / "curves.svg", ROOT / "docs/examples/made-curves.svg")
    )
    assert found == kept
    assert len(json.loads((tmp_path / "c.json").read_text())["curves"]) == 2


def test_code(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code.replace("docs/", f"{ROOT}/docs/"), names)
    assert (tmp_path / "curves.svg").is_file()
    assert [curve.videos for curve in read_curves(TABLE)] == [200, 200]


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert [target for target in targets if not (ROOT / "docs" / target).exists()] == []


def test_published_curves(published, tmp_path, capsys):
    for words in COMMANDS:
        given = [str(published) if word.endswith(".csv") else word for word in words]
        given = ["TemporalMaxer" if word == "B" else word for word in given]
        given = ["ActionFormer" if word == "A" else word for word in given]
        given = [*placed(given, tmp_path), "--draws", "20", "--repetitions", "5"]
        assert cli.main(given) == 0, words
    out = capsys.readouterr().out
    assert "TadTR: 24 levels from 1 to 100 %" in out
    assert "TemporalMaxer at 200 % of the data: mAP" in out
