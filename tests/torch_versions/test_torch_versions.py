# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

import pytest
import torch
import torch_versions
from ops_digest import digest, main

VERSIONS = os.environ.get("TAL_FAST_TORCH_VERSIONS", "").replace(",", " ").split()


@pytest.mark.slow
@pytest.mark.skipif(not VERSIONS, reason="TAL_FAST_TORCH_VERSIONS names no version of torch")
@pytest.mark.parametrize("version", VERSIONS)
def test_one_library_for_every_version(version: str) -> None:
    outcome = torch_versions.try_version(version)
    assert not outcome.problem, outcome.problem
    assert outcome.version.startswith(version)
    assert outcome.digests == torch_versions.ops_in(None, None)["digests"]


def test_every_op_is_digested(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    main()
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    for case in ("segment_iou[0] float32", "deform_attn[0] float64", "nms[0] float32"):
        assert f'"{case}": ' in printed


def test_a_digest_is_of_bits_shape_and_dtype() -> None:
    x = torch.tensor([1.0, 2.0])
    assert digest([x]) == digest((x.clone(),))
    others = (torch.tensor([1.0, 2.0 + 2**-22]), x[None], x.view(torch.int32), x[:0])
    assert len({digest(y) for y in (x, *others)}) == 5


@pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("cc", "nm", "readelf")), reason="needs a compiler"
)
def test_stand_ins_have_the_names_and_versions_wanted(tmp_path: Path) -> None:
    libraries = tmp_path / "lib"
    libraries.mkdir()
    # A library that wants two functions of libcuda_made.so.12, one of them under a version.
    wanted = tmp_path / "libcuda_made.so.12"
    source = tmp_path / "made.c"
    source.write_text("int cuda_one(void) { return 0; }\n")
    version = tmp_path / "made.map"
    version.write_text("libcuda_made.so.12 { cuda_one; };\n")
    made = ("cc", "-shared", "-fPIC", "-nostdlib")
    torch_versions.run(
        *(*made, source, "-o", wanted),
        f"-Wl,-soname,{wanted.name}",
        f"-Wl,--version-script,{version}",
    )
    source.write_text(
        "int cuda_one(void), nccl_two(void);\nint both(void) { return cuda_one() + nccl_two(); }\n"
    )
    user = libraries / "libuser.so"
    torch_versions.run(*made, source, "-o", user, wanted)
    with pytest.raises(OSError, match=wanted.name):
        ctypes.CDLL(str(user))

    assert torch_versions.needed(libraries) == [wanted.name]
    torch_versions.stand_in(libraries, tmp_path / "cuda")
    ctypes.CDLL(str(tmp_path / "cuda" / wanted.name), ctypes.RTLD_GLOBAL)
    assert ctypes.CDLL(str(user)).both() == 200


def test_what_a_command_says_is_in_the_error() -> None:
    with pytest.raises(RuntimeError, match="No such file"):
        torch_versions.run("cat", "no such file")
