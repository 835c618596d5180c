# SPDX-License-Identifier: Apache-2.0
"""Mends: in the user's files alone, reported with file and line, switched off, undone."""

from __future__ import annotations

import argparse
import pickle
import sys
import types

import numpy as np
import pytest
import torch

from tal_fast import compat


def mended() -> list[tuple[str, str, int]]:
    return [(e.name, e.detail, e.calls) for e in compat.report().entries if e.kind == "mended"]


# ---- numpy ---------------------------------------------------------------------------------------


def test_numpy_names(folder):
    folder.write(
        "old_made.py",
        """
        import numpy as np
        def types():
            return np.float, np.int, np.object
        """,
    )
    before = vars(np).get("__getattr__")
    compat.install(quiet=True)
    assert folder.load("old_made").types() == (float, int, object)
    names = [name for name, _, _ in mended()]
    assert names == ["numpy.float", "numpy.int", "numpy.object"]
    assert all(detail.endswith("old_made.py:4") for _, detail, _ in mended())
    folder.load("old_made").types()
    assert [calls for _, _, calls in mended()] == [2, 2, 2]
    compat.uninstall()
    assert vars(np).get("__getattr__") is before
    with pytest.raises(AttributeError, match="float"):
        folder.load("old_made").types()


def test_numpy_names_from_import_and_renamed(folder):
    folder.write("old_made.py", "from numpy import float as f, in1d\n")
    compat.install(quiet=True)
    module = folder.load("old_made")
    assert module.f is float
    assert module.in1d([1, 2], [2]).tolist() == [False, True]


@pytest.mark.parametrize("options", [{"skip": ["numpy"]}, {"mend": False}])
def test_without_mends(folder, options):
    folder.write("old_made.py", "import numpy as np\nvalue = np.float\n")
    compat.install(quiet=True, **options)
    with pytest.raises(AttributeError, match="float"):
        folder.load("old_made")


def test_only_names_that_were_there_and_only_for_users(folder, tmp_path):
    folder.write("site-packages/library_made.py", "import numpy as np\nvalue = np.float\n")
    folder.write("typo_made.py", "import numpy as np\nvalue = np.flaot\n")
    sys.path.insert(0, str(tmp_path / "site-packages"))
    compat.install(quiet=True)
    for name in ("library_made", "typo_made"):
        with pytest.raises(AttributeError):
            folder.load(name)
    assert mended() == []


# ---- pandas --------------------------------------------------------------------------------------


def test_drop_with_an_axis_by_position(folder):
    pd = pytest.importorskip("pandas")
    before = pd.DataFrame.drop
    folder.write("old_made.py", "def run(frame): return frame.drop('a', 1)\n")
    frame = pd.DataFrame({"a": [1, 2], "b": [3, 4]})
    compat.install(quiet=True)
    assert list(folder.load("old_made").run(frame).columns) == ["b"]
    ((name, detail, calls),) = mended()
    assert (name, calls) == ("pandas.DataFrame.drop", 1)
    assert detail.endswith("old_made.py:1")
    assert list(frame.drop(columns="b").columns) == ["a"]  # what is right stays unmended
    assert len(mended()) == 1
    compat.uninstall()
    assert pd.DataFrame.drop is before
    with pytest.raises(TypeError):
        folder.load("old_made").run(frame)


def test_replace_gives_numbers(folder):
    pd = pytest.importorskip("pandas")
    folder.write(
        "old_made.py",
        """
        def column(frame): return frame["name"].replace({"x": 0, "y": 1})
        def table(frame): return frame.replace({"x": 0, "y": 1})
        """,
    )
    frame = pd.DataFrame({"name": np.array(["x", "y", "x"], dtype=object)})
    compat.install(quiet=True)
    module = folder.load("old_made")
    assert module.column(frame).dtype == np.int64
    assert module.table(frame)["name"].dtype == np.int64
    assert {name for name, _, _ in mended()} <= {
        "pandas.Series.replace",
        "pandas.DataFrame.replace",
    }
    compat.uninstall()
    assert "replace" not in vars(pd.DataFrame) or pd.DataFrame.replace.__module__ != __name__


# ---- torch.load ----------------------------------------------------------------------------------

LOAD = "import torch\ndef run(path, **options): return torch.load(path, **options)\n"


class Danger:
    """What a checkpoint must not bring along."""


def test_plain_data_beside_weights(folder, tmp_path):
    content = {
        "model": {"weight": torch.arange(3.0)},
        "args": argparse.Namespace(lr=0.1),
        "best": np.float64(0.5),
        "table": np.arange(4),
    }
    torch.save(content, tmp_path / "checkpoint.pth")
    folder.write("old_made.py", LOAD)
    compat.install(quiet=True)
    found = folder.load("old_made").run(tmp_path / "checkpoint.pth")
    assert torch.equal(found["model"]["weight"], torch.arange(3.0))
    assert found["args"] == argparse.Namespace(lr=0.1)
    assert found["best"] == 0.5
    assert found["table"].tolist() == [0, 1, 2, 3]
    ((name, detail, _),) = mended()
    assert name == "torch.load"
    assert "old_made.py:2" in detail
    assert "argparse.Namespace" in detail
    with (tmp_path / "checkpoint.pth").open("rb") as file:
        assert folder.load("old_made").run(file)["best"] == 0.5


def test_easydict(folder, tmp_path, monkeypatch):
    easydict = types.ModuleType("easydict")

    class EasyDict(dict):
        pass

    EasyDict.__module__, EasyDict.__qualname__ = "easydict", "EasyDict"
    easydict.EasyDict = EasyDict
    monkeypatch.setitem(sys.modules, "easydict", easydict)
    torch.save({"cfg": EasyDict(a=1)}, tmp_path / "checkpoint.pth")
    folder.write("old_made.py", LOAD)
    compat.install(quiet=True)
    assert folder.load("old_made").run(tmp_path / "checkpoint.pth") == {"cfg": {"a": 1}}


def test_anything_else_is_refused_by_name(folder, tmp_path):
    torch.save({"x": Danger()}, tmp_path / "checkpoint.pth")
    folder.write("old_made.py", LOAD)
    compat.install(quiet=True)
    with pytest.raises(pickle.UnpicklingError, match=r"old_made\.py:2: torch\.load: .*Danger"):
        folder.load("old_made").run(tmp_path / "checkpoint.pth")
    assert mended() == []
    # Who says how to read it is obeyed.
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        folder.load("old_made").run(tmp_path / "checkpoint.pth", weights_only=True)
    found = folder.load("old_made").run(tmp_path / "checkpoint.pth", weights_only=False)
    assert isinstance(found["x"], Danger)


def test_torch_load_is_itself_again():
    before = torch.load
    compat.install(quiet=True)
    assert torch.load is not before
    compat.uninstall()
    assert torch.load is before


def test_weights_need_no_mend_and_other_errors_stay(folder, tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "weights.pth")
    folder.write("old_made.py", LOAD)
    compat.install(quiet=True)
    assert folder.load("old_made").run(tmp_path / "weights.pth")["weight"].sum() == 2
    with pytest.raises(FileNotFoundError):
        folder.load("old_made").run(tmp_path / "missing.pth")
    assert mended() == []


# ---- OpenTAD -------------------------------------------------------------------------------------


def test_ground_truth_in_float32(folder):
    folder.write("made/transforms/__init__.py", "")
    folder.write(
        "made/transforms/formatting_made.py",
        """
        import torch
        class ConvertToTensor:
            def __call__(self, results):
                return {name: torch.as_tensor(value) for name, value in results.items()}
        """,
    )
    given = {"gt_segments": np.zeros((2, 2)), "other": np.zeros(2)}
    compat.install(quiet=True)
    owner = folder.load("made.transforms.formatting_made").ConvertToTensor
    found = owner()(given)
    assert found["gt_segments"].dtype == torch.float32
    assert found["other"].dtype == torch.float64
    assert mended()[0][0] == "made.transforms.formatting_made.ConvertToTensor"
    compat.uninstall()
    assert owner()(given)["gt_segments"].dtype == torch.float64
