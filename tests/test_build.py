# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import yaml

import tal_fast
from tal_fast import info
from tal_fast.errors import TalFastError
from tal_fast.ops.loading import not_loaded

ROOT = Path(tal_fast.__file__).parent.parent
sys.path.insert(0, str(ROOT / "build_backend"))

import find_torch  # noqa: E402


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def test_build_info() -> None:
    facts = info.collect()
    build = facts["build"]
    assert facts["tal_fast"] == tal_fast.__version__
    assert build["isas_built"][0] == "baseline"
    assert build["isa"] in build["isas_available"]
    assert build["torch_target"] == "2.10"
    assert re.match(r"\d+\.\d+", build["torch_headers"])
    assert build["build_type"] == "Release"
    assert build["compiler"].split()[0] in ("GNU", "Clang")


def test_info_says_why_cuda_is_off() -> None:
    import torch

    if torch.version.cuda is not None:
        pytest.skip("torch is a CUDA build")
    cuda = info.collect()["cuda"]
    assert cuda["available"] is False
    assert "tal_fast was built against a CPU build of torch" in cuda["why_off"]
    assert "is a CPU build" in cuda["why_off"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("9.0", "90-real"),
        ("8.0;9.0+PTX", "80-real;90-real;90-virtual"),
        ("8.6 9.0a", "86-real;90a-real"),
    ],
)
def test_architectures_follow_torchs_variable(
    wanted: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wanted)
    assert find_torch.cuda_architectures(Path("torch")) == expected


def test_architectures_without_a_cuda_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    assert find_torch.cuda_architectures(Path("no/torch")) == "80-real;90-real;90-virtual"


def test_an_unknown_architecture_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(ValueError, match=r"TORCH_CUDA_ARCH_LIST: expected .* got 'Hopper'"):
        find_torch.cuda_architectures(Path("torch"))


def test_info_counts_usable_cores() -> None:
    facts = info.collect()
    assert 1 <= facts["cpu"]["usable"] <= facts["cpu"]["cores"]
    assert facts["threads"]["torch"] >= 1


@pytest.mark.parametrize("isa", info.instruction_sets())
def test_an_instruction_set_can_be_forced(isa: str) -> None:
    done = run(
        "import torch; from tal_fast import _C; print(_C.build_info()['isa'])", TAL_FAST_ISA=isa
    )
    assert done.stdout.strip() == isa, done.stderr


def test_an_unknown_instruction_set_fails_at_import() -> None:
    done = run("import tal_fast.ops", TAL_FAST_ISA="mmx")
    assert done.returncode == 1
    assert "TAL_FAST_ISA: expected one of baseline" in done.stderr
    assert "on this machine, got 'mmx'" in done.stderr


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package without its native library, as in a checkout that was never built."""
    folder = tmp_path_factory.mktemp("bare")
    shutil.copytree(
        ROOT / "tal_fast",
        folder / "tal_fast",
        ignore=shutil.ignore_patterns("_C.*.so*", "__pycache__"),
    )
    return folder


def in_bare(bare: Path, code: str) -> subprocess.CompletedProcess[str]:
    # An editable installation finds submodules by itself; this process must not.
    return run(
        "import sys\n"
        "sys.meta_path = [f for f in sys.meta_path if 'Editable' not in str(f)]\n"
        f"sys.path.insert(0, {str(bare)!r})\n{code}"
    )


def test_a_missing_library_is_explained(bare: Path) -> None:
    done = in_bare(bare, "import tal_fast.ops")
    assert done.returncode == 1
    last = done.stderr.rstrip().splitlines()[-1]
    assert "NativeLibraryError: tal_fast: the native library is not built: there is no _C." in last
    assert f"in {bare / 'tal_fast'}. Build it: {sys.executable} -m pip install " in last


@pytest.mark.parametrize(
    "command",
    [
        "'info'",
        "'train', '--data', 'd', '--out', 'o', '--model', 'tadtr-small'",
        "'profile', 'model', '--model', 'tadtr', '--channels', '8', '--classes', '2'",
    ],
)
def test_commands_say_it_in_a_line(bare: Path, command: str) -> None:
    done = in_bare(bare, f"from tal_fast.cli import main; sys.exit(main([{command}]))")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: tal_fast: the native library is not built: there is no _C.")


def library(folder: Path, name: str = f"_C{EXTENSION_SUFFIXES[0]}") -> Path:
    package = folder / "tal_fast"
    package.mkdir()
    (package / name).write_bytes(b"")
    return package


def test_a_library_for_another_python_is_named(tmp_path: Path) -> None:
    package = library(tmp_path, "_C.cpython-39-x86_64-linux-gnu.so")
    (tmp_path / "CMakeLists.txt").touch()
    message = str(not_loaded(ImportError("cannot import name '_C'"), package, "2.13.0"))
    assert "another Python or platform (_C.cpython-39-x86_64-linux-gnu.so), this is " in message
    assert f"which needs _C{EXTENSION_SUFFIXES[0]}. " in message
    assert message.endswith(f"{sys.executable} -m pip install -e {tmp_path}")


@pytest.mark.parametrize(
    ("reason", "torch", "message"),
    [
        (
            "_C.so: undefined symbol: aoti_torch_abi_version",
            "2.11.0+cpu",
            r"was built against another torch than this one, 2\.11\.0\+cpu, which lacks the symbol "
            r"aoti_torch_abi_version\. Build it again: ",
        ),
        (
            "libtorch_cpu.so: cannot open shared object file: No such file or directory",
            "2.11.0",
            r"another torch than this one, 2\.11\.0, which lacks the library libtorch_cpu\.so\. ",
        ),
        (
            "libc.so.6: version `GLIBC_2.38' not found (required by _C.so)",
            "2.11.0",
            r"was built on a newer system than this one, which lacks GLIBC_2\.38\. ",
        ),
        ("_C.so: file too short", "2.11.0", r"could not be loaded: _C\.so: file too short\. Build"),
        (
            "_C.so: undefined symbol: aoti",
            "2.9.1",
            r"needs torch 2\.10 or newer, this is 2\.9\.1: ",
        ),
    ],
)
def test_the_cause_is_that_of_the_case(
    tmp_path: Path, reason: str, torch: str, message: str
) -> None:
    found = not_loaded(ImportError(reason), library(tmp_path), torch)
    assert isinstance(found, TalFastError)
    assert isinstance(found, ImportError)
    assert re.search(message, str(found)), str(found)


def test_a_library_that_does_not_load_is_explained(bare: Path) -> None:
    file = bare / "tal_fast" / f"_C{EXTENSION_SUFFIXES[0]}"
    file.write_bytes(b"no library")
    try:
        done = in_bare(bare, "import tal_fast.ops")
    finally:
        file.unlink()
    last = done.stderr.rstrip().splitlines()[-1]
    assert f"the native library {file} could not be loaded: " in last
    assert "Build it again: " in last


def test_torch_that_is_missing_is_told(bare: Path) -> None:
    done = in_bare(bare, "sys.modules['torch'] = None\nimport tal_fast.ops")
    assert "NativeLibraryError: tal_fast needs torch, which is not installed for" in done.stderr
    assert "pip install 'torch>=2.10'" in done.stderr


def test_the_binary_names_no_path_of_the_machine_that_built_it() -> None:
    from tal_fast import _C

    assert _C.__file__ is not None
    binary = Path(_C.__file__).read_bytes()
    assert str(ROOT).encode() + b"/csrc" not in binary
    assert b"RUNPATH" not in binary


def fake_torch(folder: Path, version: str = "2.12.1") -> Path:
    package = folder / "torch"
    (package / "lib").mkdir(parents=True)
    (package / "lib" / "libtorch_cpu.so").touch()
    (package / "version.py").write_text(f"__version__ = '{version}'\n")
    return package


def test_torch_of_the_target_environment_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = fake_torch(tmp_path)
    monkeypatch.setattr(
        find_torch.sysconfig, "get_paths", lambda: {"purelib": tmp_path, "platlib": tmp_path}
    )
    assert find_torch.find_torch() == expected
    assert find_torch.torch_version(expected) == "2.12.1"


def test_torch_of_an_isolated_build_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    monkeypatch.setattr(
        find_torch.sysconfig, "get_paths", lambda: {"purelib": empty, "platlib": empty}
    )
    found = find_torch.find_torch()
    assert found is not None
    assert (found / "lib" / "libtorch_cpu.so").is_file()


def test_torch_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fake_torch(tmp_path)
    monkeypatch.setenv("TAL_FAST_TORCH_DIR", str(expected))
    assert find_torch.find_torch() == expected
    monkeypatch.setenv("TAL_FAST_TORCH_DIR", str(tmp_path / "nothing"))
    assert find_torch.find_torch() is None
    assert find_torch.torch_version(tmp_path / "nothing") == "unknown"


def test_the_backend_asks_for_torch_only_when_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("setuptools")
    import tal_fast_build

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(tal_fast_build._setuptools, "get_requires_for_build_wheel", lambda _: [])
    monkeypatch.setattr(tal_fast_build._setuptools, "get_requires_for_build_editable", lambda _: [])
    assert tal_fast_build.get_requires_for_build_wheel() == []
    assert tal_fast_build.get_requires_for_build_editable() == []
    monkeypatch.setattr(tal_fast_build, "find_torch", lambda: None)
    assert tal_fast_build.get_requires_for_build_wheel() == ["torch>=2.10"]
    assert tal_fast_build.get_requires_for_build_editable() == ["torch>=2.10"]


def shared_symbols(path: Path, isa: str) -> list[str]:
    """What an object of one instruction set defines for the whole library, under a shared name."""
    symbols = subprocess.run(
        ["nm", "--defined-only", str(path)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    # Mangled, a namespace is its length and its name; ours come first in every own symbol.
    own = re.compile(rf"8tal_fast(3cpu|6reader){len(isa)}{isa}")
    # DW.ref.* only points to the handler of exceptions.
    weak = [s for s in symbols if re.search(r" [WVu] ", s) and " DW.ref." not in s]
    return [s for s in weak if not own.search(s)]


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
@pytest.mark.parametrize("isa", ["avx2", "avx512"])
@pytest.mark.parametrize("part", ["cpu", "reader_loops"])
def test_kernels_emit_no_shared_functions(part: str, isa: str) -> None:
    """A weak function with wide instructions could replace the one that older machines need."""
    objects = list((ROOT / "build").glob(f"cpython-*/CMakeFiles/tal_fast_{part}*_{isa}.dir/**/*.o"))
    if not objects:
        pytest.skip("no build folder")
    for path in objects:
        shared = shared_symbols(path, isa)
        assert not shared, f"{path.name}: {shared[:3]}"


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_a_shared_function_is_found(tmp_path: Path) -> None:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    source = tmp_path / "kernel.cpp"
    source.write_text(
        "namespace tal_fast::cpu {\n"
        "inline int& calls() { static int n = 0; return n; }\n"
        "template <class T> [[gnu::noinline]] T twice(T x) { return x + x; }\n"
        "namespace avx2 {\n"
        "template <class T> [[gnu::noinline]] T own(T x) { return twice(x) + ++calls(); }\n"
        "float kernel(float x) { return own(x); }\n"
        "}}\n"
    )
    built = tmp_path / "kernel.o"
    subprocess.run([compiler, "-std=c++20", "-O2", "-c", str(source), "-o", str(built)], check=True)
    names = {s.split()[-1] for s in shared_symbols(built, "avx2")}
    assert names == {"_ZN8tal_fast3cpu5twiceIfEET_S2_", "_ZZN8tal_fast3cpu5callsEvE1n"}


def test_no_torch_internals_leak_into_the_ops() -> None:
    """The stable ABI is what keeps one binary working on this torch and on newer ones."""
    from tal_fast import _C

    if shutil.which("nm") is None:
        pytest.skip("needs nm")
    assert _C.__file__ is not None
    done = subprocess.run(
        ["nm", "-D", "--undefined-only", "-C", _C.__file__],
        capture_output=True,
        text=True,
        check=True,
    )
    leaks = [s for s in done.stdout.splitlines() if re.search(r"\b(at|c10|torch)::", s)]
    assert not leaks, leaks[:3]


def build(hook: str, source: Path, target: Path, **environment: str) -> Path:
    """Runs a hook of the build backend in ``source``, as pip does without isolation."""
    target.mkdir()
    code = f"import tal_fast_build, sys; print(tal_fast_build.{hook}({str(target)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=source,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(source / "build_backend"), **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return target / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("setuptools")
    if not (ROOT / "setup.py").exists():
        pytest.skip("not a checkout")
    return build("build_sdist", ROOT, tmp_path_factory.mktemp("sdist") / "dist")


def test_a_source_distribution_has_what_a_build_needs_and_no_more(sdist: Path) -> None:
    with tarfile.open(sdist) as packed:
        files = {m.name.partition("/")[2]: m.size for m in packed.getmembers() if m.isfile()}
    named = re.findall(r"csrc/\w+(?:/\w+)*\.(?:cpp|cu)\b", (ROOT / "CMakeLists.txt").read_text())
    assert "csrc/ops/nms.cpp" in named
    headers = [str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.*h")]
    python = [str(p.relative_to(ROOT)) for p in (ROOT / "tal_fast").rglob("*.py*") if "_" in p.name]
    wanted = {
        *named,
        *headers,
        "build_backend/find_torch.py",
        "tal_fast/_C.pyi",
        "tal_fast/page.css",
    }
    wanted |= {f for f in python if "__pycache__" not in f}
    assert wanted <= files.keys()
    tops = {name.partition("/")[0] for name in files}
    assert not tops & {"tests", "docs", "benchmarks", "build", "results", "shared"}
    assert not [
        n
        for n in files
        if n.endswith((".so", ".o", ".pyc", ".npy", ".json", ".csv")) and n != "CMakePresets.json"
    ]
    assert max(files.values()) < 200_000


@pytest.mark.slow
def test_a_wheel_from_the_source_distribution_runs_elsewhere(sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as packed:
        packed.extractall(tmp_path, filter="data")
    source = tmp_path / sdist.name.removesuffix(".tar.gz")
    wheel = build(
        "build_wheel", source, tmp_path / "wheel", TAL_FAST_WIDE_KERNELS="0", TAL_FAST_CUDA="0"
    )
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"tal_fast"}
    assert [name for name in names if name.startswith("tal_fast/_C.cpython")]
    assert not [name for name in names if name.endswith((".cpp", ".h", ".o"))]
    shutil.rmtree(source)

    # An environment that has this one's packages, but not its tal_fast.
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    for command in (
        [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel],
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, env=clean, check=False)
        assert done.returncode == 0, done.stderr
    import torch

    packages = Path(torch.__file__).parent.parent
    (Path(done.stdout.strip()) / "dependencies.pth").write_text(f"{packages}\n")
    code = (
        "import torch, tal_fast\n"
        "from tal_fast import ops\n"
        "print(tal_fast.__file__)\n"
        "print(ops.segment_iou(torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 3.0]])).item())"
    )
    for command in ([python, "-c", code], [python.with_name("tal-fast"), "info"]):
        done = subprocess.run(
            command, capture_output=True, text=True, env=clean, cwd=tmp_path, check=False
        )
        assert done.returncode == 0, done.stderr
        if "-c" in command:
            file, overlap = done.stdout.split()
            assert Path(file).is_relative_to(tmp_path / "venv")
            assert float(overlap) == pytest.approx(1 / 3)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_a_demo_installs_what_it_runs_with(tmp_path: Path) -> None:
    """And uses the whole environment of the developers where that is there."""
    environment = tmp_path / "venv"

    def steps() -> str:
        command = ["make", "-n", "demo", f"VENV={environment}", f"RESULTS={tmp_path}"]
        # Not as a part of the make that may run this test: it would say which folder it is in.
        own = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MAKE", "MFLAGS"))
        }
        return subprocess.run(
            command, cwd=ROOT, env=own, capture_output=True, text=True, check=True
        ).stdout

    fresh = steps()
    assert "-e '.[demo]'" in fresh
    *_, run, where, _ = fresh.splitlines()
    assert "tal-fast study demo" in run
    assert f"{tmp_path}/report.html" in where
    for left_out in ("[test", "TAL_FAST_WERROR", "TAL_FAST_CUDA_EMULATOR"):
        assert left_out not in fresh
    (environment / "bin").mkdir(parents=True)
    for done in ("bin/python", ".tal_fast_installed"):
        (environment / done).touch()
    after_dev = steps()
    assert "pip" not in after_dev
    assert "TAL_FAST_CUDA_EMULATOR=ON" in after_dev


def test_hooks_run_the_programs_of_any_environment() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    programs = [hook["entry"].split()[0] for repo in config["repos"] for hook in repo["hooks"]]
    assert programs == ["ruff", "ruff", "mypy", "clang-format"]
