# SPDX-License-Identifier: Apache-2.0
"""The import hook under everything that Python's import system does."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
import zipfile

import made_originals
import pytest
from processes import HANG

from tal_fast import compat
from tal_fast.compat import proof
from tal_fast.errors import ConfigError

CORE = made_originals.core()
NAME = "deform_attn_core_pytorch"


def is_ours(function) -> bool:
    return hasattr(function, "__wrapped__")


def test_importing_changes_nothing():
    before = list(sys.meta_path)
    importlib.reload(compat)
    assert sys.meta_path == before
    assert not compat.installed()


def test_a_function_is_replaced_and_comes_back(folder, kinds):
    folder.write("core_made.py", CORE)
    compat.install(quiet=True)
    module = folder.load("core_made")
    ours = module.deform_attn_core_pytorch
    original = ours.__wrapped__
    assert original.__code__.co_filename == module.__file__
    assert f"core_made.{NAME}" in kinds("replaced")
    compat.uninstall()
    assert module.deform_attn_core_pytorch is original
    # And a module that is loaded afterwards is as it is.
    folder.write("later_made.py", CORE)
    assert not is_ours(folder.load("later_made").deform_attn_core_pytorch)


def test_what_is_loaded_already_is_examined(folder):
    folder.write("core_made.py", CORE)
    folder.write("user_made.py", f"from core_made import {NAME} as core")
    user, core = folder.load("user_made"), folder.load("core_made")
    original = core.deform_attn_core_pytorch
    compat.install(quiet=True)
    assert is_ours(core.deform_attn_core_pytorch)
    assert user.core is core.deform_attn_core_pytorch  # from x import f, before
    compat.uninstall()
    assert user.core is original
    assert core.deform_attn_core_pytorch is original


def test_from_import_after(folder):
    folder.write("core_made.py", CORE)
    folder.write("user_made.py", f"from core_made import {NAME} as core")
    compat.install(quiet=True)
    user = folder.load("user_made")
    assert is_ours(user.core)
    compat.uninstall()
    # Its own name for ours stays with it until then, and works.
    assert user.core is not None


def test_circular_imports(folder):
    folder.write("first_made.py", f"{CORE}\nimport second_made\n")
    folder.write("second_made.py", f"from first_made import {NAME} as core\n")
    compat.install(quiet=True)
    first = folder.load("first_made")
    second = folder.load("second_made")
    assert is_ours(first.deform_attn_core_pytorch)
    assert second.core is first.deform_attn_core_pytorch


def test_reload(folder):
    folder.write("core_made.py", CORE)
    compat.install(quiet=True)
    module = folder.load("core_made")
    before = module.deform_attn_core_pytorch
    module = importlib.reload(module)
    assert is_ours(module.deform_attn_core_pytorch)
    assert module.deform_attn_core_pytorch is not before
    # The module keeps its real loader.
    assert type(module.__loader__).__name__ == "SourceFileLoader"
    assert module.__spec__.loader is module.__loader__


def test_namespace_packages_and_zips(folder, tmp_path):
    folder.write("space_made/inner_made.py", CORE)
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("zipped_made.py", CORE)
    sys.path.insert(0, str(archive))
    compat.install(quiet=True)
    assert is_ours(folder.load("space_made.inner_made").deform_attn_core_pytorch)
    assert is_ours(folder.load("zipped_made").deform_attn_core_pytorch)
    del sys.modules["space_made"]


def test_installed_packages_and_the_standard_library_are_nobodys(folder, tmp_path):
    folder.write("site-packages/installed_made.py", CORE)
    folder.write("target/other_made.py", CORE)
    folder.write("target/other-1.0.dist-info/METADATA", "")
    sys.path[:0] = [str(tmp_path / "site-packages"), str(tmp_path / "target")]
    compat.install(quiet=True)
    assert not is_ours(folder.load("installed_made").deform_attn_core_pytorch)
    assert not is_ours(folder.load("other_made").deform_attn_core_pytorch)


def test_frozen_and_missing_modules(folder):
    compat.install(quiet=True)
    assert importlib.reload(importlib.import_module("__hello__")) is not None
    with pytest.raises(ModuleNotFoundError, match="No module named 'nowhere_made'"):
        folder.load("nowhere_made")
    folder.write("faulty_made.py", "import nowhere_made\n")
    with pytest.raises(ModuleNotFoundError, match="No module named 'nowhere_made'"):
        folder.load("faulty_made")
    folder.write("broken_made.py", f"{CORE}\nraise RuntimeError('made')\n")
    with pytest.raises(RuntimeError, match="made"):
        folder.load("broken_made")


def test_other_finders_may_ask_in_turn(folder):
    class Asking:
        asked = False

        def find_spec(self, name, path=None, target=None):
            if name != "core_made" or self.asked:
                return None
            self.asked = True
            try:
                return importlib.util.find_spec(name)
            finally:
                self.asked = False

    finder = Asking()
    folder.write("core_made.py", CORE)
    compat.install(quiet=True)
    sys.meta_path.insert(1, finder)
    try:
        assert is_ours(folder.load("core_made").deform_attn_core_pytorch)
    finally:
        sys.meta_path.remove(finder)


def test_specs_answer_as_their_own_loaders_do(folder):
    file = folder.write("core_made.py", CORE)
    compat.install(quiet=True)
    spec = importlib.util.find_spec("core_made")
    assert spec.origin == str(file)
    assert spec.loader.get_source("core_made") == file.read_text()
    assert spec.loader.get_code("core_made").co_filename == str(file)


def test_threads(folder):
    names = [f"thread{i}_made" for i in range(6)]
    for name in names:
        folder.write(f"{name}.py", CORE)
    compat.install(quiet=True)
    threads = [threading.Thread(target=folder.load, args=(name,)) for name in names * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(is_ours(sys.modules[name].deform_attn_core_pytorch) for name in names)


def test_a_proof_that_imports_what_another_thread_is_importing(folder, monkeypatch):
    monkeypatch.setattr(proof, "_PATIENCE", 0.1)
    nms = made_originals.TEMPORAL_NMS.format(comparison="<=")
    # The second waits for the import of the first, which waits for the second's proof: the first is
    # being imported when the second's proof begins, and does not end before.
    events = "first, second = threading.Event(), threading.Event()"
    folder.write("meeting_made.py", f"import threading\n{events}")
    meet = f"import meeting_made\nmeeting_made.first.set()\nassert meeting_made.second.wait({HANG})"
    folder.write("first_made.py", f"{meet}\n{nms}")
    meet = f"import meeting_made\nassert meeting_made.first.wait({HANG})"
    body = "    meeting_made.second.set()\n    import first_made\n    kept = []"
    folder.write("second_made.py", f"{meet}\n{nms.replace('    kept = []', body)}")
    compat.install(quiet=True)
    threads = [
        threading.Thread(target=folder.load, args=(name,), daemon=True)
        for name in ("first_made", "second_made")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
        assert not thread.is_alive()
    assert is_ours(sys.modules["first_made"].temporal_nms)
    assert is_ours(sys.modules["second_made"].temporal_nms)


def test_a_module_that_puts_another_object_in_its_place(folder):
    folder.write(
        "other_made.py",
        """
        import sys
        class Holder:
            answer = 42
        sys.modules[__name__] = Holder()
        """,
    )
    compat.install(quiet=True)
    assert folder.load("other_made").answer == 42
    del sys.modules["other_made"]


def test_twice_and_with_other_arguments():
    report = compat.install(quiet=True)
    assert compat.install(quiet=True) is report
    with pytest.raises(ConfigError, match="called before with other"):
        compat.install(quiet=True, nms="fused")
    assert compat.uninstall() is report
    assert compat.uninstall() is None
    with pytest.raises(ConfigError, match="call install"):
        compat.report()
