# SPDX-License-Identifier: Apache-2.0
"""What makes a site of the pages: its navigation, and the files that pages link to elsewhere."""

from __future__ import annotations

import pages
import pytest
import sources
import yaml

SITE = pages.ROOT / "docs/site"


class _AnyTag(yaml.SafeLoader):
    """Reads mkdocs.yml without what builds it: a Python object there is None."""


_AnyTag.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)
SETTINGS = yaml.load((SITE / "mkdocs.yml").read_text("utf-8"), _AnyTag)


def in_navigation(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in in_navigation(part)]  # type: ignore[attr-defined]


def test_every_page_is_in_the_navigation_once():
    listed = in_navigation(SETTINGS["nav"])
    assert len(listed) == len(set(listed))
    there = [page.removeprefix("docs/") for page in pages.PAGES if page.startswith("docs/")]
    assert set(listed) == {page for page in there if not page.startswith("results/")}


def test_nothing_is_loaded_from_elsewhere():
    assert SETTINGS["theme"]["font"] is False
    text = "".join(path.read_text("utf-8") for path in (SITE / "site.css", SITE / "sources.py"))
    assert "url(" not in text
    page = '<head><script src="https://elsewhere/shim"></script><script src="a.js"></script>'
    assert "elsewhere" not in sources.on_post_page(page)
    assert '<script src="a.js">' in sources.on_post_page(page)


@pytest.mark.parametrize(
    ("path", "there"),
    [
        ("docs/ops.md", "ops.md"),
        ("docs/results/hapt", "results/hapt/README.md"),
        ("docs/results/adaptive", "results/adaptive/index.md"),
        ("docs/results/hapt/curve.csv", "results/hapt/curve.csv"),
        ("README.md", "source/README.md"),
        (".github/CONTRIBUTING.md", "source/github/CONTRIBUTING.md"),
        ("tal_fast/ops/nms.py", "source/tal_fast/ops/nms.py.md"),
        ("benchmarks/gpu_predictions.json", "source/benchmarks/gpu_predictions.json"),
    ],
)
def test_places(path, there):
    assert sources.place(path) == there


def test_links_are_turned_outside_of_code():
    text = "[a](../tal_fast/info.py) [b](ops.md#speed) [c](missing.md) [d](https://e) [f](#g)\n"
    code = "```sh\n[a](../tal_fast/info.py)\n```\n"
    turned = sources.placed(text + code, "docs/status.md")
    assert turned == text.replace("../tal_fast/info.py", "source/tal_fast/info.py.md") + code
    assert sources.targets(text + code, "docs/status.md") == {"tal_fast/info.py", "docs/ops.md"}
    back = sources.placed("[h](docs/ops.md) ![i](docs/results/hapt/curve.png)", "README.md")
    assert back == "[h](../ops.md) ![i](../results/hapt/curve.png)"
