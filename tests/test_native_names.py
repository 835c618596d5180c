# SPDX-License-Identifier: Apache-2.0
"""A name of the native code means one thing.

Two classes, inline functions or templates of one name in one library are no error of the linker: it
keeps one definition for both, and memory is freed by another class's destructor. This reads the
sources: at once, with any compiler, and what no kernel of this machine's library contains. The
debug build (``cmake --preset debug``) asks the compiler too, which sees types whole.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import tal_fast

ROOT = Path(tal_fast.__file__).parent.parent
FOLDERS = ("csrc", "tests/native", "tests/cuda_emulator")
SUFFIXES = (".cpp", ".h", ".cu", ".cuh")

# The emulator has its own of these, in place of platform.cuh's for nvcc: never both.
ALTERNATIVES = {"tal_fast::Shared", "tal_fast::SharedMemory", "tal_fast::wait_for_copies"}

TYPE = re.compile(
    r"(template <.*> )?(struct|class|union|enum( class)?) (alignas\(.*\) )?(?P<name>[\w:]+)"
)
# Only these may be defined in several files without an error of the linker.
SHARED = re.compile(r"(template|inline|constexpr|TAL_FAST_HD|TAL_FAST_DEVICE)\b")
FUNCTION = re.compile(r"(?P<name>(\w+(<[^<>]*>)?::)*\w+)\((?P<parameters>.*)\)[^()]*$")
VARIABLE = re.compile(r"(template <.*>|inline) .*?(?P<name>\w+)( =|;)")


def without_names(parameters: str) -> str:
    """The types of a parameter list."""
    parts = re.split(r",(?![^<]*>)", re.sub(r"//.*?\n|\s+", " ", parameters))
    return ",".join(re.sub(r"\b\w+(\[\])?( = .*)?$", "", part.strip()).strip() for part in parts)


def definitions(source: str) -> Iterator[str]:
    """What a source file defines for the whole library: classes, inline functions, templates.

    clang-format keeps namespaces to one line and what is in them at its start. Anonymous namespaces
    are a file's own.
    """
    scopes: list[str] = []
    head = ""
    for line in source.splitlines():
        if opened := re.match(r"namespace ?([\w:]*) ?\{", line):
            scopes.append(opened[1])
        elif line.startswith("}  // namespace"):
            scopes.pop()
        elif line == "" or (line.startswith(("#", "//", "}", " ")) and not head):
            continue
        else:
            head += line.split("  //")[0].strip() + " "
            if not head.rstrip().endswith(("{", ";", "}")):
                continue
            signature, body, _ = head.partition("{")
            if scopes and "" not in scopes:
                prefix = "::".join(scopes)
                if found := TYPE.match(signature):
                    if body:
                        specialised = signature[found.end() :].split(" :")[0].strip()
                        yield f"{prefix}::{found['name']}{specialised}"
                elif SHARED.match(signature) and (found := FUNCTION.search(signature.strip())):
                    if body:
                        yield f"{prefix}::{found['name']}({without_names(found['parameters'])})"
                elif found := VARIABLE.match(head):
                    yield f"{prefix}::{found['name']}"
        head = ""


def collisions(sources: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Names that more than one file defines, of pairs (file, text)."""
    files: dict[str, list[str]] = defaultdict(list)
    for file, text in sources:
        for name in set(definitions(text)):
            files[name].append(file)
    return {name: found for name, found in files.items() if len(found) > 1}


def native_sources() -> dict[str, str]:
    paths = [p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*"))]
    return {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for path in paths
        if path.suffix in SUFFIXES and path.name != "collision.cpp"
    }


def test_a_name_has_one_definition() -> None:
    found = collisions(native_sources().items())
    found = {k: v for k, v in found.items() if re.split(r"[(<]", k)[0] not in ALTERNATIVES}
    assert not found, "\n".join(f"{name}: {', '.join(files)}" for name, files in found.items())


@pytest.mark.parametrize(
    ("file", "planted"),
    [
        ("csrc/cpu/scratch.h", "class Scratch {\n  int x;\n};"),
        ("csrc/reader/window.h", "class alignas(64) Scratch : Base {\n  int x;\n};"),
        ("csrc/reader/reader.h", "enum class Layout : int {\n  kOther\n};"),
        ("csrc/cpu/nms.h", "template <typename T>\nstruct NmsProblem {};"),
        ("csrc/cpu/segment_iou.h", "template <typename C>\nconstexpr int kSegmentIouPadding = 8;"),
        ("csrc/reader/file_cache.h", "inline std::string system_text(int code) {\n  return {};\n}"),
        (
            "csrc/ops/tensor_checks.h",
            "template <typename T>\nconst T* const_data(\n    const Tensor& t) {\n  return 0;\n}",
        ),
    ],
)
def test_a_collision_is_found(file: str, planted: str) -> None:
    sources = native_sources()
    scope = re.findall(r"^namespace (tal_fast\S*)", sources[file], re.M)[0]
    other = f"namespace {scope} {{\n\n{planted}\n\n}}  // namespace {scope}\n"
    anonymous = other.replace(planted, f"namespace {{\n\n{planted}\n\n}}  // namespace")
    assert not collisions([(file, sources[file]), ("anonymous.h", anonymous)])
    assert len(collisions([(file, sources[file]), ("planted.h", other)])) == 1


def test_a_file_name_is_used_once_but_for_an_op() -> None:
    """An op has its name in every folder; two files of any other name would be two things."""
    folders = defaultdict(list)
    for file in native_sources():
        if file.startswith("csrc/"):
            folders[Path(file).name].append(Path(file).parent.name)
    ops = {Path(file).stem for file in native_sources() if re.match(r"csrc/ops/.*\.cpp", file)}
    twice = {name: sorted(found) for name, found in folders.items() if len(found) > 1}
    assert not {name: found for name, found in twice.items() if Path(name).stem not in ops}


@pytest.mark.parametrize("folder", ["cpu", "evaluation", "reader"])
def test_folders_keep_to_their_namespaces(folder: str) -> None:
    for file, text in native_sources().items():
        if file.startswith(f"csrc/{folder}/"):
            opened = re.findall(r"^namespace (tal_fast\S*)", text, re.M)
            assert opened == [f"tal_fast::{folder}"], f"{file}: {opened}"
