# SPDX-License-Identifier: Apache-2.0
"""No op makes the host wait for a GPU, but for the sizes that NMS has to allocate."""

import re
from pathlib import Path

CUDA = Path(__file__).parents[1] / "csrc" / "cuda"
WAITS = re.compile(
    r"cuda\w*Synchronize|cudaMemcpy\w*(?=\()|cudaMalloc\w*|cudaFree\w*"
    r"|cudaStreamQuery|cudaEventQuery|item_?<|aten::item|_local_scalar_dense|<<<"
    r"|cudaStreamDefault|cudaStreamLegacy|cudaStreamPerThread|thrust::"
)


def code(path: Path) -> str:
    return re.sub(r"//.*", "", path.read_text())


def test_one_function_waits():
    found = {
        (path.name, call)
        for path in sorted(CUDA.iterdir())
        if path.suffix in {".cu", ".cuh", ".h", ".cpp"}
        for call in WAITS.findall(code(path))
    }
    assert found == {("launch.h", "cudaMemcpyAsync"), ("launch.h", "cudaStreamSynchronize")}
    launch = code(CUDA / "launch.h")
    begin = launch.index("inline void read_back(")
    body = launch[begin : launch.index("\n}\n", begin)]
    assert "cudaMemcpyAsync" in body
    assert "cudaStreamSynchronize" in body


def test_only_outputs_of_exact_size_need_it():
    callers = [path.name for path in sorted(CUDA.iterdir()) if "read_back(" in code(path)]
    assert callers == ["launch.h", "nms_launch.h"]
    source = code(CUDA / "nms_launch.h")
    # Once per call, and for an error's message.
    assert source.count("read_back(") == 3
    assert re.findall(
        r"std::tuple<[^>]*> (\w+)\([^)]*\)(?: const)? \{(?:(?!\n  \}).)*read_facts", source, re.S
    ) == [
        "exact_one",
        "exact",
    ]
