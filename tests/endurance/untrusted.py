# SPDX-License-Identifier: Apache-2.0
"""Files from people one does not trust: nothing they hold is run, obeyed or taken for a page.

Every case draws a payload and a place for it. What would run leaves a mark, and the mark is looked
for; pages are parsed and must have the elements of a page with plain names; folders are listed
before and after.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import yaml
from endurance.record import Batch, Kind, Outcome, Part, Refused, one_by_one
from endurance.subject import check_command, expect
from endurance.text_cases import annotations, dataset_yaml, results, write_dataset
from made_records import SETTINGS, rising, study

from tal_fast import evaluate, open_dataset
from tal_fast.data.feature_streams import OpenStream
from tal_fast.data.streams import Stream
from tal_fast.errors import TalFastError
from tal_fast.evaluation import read_results
from tal_fast.study.execution.store import hash_settings, read_study
from tal_fast.study.report.page import write_report
from tal_fast.study.results import build_curves
from tal_fast.training import load_config
from tal_fast.training.checkpoint import load_model, read_torch_file


class Place:
    """A folder for the cases, and the mark that code which runs would leave."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mark = root / "mark"
        self.data = write_dataset(root / "data")
        #: What pages with plain names have, by their kind; made once.
        self.plain: dict[str, Any] = {}

    def fresh(self) -> Path:
        shutil.rmtree(self.root / "case", ignore_errors=True)
        (self.root / "case").mkdir()
        return self.root / "case"


@contextlib.contextmanager
def prepared() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="tal-untrusted-") as root:
        yield Place(Path(root))


class _Runs:
    """A pickle of it calls a function when it is loaded."""

    def __init__(self, function: Any, arguments: tuple[Any, ...]) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def harmful(rng: random.Random, mark: Path) -> Any:
    """An object whose unpickling would leave the mark."""
    code = f"open({str(mark)!r}, 'w').close()"
    return rng.choice(
        (
            _Runs(os.system, (f"touch {mark}",)),
            _Runs(exec, (code,)),
            _Runs(eval, (code,)),
            _Runs(open, (str(mark), "w")),
            _Runs(Path.touch, (mark,)),
            _Runs(os.mkdir, (str(mark),)),
            _Runs(getattr, (_Runs(__import__, ("os",)), "system")),
        )
    )


def _refuses(place: Place, *readers: Callable[[], Any]) -> None:
    """Checks that every reader refuses, and that nothing ran."""
    for read in readers:
        with contextlib.suppress(TalFastError):
            found = read()
            expect(False, "took it:", type(found).__name__)
        expect(not place.mark.exists(), "ran what a file held")
    raise Refused


def pickles(place: Place, rng: random.Random) -> None:
    folder = place.fresh()
    held = harmful(rng, place.mark)
    held = rng.choice((held, [held], {"model": held, "format": 1}, {"a": np.ones(3), "b": held}))
    content = pickle.dumps(held, rng.randrange(2, 6))
    kind = rng.choice(
        ("pt", "old pt", "pickle as pt", "pkl", "npy", "npz", "results", "npy inside")
    )
    if kind in ("npy", "npz", "npy inside"):
        array = np.empty(2, object)
        array[0] = held
        ending = ".npz" if kind == "npz" else ".npy"
        saved = io.BytesIO()
        (np.savez if kind == "npz" else np.save)(saved, array)
        (folder / f"a{ending}").write_bytes(saved.getvalue())
        _refuses(place, lambda: _array(folder, f"%s{ending}"))
    if kind == "results":
        path = folder / "eval_results.pkl"
        path.write_bytes(content)
        _refuses(place, lambda: read_results(path, allow_pickle=True), lambda: read_results(path))
    if kind == "pkl":
        (folder / "a.pkl").write_bytes(content)
        _refuses(place, lambda: _array(folder, "%s.pkl"))
    path = folder / "a.pt"
    if kind == "pickle as pt":
        path.write_bytes(content)
    else:
        torch.save({"x": torch.ones(2)}, path, _use_new_zipfile_serialization=kind == "pt")
        if kind == "pt":
            with zipfile.ZipFile(path) as old:
                members = {name: old.read(name) for name in old.namelist()}
            with zipfile.ZipFile(path, "w") as new:
                for name, inner in members.items():
                    new.writestr(name, content if name.endswith("data.pkl") else inner)
        else:
            torch.save(held, path, _use_new_zipfile_serialization=False)
    _refuses(
        place,
        lambda: read_torch_file(path),
        lambda: load_model(path),
        lambda: _array(folder, "%s.pt"),
        lambda: expect(False) if _status(place, path) == 0 else _raise(),
    )


def _status(place: Place, path: Path) -> int:
    return check_command("predict", "--checkpoint", path, "--data", place.data, "--out", "r.json")


def _raise() -> None:
    raise TalFastError("as it should")


def _array(folder: Path, template: str) -> Any:
    with OpenStream(Stream(str(folder), template), allow_pickle=True) as opened:
        return opened.array("a")


def tags(place: Place, rng: random.Random) -> None:
    """YAML that names objects."""
    folder = place.fresh()
    call = rng.choice(("os.system", "subprocess.check_call", "builtins.exec", "builtins.open"))
    tag = rng.choice(
        (
            f"!!python/object/apply:{call} ['touch {place.mark}']",
            f"!!python/object/new:{call} [touch, {place.mark}]",
            f"!!python/name:{call}",
            "!!python/module:os",
            f"!!python/object:{call} {{a: 1}}",
            f"!!python/tuple [{place.mark}]",
        )
    )
    content = yaml.safe_dump(rng.choice((dataset_yaml(), study(), {"training": {"epochs": 1}})))
    text = content + rng.choice((f"zz: {tag}\n", f"? {tag}\n: 1\n", f"name: {tag}\n"))
    for name in ("dataset.yaml", "study.yaml", "config.yaml"):
        (folder / name).write_text(text)
    _refuses(
        place,
        lambda: open_dataset(folder),
        lambda: read_study(folder),
        lambda: load_config(folder / "config.yaml"),
        lambda: load_config(overrides=[f"training.epochs={tag}"]),
    )


_HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "</title><script>1</script>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "]]><b>",
    "$\\frac{1}$",
    "<!--",
    "&lt;b&gt;",
    "</style><script>1</script>",
    "../../../out",
    "/etc/passwd",
    "a\x1b[2J\x1b]0;x\x07",
    "x\u202ey",
)


class _Elements(HTMLParser):
    """The elements of a page with the names of their attributes, and the links that they make."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[Any] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))
        for name, value in attrs:
            text = (value or "").strip().lower()
            expect(not name.startswith("on"), "an attribute that runs:", name, value)
            if name in ("href", "src", "xlink:href", "action"):
                safe = text.startswith(("#", "data:image/")) or ":" not in text
                expect(safe, "a link that runs or leaves:", value)


def _elements(folder: Path) -> list[Any]:
    pages = sorted(folder.rglob("*.html"))
    expect(bool(pages), "no page in", folder.name)
    return [_Elements(page.read_text()).found for page in pages]


def _named(names: dict[str, str], value: Any) -> Any:
    if isinstance(value, dict):
        return {names.get(key, key): _named(names, item) for key, item in value.items()}
    if isinstance(value, list):
        return [_named(names, item) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


def pages(place: Place, rng: random.Random) -> None:
    """Names that are HTML: the page has the elements of one with plain names."""
    hostile = rng.sample(_HOSTILE, 4)
    plain = ["zz1", "zz2", "zz3", "zz4"]
    keys = ["run", "jump", "a", "d"]
    case, made = place.fresh(), {}
    for kind, names in (("plain", plain), ("hostile", hostile)):
        if kind in place.plain:
            continue
        folder = case / kind
        folder.mkdir()
        renamed = dict(zip(keys, names, strict=True))
        (folder / "a.json").write_text(json.dumps(_named(renamed, annotations())))
        (folder / "r.json").write_text(json.dumps(_named(renamed, results())))
        before = _files(place.root)
        check_command(
            "evaluate",
            "--annotations",
            folder / "a.json",
            "--predictions",
            folder / "r.json",
            "--errors",
            "--report",
            folder / "page",
            "--video",
            names[2],
        )
        check_command(
            "validate",
            "--annotations",
            folder / "a.json",
            "--features",
            place.data / "features",
            "--stride",
            1,
            "--report",
            folder / "checks",
        )
        outside = {path for path in _files(place.root) - before if folder not in path.parents}
        expect(not outside, "wrote outside its folder:", outside)
        made[kind] = (_elements(folder / "page"), len(_elements(folder / "checks")))
    place.plain.setdefault("plain", made.get("plain"))
    expect(place.plain["plain"] == made["hostile"], "names made other elements")


def study_pages(place: Place, rng: random.Random) -> None:
    folder = place.fresh()
    name = rng.choice(_HOSTILE[:13])
    made = []
    for word in ("plain", name) if "study" not in place.plain else (name,):
        settings = {**SETTINGS, "model": word, "data": {**SETTINGS["data"], "name": word}}
        content = study(settings=settings, hash=hash_settings(settings), command=word)
        content["runs"][0]["machine"] = {"cpu": word, "cores": 2, "isa": word}
        records = rising(repetitions=2, levels=(0.1, 0.4, 1.0))
        out = folder / f"p{len(made)}"
        (out / "trials").mkdir(parents=True)
        records = [replace(one, trial=replace(one.trial, model=word)) for one in records]
        write_report(out, content, build_curves(records), records, fits=0)
        made.append(_elements(out))
    place.plain.setdefault("study", made[0])
    expect(place.plain["study"] == made[-1], "names made other elements")


def _files(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if not path.is_dir()}


def names(place: Place, rng: random.Random) -> None:
    """Video ids that lead out of the folder of features, to files that are there."""
    folder = place.fresh()
    shutil.copytree(place.data, folder / "data")
    np.save(folder / "secret.npy", np.ones((40, 4), "f4"))
    inside = folder / "data" / "features"
    name = rng.choice(
        (
            "../../secret",
            f"{folder}/secret",
            "./a",
            "b/../a",
            "../features/a",
            "a\0",
            "..",
            "",
            "/",
            "//a",
        )
    )
    content = _named({"a": name}, annotations())
    (folder / "data" / "annotations.json").write_text(json.dumps(content))
    with OpenStream(Stream(str(inside), "%s.npy")) as opened:
        for read in (opened.extent, opened.array, opened.holds, opened.files):
            with contextlib.suppress(TalFastError):
                found = read(name)
                expect(False, "took", repr(name), "for", found)
    _refuses(place, lambda: open_dataset(folder / "data"))


def other_files(place: Place, rng: random.Random) -> None:
    """HDF5 that leads into other files: every one of them is named, or it is refused."""
    folder = place.fresh()
    secret = folder / "secret" / "s.h5"
    secret.parent.mkdir()
    (folder / "in").mkdir()
    rows = np.ones((3, 4), "f4")
    with h5py.File(secret, "w") as file:
        file["a"] = rows
    (folder / "secret" / "raw").write_bytes(rows.tobytes())
    path = folder / "in" / "x.h5"
    kind = rng.choice(("link", "virtual", "raw", "symbolic"))
    target = secret
    if kind == "symbolic":
        path.symlink_to(secret)
    else:
        with h5py.File(path, "w") as file:
            if kind == "link":
                file["a"] = h5py.ExternalLink(str(secret), "a")
            elif kind == "virtual":
                layout = h5py.VirtualLayout((3, 4), "f4")
                layout[:] = h5py.VirtualSource(str(secret), "a", (3, 4))
                file.create_virtual_dataset("a", layout)
            else:
                target = folder / "secret" / "raw"
                file.create_dataset("a", (3, 4), "f4", external=[(str(target), 0, rows.nbytes)])
    with OpenStream(Stream(str(path))) as opened:
        try:
            told = opened.files("a")
            values = opened.array("a")
        except TalFastError:
            raise Refused from None
    expect(bool((values == rows).all()), "other numbers")
    there = {os.path.realpath(one) for one in told}
    expect(os.path.realpath(target) in there, "read", kind, "without telling", told)


def large_headers(place: Place, rng: random.Random) -> None:
    """A header of safetensors or npy that says it is large, in a file that may be as large."""
    folder = place.fresh()
    size = rng.choice((10**8, 10**8 + 1, 2**31, 2**40, 2**63, 2**64 - 1))
    safetensors = rng.random() < 0.5
    path = folder / ("a.safetensors" if safetensors else "a.npy")
    with open(path, "wb") as file:
        if safetensors:
            file.write(struct.pack("<Q", size) + b'{"a": {"dtype": "F32"')
        else:
            file.write(b"\x93NUMPY\x02\x00" + struct.pack("<I", size % 2**32) + b"{'descr': '<f4'")
        if rng.random() < 0.5:
            file.truncate(min(size, 2**33) + 100)  # without a block on the disk
    _refuses(place, lambda: _array(folder, f"%s{path.suffix}"))


def bombs(place: Place, rng: random.Random) -> None:
    """A small archive whose member says that it is large, or is."""
    folder = place.fresh()
    rows = rng.choice((10**9, 2**31, 2**40, 2**62))
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "<f4", "fortran_order": False, "shape": (rows, 4)}
    )
    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("feats.npy", head.getvalue() + bytes(rng.choice((0, 16, 10**6))))
    data = bytearray((folder / "a.npz").read_bytes())
    if rng.random() < 0.5:  # the size that the directory of the archive tells
        at = data.rindex(b"PK\x01\x02") + 24
        data[at : at + 4] = struct.pack("<I", rng.choice((2**32 - 2, 2**31)))
        (folder / "a.npz").write_bytes(data)
    _refuses(place, lambda: _array(folder, "%s.npz"))


def terminals(place: Place, rng: random.Random) -> None:
    """Names that a terminal obeys: written out in messages and results."""
    folder = place.fresh()
    word = rng.choice(("\x1b[2J", "\x1b]0;t\x07", "\x9b31m", "\r\rdone", "\x08\x08", "\u202e"))
    renamed = dict(zip(("run", "a"), (f"c{word}", f"v{word}"), strict=True))
    (folder / "a.json").write_text(json.dumps(_named(renamed, annotations())))
    (folder / "r.json").write_text(json.dumps(_named(renamed, results())))
    check_command("evaluate", "--annotations", folder / "a.json", "--predictions",
                  folder / "r.json", "--errors", "--recall")  # fmt: skip
    check_command("evaluate", "--annotations", folder / f"no{word}", "--predictions", "x")
    check_command("validate", "--annotations", folder / "a.json", "--features",
                  place.data / "features", "--stride", 1)  # fmt: skip
    (folder / "t.csv").write_text(
        f"model,percent,map_mean{word}\nm{word},10,5\nm{word},20,x{word}\n"
    )
    check_command("study", "fit", "--study", folder / "t.csv", "--draws", 2)
    expect(isinstance(evaluate(folder / "a.json", folder / "r.json").average_map, float), "no mAP")


def _kind(case: Callable[[Place, random.Random], None], what: str, goal: int) -> Kind:
    run: Callable[[Any, Batch], Outcome] = one_by_one(case)
    return Kind(case.__name__.replace("_", " "), what, goal, run, batch=20)


PART = Part(
    "untrusted",
    "Untrusted files",
    [
        _kind(pickles, "pickles that would run code", 2000),
        _kind(tags, "YAML tags that would run code", 1000),
        _kind(pages, "pages of hostile names", 500),
        _kind(study_pages, "pages of studies with hostile names", 200),
        _kind(names, "video ids that lead elsewhere", 500),
        _kind(other_files, "HDF5 files that lead elsewhere", 500),
        _kind(large_headers, "headers of 100 MB and more", 200),
        _kind(bombs, "archives that say they unpack to GiBs", 200),
        _kind(terminals, "names that a terminal obeys", 300),
    ],
    prepared,
)
