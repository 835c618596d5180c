# SPDX-License-Identifier: Apache-2.0
"""The page of a study: content, self-contained, and no more sections than there is to say."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from made_records import BUDGETS, RECORDS, rising, study, trial

from tal_fast.study.report.page import write_report
from tal_fast.study.report.sections import coverage_rows, coverage_section, energy_of
from tal_fast.study.results import build_curves


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.headings: list[str] = []
        self._text = ""
        self.html = html
        self.feed(html)
        self.text = " ".join(self._text.split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href"):
                self.links.append(value or "")
            elif name == "id":
                self.ids.append(value or "")

    def handle_data(self, data):
        self._text += " " + data
        if self.tags[-1:] in (["h2"], ["h3"]) and data.strip():
            self.headings.append(data.strip())

    def cells(self, heading: str) -> list[list[str]]:
        """The rows of the first table after a heading."""
        after = self.html[re.search(rf"<h[23]>{heading}</h[23]>", self.html).end() :]
        body = after[after.index("<tbody>") : after.index("</tbody>")]
        rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
        return [
            [re.sub(r"<[^>]+>", "", cell).strip() for cell in re.findall(r"<td.*?</td>", row)]
            for row in rows
        ]


def page_of(records, out, fits=4, **changes):
    content = study(len(records), **changes)
    files = write_report(out, content, build_curves(records), records, fits=fits)
    return Page(files["page"].read_text()), files


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return page_of(RECORDS, tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    window = [trial(p, r, {"off": v, "plain": v / 2}, sampling="window", classes=2, windows=99)
              for p, r, v in ((0.1, 0, 0.3), (0.1, 1, 0.5), (1.0, 0, 0.6))]  # fmt: skip
    return page_of([*BUDGETS, *window], tmp_path_factory.mktemp("several"))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    return page_of([*rising(), *rising("steps")], tmp_path_factory.mktemp("fitted"), fits=1)


class TestOneCurve:
    def test_content(self, single):
        text = single[0].text
        assert "How much data does tadtr-small need?" in text
        assert "30.00 ± 26.46" in text
        assert "tal-fast study run --data toys --out here" in text
        assert "jump & <throw>" in text
        assert "A <fast> one" in text
        assert "epochs: 16" in text
        assert "repetition differs by training seed only" in text
        assert "asked for are complete" not in text
        assert "as many epochs at every p, so the number of optimiser steps grows" in text
        assert "as many optimiser steps at every p" not in text

    def test_no_section_without_content(self, single):
        assert not [name for name in single[0].headings if "compared" in name]
        assert "EMA" not in single[0].text
        assert "curve, " not in single[0].text
        assert "sd of trainings" not in single[0].text
        assert not re.findall(r"<h2>[^<]*</h2>\s*<h2>", single[0].html)

    def test_cost(self, single):
        assert single[0].cells("Cost")[0] == [
            "all trainings",
            "4",
            "2 min 00 s",
            "30 s",
            "30 s",
            "-",
        ]
        assert "1 min 15 s wall-clock time" in single[0].text
        assert "192 trials per hour" in single[0].text
        assert "not known energy" in single[0].text

    def test_energy(self):
        known, unknown = {"energy_joules": 1.8e6}, {"seconds": 3.0}
        assert energy_of([known, known]) == "1 kWh"
        assert energy_of([known, unknown]) == energy_of([]) == "not known"

    def test_files(self, single):
        pictures = {"curve.png", "curve.svg", "tiou.png", "tiou.svg"}
        assert set(single[1]) == {*pictures, "fits", "page"}

    def test_unfinished_study_says_so(self, tmp_path):
        request = {**study()["request"], "trials": 9}
        page, _ = page_of(RECORDS, tmp_path, request=request, runs=[])
        assert "4 of the 9 trials asked for are complete" in page.text
        assert "time of all trials" in page.text

    def test_no_remark_on_full_samples_without_one(self, tmp_path):
        page, _ = page_of(RECORDS[1:], tmp_path)
        assert "training seed only" not in page.text

    def test_steps_are_told_as_such(self, tmp_path):
        page, _ = page_of([trial(p, 0, p, budget="steps") for p in (0.1, 1.0)], tmp_path)
        assert "as many optimiser steps at every p" in page.text
        assert "as many epochs" not in page.text

    def test_spread_of_trainings(self, tmp_path):
        records = [trial(0.5, r, v, training=t) for r, t, v in
                   ((0, 0, 0.3), (0, 1, 0.5), (1, 0, 0.6), (1, 1, 0.8))]  # fmt: skip
        page, _ = page_of(records, tmp_path)
        # trainings: sd of (0.3, 0.5) and of (0.6, 0.8), 14.14 points; draws: variance of 40 and 70
        # is 450, less 200 / 2, the root of 350.
        assert "50 % 14.14 18.71" in page.text
        assert page.cells("Numbers")[0][6:8] == ["2", "4"]


class TestSeveralCurves:
    @pytest.mark.parametrize("which", ["single", "several"])
    def test_self_contained(self, which, request):
        page, _ = request.getfixturevalue(which)
        assert page.html.startswith("<!DOCTYPE html>")
        assert all(link.startswith("#") for link in page.links)
        assert not {"script", "link", "img", "iframe"} & set(page.tags)
        assert "@import" not in page.html
        assert all(link.startswith("#") for link in re.findall(r"url\(([^)]*)\)", page.html))
        # Namespaces are names; nothing else may look like an address.
        assert not re.findall(r'https?://(?!www\.w3\.org/(?:2000/svg|1999/xlink)")', page.html)

    @pytest.mark.parametrize("which", ["single", "several"])
    def test_ids_are_unique_and_lead_somewhere(self, which, request):
        page, _ = request.getfixturevalue(which)
        assert len(page.ids) == len(set(page.ids))
        used = re.findall(r'(?:href="#|url\(#|aria-labelledby=")([^")]+)', page.html)
        assert set(used) <= set(page.ids)
        assert page.tags.count("figure") == page.tags.count("figcaption")

    def test_light_dark_print_phone(self, several):
        html = several[0].html
        assert "prefers-color-scheme: dark" in html
        assert "@media print" in html
        assert 'name="viewport"' in html
        # The drawings follow the page's colours.
        assert "var(--ink)" in html
        body = html.split("</style>", 1)[1]
        assert "#1a1c20" not in body
        assert "#1f5fbf" not in body

    def test_answer_first(self, several):
        page = several[0]
        assert page.text.index("p for 90 % of that") < page.text.index("The curves")
        assert "window, epochs, EMA off" in page.text
        for text in ("as many epochs at every p", "as many optimiser steps at every p"):
            assert page.text.count(text) == 1

    def test_budgets(self, several):
        rows = several[0].cells("steps minus epochs, video")
        assert rows == [
            ["10 %", "2", "20", "2", "+9.00 ± 1.00", "+24.00 ± 1.00"],
            ["100 %", "20", "20", "1", "+0.00", "+0.00"],
        ]

    def test_averages(self, several):
        rows = several[0].cells("video, epochs")
        # 0.9 ** 2 and 0.9 ** 20
        assert rows[0] == ["10 %", "2", "81 %", "34.7", "14.0", "-20.67 ± 4.70"]
        assert rows[1] == ["100 %", "20", "12 %", "50.0", "45.0", "-5.00"]
        assert several[0].cells("video, steps")[1][2] == "12 %"

    def test_samplings(self, several):
        page = several[0]
        (first, *_, last) = page.cells("Samplings compared")
        assert first == ["10 %", "2", "10", "3.0", "64", "2", "10", "2.0", "99"]
        assert last[0] == "100 %"
        assert page.cells("window minus video, epochs")[0][:2] == ["10 %", "+5.33 ± 16.18"]
        assert "sit 100 100 100" in page.text  # in every sample of videos,
        assert "sit 0 0" in page.text  # in none of windows

    def test_files(self, several):
        pictures = {"curve", "tiou", "budgets", "averages", "samplings", "fits"}
        assert set(several[1]) == {
            "page",
            "fits",
            *(f"{name}.svg" for name in pictures),
            *(f"{name}.png" for name in ("curve", "tiou", "fits")),
        }

    def test_two_points_and_missing_pairs(self, tmp_path):
        records = [
            trial(0.1, 0, {"off": 0.1, "plain": 0.0}),
            trial(1.0, 0, {"off": 0.5, "plain": 0.2}),
            trial(0.1, 1, {"off": 0.2, "plain": 0.1}, budget="steps"),
        ]
        page, files = page_of(records, tmp_path)
        assert "Budgets compared" not in page.text
        assert "budgets.svg" not in files
        assert page.cells("epochs")[0][-1] == "-10.00"


class TestFits:
    def test_extrapolation(self, fitted):
        page, files = fitted
        (row,) = page.cells("Extrapolation")
        assert row[0] == "epochs"
        assert row[2] == "300 %"
        low, high = row[4].split(" to ")
        assert float(low) < 56.25 < float(high)
        assert f"({low} to {high})" in page.text[: page.text.index("The curves")]
        assert {"fits.png", "fits.svg", "fits"} <= set(files)

    def test_backtest_ranks(self, fitted):
        rows = fitted[0].cells("Backtest: which family predicts")
        ranks = [int(row[1].split("(")[1].strip(")")) for row in rows]
        assert ranks == list(range(1, len(rows) + 1))
        assert "last value" in [row[0] for row in rows]

    def test_families(self, fitted):
        rows = fitted[0].cells("Families of epochs")
        assert sum(float(row[7]) for row in rows) == pytest.approx(1, abs=0.05)
        assert "bnsl1 is left out: it needs 11 levels of p, there are 6" in fitted[0].text

    def test_curves_left_out_are_named(self, fitted):
        assert "Not fitted here: steps" in fitted[0].text
        assert "tal-fast study report --fits 2" in fitted[0].text

    def test_what_cannot_be_fitted_is_a_sentence(self, single):
        page, files = single
        assert "No fit. tadtr-small: expected at least 3 levels of p, got 2;" in page.text
        assert "Families" not in page.text
        assert "fits.png" not in files

    def test_single_curve(self, tmp_path):
        page, _ = page_of(rising(), tmp_path)
        assert "expected at 300 %" in page.text
        assert page.cells("Extrapolation")[0][1] == "300 %"
        assert "mean rank" not in page.text
        assert "Not fitted here" not in page.text


class TestCoverage:
    def test_by_hand(self):
        assert dict(coverage_rows(RECORDS, [0.1, 1.0])) == {
            "run": [1.0, 1.0],
            "jump & <throw>": [pytest.approx(2 / 3), 1.0],
            "sit": [pytest.approx(1 / 3), 1.0],
        }

    def test_a_draw_counts_once(self):
        records = [
            trial(0.1, 0, 0.1, classes=1),
            trial(0.1, 0, 0.1, classes=1, training=1),
            trial(0.1, 0, 0.1, classes=1, budget="steps"),
            trial(0.1, 1, 0.1, classes=3),
        ]
        assert dict(coverage_rows(records, [0.1]))["sit"] == [0.5]

    def test_of_many_classes_only_what_is_missing_somewhere(self):
        record = trial(0.1, 0, 0.1)
        names = [f"class {index:03}" for index in range(200)]
        sample = replace(record.sample, classes=tuple(names[1:]), missing_classes=tuple(names[:1]))
        record = replace(record, sample=sample)
        (part,) = coverage_section([record], build_curves([record]))
        assert part["rows"] == [("class 000", [0.0])]
        assert (len(part["hidden"]), part["classes"]) == (199, 200)
