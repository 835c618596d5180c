# SPDX-License-Identifier: Apache-2.0
"""Nothing makes the host wait for a GPU, but for the sizes that NMS has to allocate.

Neither an op nor, in Python, a training step. That is read in the sources here; whole steps run in
``training/test_step_waits.py``.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CUDA = ROOT / "csrc" / "cuda"
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


# ---- Python ------------------------------------------------------------------------------------

PACKAGE = ROOT / "tal_fast"
#: What a training step may run.
STEP = (
    "models/**/*.py", "ops/*.py", "data/batches.py", "data/device_copies.py", "training/step.py",
    "training/late.py", "training/ema.py", "training/kept_weights.py", "training/trainer.py",
    "training/cuda_graph.py", "training/static_batch.py",
)  # fmt: skip
READS = {
    "item", "tolist", "cpu", "numpy", "synchronize", "nonzero", "unique", "masked_select",
    "is_nonzero", "equal", "allclose",
}  # fmt: skip
NUMBERS = {"int", "float", "bool"}
#: Who may, and why it is no wait of a step.
ALLOWED = {
    # The numbers of steps that are long done, and those of a CPU.
    ("training/late.py", "CudaReads.finish"): {"synchronize", "tolist"},
    ("training/late.py", "_HostReads.start"): {"tolist"},
    # Tensors of the CPU alone: asked for before, in host_rows and _check_padding.
    ("models/pyramid/convolution.py", "_runs"): {"numpy", "tolist"},
    ("models/pyramid/detector.py", "PyramidDetector._check_padding"): {"int"},
    ("ops/dropout.py", "_draw_seed"): {"int"},
    # Python's numbers.
    ("models/pyramid/backbone.py", "Backbone.macs.of_block"): {"int"},
    ("models/pyramid/points.py", "make_points"): {"float"},
    ("models/tadtr/network.py", "TadTR._actionness"): {"float"},
    # After the training.
    ("models/pyramid/detector.py", "PyramidDetector.remarks"): {"tolist"},
    # While weights are loaded or saved.
    ("models/temporalmaxer/network.py", "_check_equal"): {"equal"},
    ("models/tridet/network.py", "_look_at_gates"): {"bool"},
    ("training/ema.py", "WeightAverage.load_state_dict"): {"int"},
    ("training/step.py", "Stepper.state_dict"): {"float"},
    # Parts of prediction: of candidates that are on the CPU by then, and the fusion of windows.
    ("models/called.py", "check_proposals"): {"int", "bool", "tolist"},
    ("models/called.py", "not_finite"): {"float"},
    ("ops/window_fusion.py", "fuse_windows"): {"unique"},
    ("ops/window_fusion.py", "_check"): {"int"},
    ("ops/window_fusion.py", "_touches_overlap"): {"unique", "nonzero"},
}


def waits(tree: ast.AST, where: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Yields (function, call) of what could read a tensor's value on the host.

    So does a copy to another device that is not asked not to wait.
    """
    for node in ast.iter_child_nodes(tree):
        inside = where
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            inside = (*where, node.name)
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", None)
            if name in READS:
                yield ".".join(where), name
            moves = name == "to" and any("device" in ast.unparse(given) for given in node.args)
            if moves and not any(key.arg == "non_blocking" for key in node.keywords):
                yield ".".join(where), "to"
            plain = isinstance(node.func, ast.Name) and node.func.id in NUMBERS
            if plain and node.args and not isinstance(node.args[0], ast.Constant):
                yield ".".join(where), node.func.id
        yield from waits(node, inside)


def test_a_training_step_reads_nothing_on_the_host():
    found: dict[tuple[str, str], set[str]] = {}
    files = {path for pattern in STEP for path in PACKAGE.glob(pattern)}
    assert len(files) > 40
    for path in files:
        name = path.relative_to(PACKAGE).as_posix()
        for where, call in waits(ast.parse(path.read_text("utf-8"))):
            found.setdefault((name, where), set()).add(call)
    # The model goes to its device before the first step.
    assert found.pop(("training/trainer.py", "Trainer._start")) == {"to"}
    assert found == ALLOWED


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(x):\n  return x.item()", [("f", "item")]),
        ("class A:\n  def f(self, x):\n    print(x.sum().tolist())", [("A.f", "tolist")]),
        ("def f(x, device):\n  return x.to(device)", [("f", "to")]),
        ("def f(x, device):\n  return x.to(device, non_blocking=True)", []),
        ("def f(x):\n  return int(x.max())", [("f", "int")]),
        ("def f(x):\n  return int('3'), x.to(x.dtype)", []),
    ],
)
def test_the_reading_of_sources_sees_a_wait(source, expected):
    assert list(waits(ast.parse(source))) == expected
