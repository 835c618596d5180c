# SPDX-License-Identifier: Apache-2.0
"""The page of a profile and its pictures; that they look right is checked by eye."""

from __future__ import annotations

import html.parser
import re
import sys

import made_profiles
import pytest

from tal_fast.errors import DataError, MissingExtraError
from tal_fast.profiling import drawings
from tal_fast.profiling.profile import FORMAT
from tal_fast.profiling.report import read_profile, write_page
from tal_fast.profiling.tables import figure_text, profile_tables


class _Text(html.parser.HTMLParser):
    """Collects cells, addresses, and tags that are not closed."""

    void = ("meta", "br")

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.words = [], [], []

    def handle_starttag(self, tag, attributes):
        self.addresses += [v for k, v in attributes if k in ("src", "href")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.addresses += [v for k, v in attributes if k in ("src", "href")]

    def handle_data(self, data):
        self.words += [data.strip()] if data.strip() else []


def read(page):
    found = _Text()
    found.feed(page.read_text("utf-8"))
    assert not found.open
    return found


def test_a_training_has_its_pictures_and_numbers(tmp_path):
    page = write_page(made_profiles.write(tmp_path, made_profiles.training()))
    found = read(page)
    for name in ("timeline", "roofline", "breakdown"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
        assert (tmp_path / f"{name}.svg").read_text().startswith("<?xml")
        assert f'aria-labelledby="figure-{name}"' in page.read_text("utf-8")
    assert not (tmp_path / "lengths.png").exists()
    assert not [address for address in found.addresses if "//" in address]
    words = found.words
    # What limits it comes first, then the numbers of profile.json and ops.csv.
    first = "Data: it waited for batches 50% of the time; without, 2.0x as fast (measured)."
    assert words.index(first) < words.index("Phases") < words.index("Kinds of work")
    assert "Profile of a <model>" in words
    for value in ("123.4", "61.7", "50.0", "60.0", "aten::mm", "8.000", "172.0 MB per step",
                  "10.2 times", "64.8 GFLOP/s",
                  "1 clip of 8 rows: it failed: too short"):  # fmt: skip
        assert value in words, value


def test_a_prediction(tmp_path):
    page = write_page(made_profiles.write(tmp_path, made_profiles.prediction(), tables=False))
    words = read(page).words
    assert {path.name for path in tmp_path.iterdir()} == {
        "index.html", "lengths.png", "lengths.svg", "profile.json",
    }  # fmt: skip
    for value in ("200", "228", "20.00", "0.75", "2.0000", "100.00", "50.00", "60"):
        assert value in words, value


def test_a_profile_of_the_first_format_opens(tmp_path):
    old = {key: made_profiles.training()[key] for key in (
        "environment", "usable_cores", "steps", "disturbed", "disturbance", "step", "phases",
        "between_steps", "reading")}  # fmt: skip
    made_profiles.write(tmp_path, {**old, "format": 1, "memory": {}}, tables=False)
    words = read(write_page(tmp_path)).words
    assert "123.4" in words
    assert "Kinds of work" not in words
    assert (tmp_path / "breakdown.png").is_file()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "expected a profile"),
        ("{", "not valid JSON"),
        ('{"step": {}, "step": {}}', "key 'step' is there more than once"),
        ("[]", "got 'list'"),
        ('{"format": 3}', f"expected a profile of format {FORMAT}, got 3"),
    ],
)
def test_what_is_no_profile(tmp_path, text, message):
    if text is not None:
        (tmp_path / "profile.json").write_text(text)
    with pytest.raises(DataError, match=re.escape(message)):
        read_profile(tmp_path)


def test_without_matplotlib_there_is_no_page_and_a_note(tmp_path, monkeypatch, capsys):
    from tal_fast.cli.profiles import print_profile

    monkeypatch.setitem(sys.modules, "jinja2", None)
    made_profiles.write(tmp_path, made_profiles.training())
    with pytest.raises(MissingExtraError, match="pip install matplotlib jinja2"):
        write_page(tmp_path)
    print_profile(tmp_path)
    shown = capsys.readouterr()
    assert "note: no page: the page of a profile needs jinja2" in shown.err
    assert shown.out.rstrip().endswith("profile.json")


def test_pictures_of_too_little_are_none():
    assert drawings.timeline_picture([], 2) is None
    assert drawings.roofline_picture([], made_profiles.training()) is None
    without = made_profiles.training(limits={"flops": {"value": 1.0}, "bytes": {"value": None}})
    rows = [{"op": "a", "kind": "products", "flops": "9", "bytes": "3", "time_ms": "1",
             "share": "1"}]  # fmt: skip
    assert drawings.roofline_picture(rows, without) is None
    assert drawings.breakdown_picture(made_profiles.prediction()) is None
    assert drawings.lengths_picture([("a", made_profiles.training())]) is None


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ({"value": 2.5e6, "unit": "bytes", "origin": "counter"}, ("2.50 MB", "counter")),
        ({"value": 0.25, "unit": "of the time", "origin": "clock"}, ("25.0% of the time", "clock")),
        ({"value": None, "unit": "ms", "reason": "none"}, ("-", "none")),
        ({"value": 1234.5, "unit": "GFLOP/s", "origin": "clock"}, ("1,234 GFLOP/s", "clock")),
    ],
)
def test_figures_as_text(found, text):
    assert figure_text(found) == text


def test_tables(capsys):
    from rich.console import Console

    console = Console(width=140)
    for table in (*profile_tables(made_profiles.training()),
                  *profile_tables(made_profiles.prediction())):  # fmt: skip
        console.print(table)
    shown = capsys.readouterr().out
    for text in ("123.4", "Time of a step by clips: 20.0 ms + 2.50 ms per clip.", "it failed",
                 "172 MB per step", "18.0 to 24.0", "b, fresh weights"):  # fmt: skip
        assert text.replace("172 MB", "172.0 MB") in shown, text
