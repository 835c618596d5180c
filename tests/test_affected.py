# SPDX-License-Identifier: Apache-2.0
"""What ``make check`` takes for the tests of a change."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import affected
import pytest

ROOT = Path(__file__).parents[1]

FILES = {
    "tal_fast/__init__.py": "",
    "tal_fast/_C.pyi": "",
    "tal_fast/errors.py": "",
    "tal_fast/ops/__init__.py": """
        from tal_fast.ops.iou import iou
        from tal_fast.ops.nms import nms, Kept
    """,
    "tal_fast/ops/registration.py": "from tal_fast import _C",
    "tal_fast/ops/iou.py": "from tal_fast.ops.registration import register",
    "tal_fast/ops/nms.py": "from tal_fast.ops.iou import iou",
    "tal_fast/models/__init__.py": "from tal_fast.models.layers import Layer",
    "tal_fast/models/layers.py": "from tal_fast import ops\ndef f(): return ops.nms()",
    "tal_fast/models/page.py": "PAGE = 'page.css'",
    "tal_fast/models/page.css": "",
    "tal_fast/data/reading.py": "from tal_fast._C import read",
    "tal_fast/data/lonely.py": "",
    "tal_fast/cli/lonely.py": "",
    "tests/test_cli.py": "",
    "csrc/math/overlap.h": "",
    "csrc/cpu/iou.cpp": '#include "cpu/iou.h"\n#include "cpu/pages.h"',
    "csrc/cpu/pages.cpp": "",
    "csrc/cpu/pages.h": "",
    "csrc/cpu/iou.h": '#include "math/overlap.h"',
    "csrc/cuda/nms_hard.cu": '#include "cuda/nms.cuh"',
    "csrc/cuda/nms.cuh": "#include <vector>",
    "csrc/reader/reader.cpp": "",
    "csrc/evaluation/recall.cpp": "",
    "tests/conftest.py": "import everywhere",
    "tests/everywhere.py": "",
    "tests/processes.py": "",
    "tests/test_layers.py": "",
    "tests/ops/conftest.py": "",
    "tests/ops/op_cases.py": "from tal_fast import ops",
    "tests/ops/test_iou.py": "from tal_fast.ops import iou",
    "tests/ops/test_nms.py": "import op_cases\nfrom tal_fast import ops\nx = ops.nms, ops.Kept",
    "tests/ops/test_nms_peers.py": "",
    "tests/models/test_layers_of_models.py": "def test(patch): patch('tal_fast.models.layers.f')",
    "tests/models/test_page.py": "import processes\nfrom tal_fast.models import page",
    "tests/data/test_reading.py": "from pathlib import Path\nP = Path('docs') / 'features.md'",
    "tests/data/pread.c": "",
    "tests/data/test_faults.py": "P = 'pread.c'",
    "tests/evaluation/test_ap.py": "",
    "docs/features.md": "",
    "docs/other.md": "",
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkout")
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("\n".join(line.strip() for line in text.strip().splitlines()))
    return root


LAYERS = "test_layers.py"
NMS = ["models/test_layers_of_models.py", "ops/test_nms.py", "ops/test_nms_peers.py"]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        # Who imports it, who is called like it, and who is called like a module that imports it.
        (["tal_fast/ops/iou.py"], ["ops/test_iou.py", "ops/test_nms.py", "ops/test_nms_peers.py"]),
        # By attribute of the package, and through a name that it passes on.
        (["tal_fast/ops/nms.py"], NMS),
        (["tal_fast/models/layers.py"], ["models/test_layers_of_models.py"]),
        (["tal_fast/data/lonely.py"], ["data/test_faults.py", "data/test_reading.py"]),
        (["tal_fast/cli/lonely.py"], ["test_cli.py"]),
        (["tal_fast/models/page.css"], ["models/test_page.py"]),
        (["csrc/math/overlap.h"], ["ops/test_iou.py", "ops/test_nms.py", "ops/test_nms_peers.py"]),
        (["csrc/cpu/pages.cpp"], ["ops/test_iou.py", "ops/test_nms.py", "ops/test_nms_peers.py"]),
        (["csrc/cuda/nms.cuh"], NMS),
        (["csrc/reader/reader.cpp"], ["data/test_reading.py"]),
        (["csrc/evaluation/recall.cpp"], ["evaluation/test_ap.py"]),
    ],
)
def test_of_the_library(checkout: Path, changed: list[str], expected: list[str]) -> None:
    found = affected.select(checkout, changed)
    assert found == sorted(f"tests/{name}" for name in (*expected, LAYERS))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (["tests/ops/test_nms_peers.py"], ["ops/test_nms_peers.py"]),
        (["tests/ops/op_cases.py"], ["ops/test_nms.py"]),
        (["tests/processes.py", "tests/models/test_page.py"], ["models/test_page.py"]),
        (
            ["tests/ops/conftest.py"],
            ["ops/test_iou.py", "ops/test_nms.py", "ops/test_nms_peers.py"],
        ),
        (["tests/data/pread.c"], ["data/test_faults.py"]),
        (["docs/features.md"], ["data/test_reading.py"]),
        (["docs/other.md", "no/such/file.py", "tests/ops/test_gone.py"], []),
        ([], []),
    ],
)
def test_of_tests_and_pages(checkout: Path, changed: list[str], expected: list[str]) -> None:
    assert affected.select(checkout, changed) == sorted(f"tests/{name}" for name in expected)


@pytest.mark.parametrize("changed", ["tests/conftest.py", "tests/everywhere.py"])
def test_what_every_test_stands_on(checkout: Path, changed: str) -> None:
    every = [name for name in FILES if "/test_" in name]
    assert affected.select(checkout, [changed]) == sorted(every)


def test_this_library() -> None:
    found = affected.select(ROOT, ["csrc/cpu/nms_hard.cpp", "tal_fast/ops/segment_iou.py"])
    assert {
        "tests/ops/test_nms.py",
        "tests/ops/test_nms_cuda.py",
        "tests/ops/test_batched_nms.py",
        "tests/ops/test_segment_iou.py",
        "tests/ops/test_matching_cost.py",
    } <= set(found)
    assert len(found) < 30


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
class TestChangedFiles:
    @pytest.fixture
    def git(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        for variable in [name for name in os.environ if name.startswith("GIT_")]:
            monkeypatch.delenv(variable)  # of a hook that runs the tests
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)

        def git(*arguments: str) -> None:
            who = ("-c", "user.name=a", "-c", "user.email=a@b")
            subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

        git("init", "-b", "main")
        for name in ("kept", "moved", "left"):
            (tmp_path / name).write_text(name)
        (tmp_path / ".gitignore").write_text("ignored\n")
        git("add", ".")
        git("commit", "-m", "first")
        return git

    def changed(self, root: Path, base: str | None = None) -> list[str]:
        return affected.changed_files(root, base)[1]

    def test_committed_or_not_since_the_branch_left(self, tmp_path: Path, git) -> None:
        assert self.changed(tmp_path) == []
        git("switch", "-c", "branch")
        git("mv", "moved", "there")
        git("commit", "-m", "second")
        (tmp_path / "left").write_text("other")
        (tmp_path / "new one").touch()
        (tmp_path / "ignored").touch()
        assert self.changed(tmp_path) == ["left", "moved", "new one", "there"]
        assert self.changed(tmp_path, "HEAD") == ["left", "new one"]
        git("switch", "main")
        (tmp_path / "kept").write_text("on main")
        git("commit", "-m", "third", "kept")
        git("switch", "branch")
        assert "kept" not in self.changed(tmp_path)  # changed there, not here

    def test_the_remote_branch_comes_first(self, tmp_path: Path, git) -> None:
        git("update-ref", "refs/remotes/origin/main", "HEAD")
        (tmp_path / "kept").write_text("on main, not pushed")
        git("commit", "-m", "second", "kept")
        assert self.changed(tmp_path) == ["kept"]

    def test_the_program_prints_paths_and_says_how_many(self, tmp_path: Path, git) -> None:
        (tmp_path / "tests").mkdir()
        shutil.copy(affected.__file__, tmp_path / "tests")
        (tmp_path / "tests" / "test_new.py").touch()
        command = [sys.executable, "tests/affected.py", "--base", "HEAD"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout == "tests/test_new.py\n"
        assert "2 files differ from " in done.stderr
        assert ": 1 of 1 test files" in done.stderr

    def test_no_such_commit(self, tmp_path: Path, git) -> None:
        with pytest.raises(SystemExit, match="expected a git checkout with the commit nothing"):
            self.changed(tmp_path, "nothing")


def test_make_check_asks_it() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    recipe = makefile[makefile.index("\ncheck:") :].split("\n\n")[0]
    assert "tests/affected.py" in recipe
