# SPDX-License-Identifier: Apache-2.0
"""What the pages point to is there, their Python runs, and the README is short and true."""

from __future__ import annotations

import json
import re

import numpy as np
import pages
import pytest
import torch
import yaml

import tal_fast

ROOT = pages.ROOT
# Pages whose Python runs in a test of their own, which knows what it needs; that of development.md
# is a part of a test.
ELSEWHERE = {
    "docs/curves-from-anywhere.md",
    "docs/development.md",
    "docs/own-data.md",
    "docs/python.md",
}
RUN_HERE = [p for p in pages.PAGES if pages.blocks(p, "python") and p not in ELSEWHERE]


@pytest.mark.parametrize("page", pages.PAGES)
def test_links_lead_somewhere(page):
    folder = (ROOT / page).parent
    broken = []
    for file, anchor in pages.links(page):
        target = (folder / file).resolve() if file else ROOT / page
        if not target.exists() or ROOT not in (target, *target.parents):
            broken.append(file)
            continue
        known = pages.anchors(target.relative_to(ROOT).as_posix()) if anchor else {anchor}
        if anchor not in known:
            broken.append(f"{file}#{anchor}")
    assert broken == []


def test_a_page_with_a_broken_link_is_found(tmp_path, monkeypatch):
    (tmp_path / "page.md").write_text(
        "# A title\n[a](page.md#a-title) [b](#b) ![c](c.png) [d](https://d)\n"
        "```sh\n[e](e.md)\n```\n"
    )
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    assert pages.links("page.md") == [("page.md", "a-title"), ("", "b"), ("c.png", "")]
    assert pages.anchors("page.md") == {"a-title"}
    assert pages.slug("What is drawn: `--sampling`") == "what-is-drawn---sampling"


def test_stored_pages_of_results_are_small():
    stored = list((ROOT / "docs/results").rglob("*.html"))
    assert stored
    assert [path for path in stored if path.stat().st_size >= 300_000] == []


@pytest.mark.parametrize("page", RUN_HERE)
def test_python_runs(page, tmp_path, monkeypatch):
    """From a folder that looks like the root, with the files that the pages speak of."""
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    for ours, theirs in (("truth", "annotations"), ("results", "predictions")):
        (tmp_path / f"{ours}.json").symlink_to(ROOT / f"docs/dialects/{theirs}.json")
    for folder, prefix, channels in (("i3d", "v_", 4), ("rgb", "", 2), ("flow", "", 3)):
        (tmp_path / folder).mkdir()
        for name in "ab":
            np.save(tmp_path / folder / f"{prefix}{name}.npy", np.ones((7, channels), np.float32))
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {"__name__": "page"}
    for code in pages.blocks(page, "python"):
        exec(compile(code, page, "exec"), scope)
    if page == "README.md":
        keep, value = scope["keep"], scope["value"]
        assert isinstance(keep, torch.Tensor)
        assert keep.tolist() == [0, 2]
        assert isinstance(value, torch.Tensor)
        assert value.grad is not None


def test_pages_with_a_test_of_their_own_are_there():
    assert [page for page in ELSEWHERE if not (ROOT / page).is_file()] == []


@pytest.mark.parametrize("page", pages.PAGES)
def test_make_targets_exist(page):
    makefile = (ROOT / "Makefile").read_text("utf-8")
    known = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    said = {words[words.index("make") + 1] for words in pages.lines_of_shell(page) if
            "make" in words[:-1]}  # fmt: skip
    said |= set(re.findall(r"`(?:[A-Z_]+=\S+ )*make ([a-z-]+)", pages.prose(page)))
    assert said - known == set()


def test_readme_is_short():
    lines = pages.text_of("README.md").splitlines()
    assert len(lines) <= 130
    (python,) = pages.blocks("README.md", "python")
    assert len([line for line in python.splitlines() if line.strip()]) <= 20


def test_ratios_of_the_readme_are_those_of_the_newest_results():
    import results_table

    rows = json.loads(results_table.newest().read_text("utf-8"))["rows"]
    ratios = {(r["op"], r["case"], r["peer"]): r["ratio"] for r in rows if r["threads"] == 1}
    text = pages.text_of("README.md")
    for row, key in {
        "`deform_attn`": ("deform_attn", "fwd+bwd fp32, shape A", "grid_sample core (TadTR)"),
        "`batched_nms`": (
            "batched_nms",
            "213 videos x 2,000 x 20 classes, soft",
            "loop over OpenTAD batched_nms",
        ),
        "`evaluate`": (
            "evaluate",
            "42k detections, 212 videos, 20 classes, 5 tIoU, arrays",
            "mmaction2",
        ),
        "`FeatureLoader`": (
            "FeatureLoader",
            "windows 128 x 2048, batch 16",
            "TadTR DataLoader, 0 workers",
        ),
    }.items():
        said = re.search(rf"^\| {row}.*?\| ([\d.]+) times", text, re.MULTILINE)
        assert said is not None, row
        assert float(said[1]) == pytest.approx(ratios[key], rel=0.01), row


def test_files_for_contributors_are_whole():
    citation = yaml.safe_load(pages.text_of("CITATION.cff"))
    assert citation["version"] == tal_fast.__version__
    assert {"cff-version", "title", "message", "authors"} <= citation.keys()
    workflow = yaml.safe_load(pages.text_of(".github/workflows/test.yml"))
    pythons = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    project = pages.text_of("pyproject.toml")
    assert pythons == re.findall(r"Python :: (3\.\d+)", project)
    for template in sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.md")):
        _, head, body = template.read_text("utf-8").split("---\n", 2)
        assert {"name", "about"} <= yaml.safe_load(head).keys()
        assert body.strip()
