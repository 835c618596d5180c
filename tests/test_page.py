# SPDX-License-Identifier: Apache-2.0
"""Pages: whatever names hold, a page is text that can be written."""

from pathlib import Path

import pytest

from tal_fast.data.validation import validate, write_report

pytest.importorskip("jinja2")


def test_half_a_pair_of_utf16_in_a_name(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(
        r'{"database": {"v": {"subset": "\ud800", "duration": 9.0, "annotations": '
        r'[{"label": "run", "segment": [1.0, 2.0]}]}}}'
    )
    write_report(tmp_path / "page", validate(path))
    (page,) = (tmp_path / "page").rglob("*.html")
    assert "\\ud800" in page.read_text("utf-8")
