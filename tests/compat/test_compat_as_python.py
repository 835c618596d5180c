# SPDX-License-Identifier: Apache-2.0
"""What a script sees and shows under the launcher: what it sees and shows under Python alone."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import made_originals
import pytest
from processes import HANG

import tal_fast

NMS = made_originals.TEMPORAL_NMS.format(comparison="<=")
ROOT = Path(tal_fast.__file__).parents[1]

SCRIPTS = {
    "names": """
        import __main__, sys
        print(sorted(globals()), __annotations__, __cached__, __package__, __spec__)
        print(type(__loader__).__name__, __main__.__file__ == __file__, sys.flags.optimize)
    """,
    "traceback": """
        import os
        os.chdir("/")
        import helper
        def f():
            try:
                helper.fail()
            except ZeroDivisionError as error:
                raise ValueError("of the script") from error
        f()
    """,
    "import_that_fails": "import importer\n",
    "own_hook": """
        import sys
        assert sys.excepthook is sys.__excepthook__
        def hook(kind, error, trace):
            print(kind.__name__, trace.tb_frame.f_code.co_name, trace.tb_next)
        sys.excepthook = hook
        raise KeyError(1)
    """,
    "syntax": "x = 1\ndef f(:\n    pass\n",
    "latin": '# -*- coding: latin-1 -*-\ns = "é"\nprint(len(s), ascii(s))\nraise ValueError("é")\n',
    "relative": "from . import helper\n",
    "words": "import sys\nsys.exit('what went wrong')\n",
    "interrupted": "raise KeyboardInterrupt\n",
    "killed": "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n",
    "pickled": """
        import dataclasses, inspect, pickle, typing
        @dataclasses.dataclass
        class Point:
            x: "int" = 1
        def f():
            return 4
        if __name__ == "__main__" and Point:
            point, function = pickle.loads(pickle.dumps([Point(3), f]))
            print(point, function is f, typing.get_type_hints(Point), inspect.getsource(f))
    """,
    "arguments": """
        import argparse
        parser = argparse.ArgumentParser()
        for name in ("--skip", "--dry-run", "-m"):
            parser.add_argument(name)
        print(parser.parse_args())
    """,
    "run_path": """
        import os, runpy, sys
        found = runpy.run_path(os.path.join(os.path.dirname(__file__), "helper.py"))
        print(found["__name__"], sys.modules["__main__"].__dict__ is globals())
    """,
    "at_the_end": """
        import atexit
        atexit.register(lambda: print("last words", __name__))
        class Held:
            def __del__(self):
                print("let go", __name__)
        held = Held()
    """,
}


def compare(*command: str, cwd: Path, python: tuple[str, ...] = ()) -> str:
    """Runs a command both ways and returns the output, which must be the same."""
    found = []
    for launcher in ((), ("-m", "tal_fast.compat")):
        done = subprocess.run(
            [sys.executable, *python, *launcher, *command],
            capture_output=True,
            encoding="utf-8",
            check=False,
            cwd=cwd,
            timeout=HANG,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        )
        found.append((done.returncode, done.stdout, done.stderr))
    assert found[0] == found[1]
    return found[0][1]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script(name, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/helper.py").write_text("def fail():\n    return 1 / 0\n")
    (tmp_path / "in/importer.py").write_text("import helper\nimport helper2\n")
    (tmp_path / "in/helper2.py").write_text("def f():\n    import absent\nf()\n")
    text = textwrap.dedent(SCRIPTS[name]).lstrip()
    encoding = "latin-1" if name == "latin" else "utf-8"
    (tmp_path / "in/script.py").write_text(text, encoding=encoding)
    arguments = ("--skip", "x", "-m", "3") if name == "arguments" else ()
    compare("in/script.py", *arguments, cwd=tmp_path)


def test_a_link_to_a_script(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/helper.py").write_text("value = 5\n")
    (tmp_path / "real/script.py").write_text(
        "import helper, sys\nprint(helper.value, sys.path[0], __file__)\n"
    )
    (tmp_path / "script.py").symlink_to("real/script.py")
    assert compare("script.py", cwd=tmp_path).startswith("5 ")


def test_a_folder_and_a_zip(tmp_path):
    (tmp_path / "application").mkdir()
    (tmp_path / "application/helper.py").write_text("value = 5\n")
    main = (
        "import os, sys\nos.chdir('/')\nimport helper\n"
        "print(helper.value, os.path.basename(sys.argv[0]), sys.argv[1:], sys.path[0], __name__)\n"
    )
    (tmp_path / "application/__main__.py").write_text(main)
    with zipfile.ZipFile(tmp_path / "application.pyz", "w") as file:
        file.writestr("__main__.py", main)
        file.writestr("helper.py", "value = 6\n")
    assert compare("application", "a", cwd=tmp_path).startswith("5 ")
    assert compare("application.pyz", "a", cwd=tmp_path).startswith("6 ")


def test_modules(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").write_text("value = 7\n")
    (tmp_path / "package/__main__.py").write_text(
        "import sys\nfrom . import value\n"
        "print(value, __spec__.name, sys.argv[1:], sys.path[0])\nsys.exit(4)\n"
    )
    assert compare("-m", "package", "-x", cwd=tmp_path).startswith("7 package.__main__ ['-x']")
    compare("-m", "package.absent", cwd=tmp_path)
    compare("-m", "absent.package", cwd=tmp_path)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="-P came with Python 3.11")
def test_a_path_that_is_to_stay_safe(tmp_path):
    (tmp_path / "script.py").write_text("import sys\nprint(sys.path)\n")
    compare("script.py", cwd=tmp_path, python=("-P",))


FLAT = f"""
{NMS}
import os, shutil, tempfile
import numpy as np
print(hasattr(temporal_nms, "__wrapped__"))
folder = tempfile.mkdtemp()
os.chdir(folder)
shutil.rmtree(folder)
print(np.float(1))
"""


def test_a_script_without_main_block_in_a_folder_that_is_gone(tmp_path):
    (tmp_path / "script.py").write_text(FLAT)
    done = subprocess.run(
        [sys.executable, "-m", "tal_fast.compat", "--report", "report.json", "script.py"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        timeout=HANG,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.splitlines() == ["True", "1.0"]
    assert (tmp_path / "report.json").exists()  # where it was when the program began


def test_pytest_as_the_module(tmp_path):
    (tmp_path / "library.py").write_text(NMS)
    (tmp_path / "test_made.py").write_text(
        "from library import temporal_nms\n"
        "def test_it():\n    assert hasattr(temporal_nms, '__wrapped__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "tal_fast.compat", "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=HANG,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout
    assert "library.temporal_nms" in done.stderr


NOTEBOOK = """
import sys
def cell(number, text):
    exec(compile(text, f"<ipython-input-{number}-0a1b2c>", "exec"), vars(sys.modules["__main__"]))
del sys.modules["__main__"].__file__
cell(1, "from library import temporal_nms")
cell(2, "from tal_fast import compat; compat.install(quiet=True)")
cell(3, "import numpy as np; print(hasattr(temporal_nms, '__wrapped__'), np.float(1))")
cell(4, "compat.uninstall(); print(hasattr(temporal_nms, '__wrapped__'))")
"""


def test_cells_of_a_notebook(tmp_path):
    (tmp_path / "library.py").write_text(NMS)
    (tmp_path / "notebook.py").write_text(NOTEBOOK)
    done = subprocess.run(
        [sys.executable, "notebook.py"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=HANG,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.splitlines() == ["True 1.0", "False"], done.stderr
