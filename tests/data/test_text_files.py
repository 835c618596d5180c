# SPDX-License-Identifier: Apache-2.0
"""Text in other encodings than UTF-8: what it looks like, and a conversion that works."""

from __future__ import annotations

import codecs
import gzip
import shlex
import shutil
import subprocess

import pytest

from tal_fast.cli.prepare import _classes
from tal_fast.curves import read_curves
from tal_fast.curves.curve_files import study_thresholds
from tal_fast.data import load_annotations, open_dataset
from tal_fast.data.annotation_file import read_annotation_file
from tal_fast.data.formats.csv_files import load_csv
from tal_fast.data.prepare.segment_table import read_segment_table
from tal_fast.data.text_files import not_utf8
from tal_fast.errors import ConfigError, DataError
from tal_fast.training import load_config

TABLE = "video,start,end,label\nv1,1.0,2.0,run\nv2,1,2,café weiß\n"
LATIN = TABLE.encode("latin-1")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (TABLE.encode("utf-16"), "UTF-16, which its first bytes say"),
        (codecs.BOM_UTF16_BE + TABLE.encode("utf-16-be"), "UTF-16, which its first bytes say"),
        (TABLE.encode("utf-32"), "UTF-32, which its first bytes say"),
        (TABLE.encode("utf-16-le"), "what looks like UTF-16LE: every other byte is 0"),
        (TABLE.encode("utf-16-be"), "what looks like UTF-16BE: every other byte is 0"),
        (LATIN, "Latin-1 (byte 0xe9 in line 3: would that be 'v2,1,2,café weiß'?)"),
        (f"{TABLE}v3,1,2,“x”\n".encode("cp1252"), "what looks like Windows-1252 or Latin-1"),
    ],
)
def test_what_spreadsheets_save(tmp_path, content, words):
    path = tmp_path / "my segments.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_segment_table(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: expected CSV in UTF-8, got ")
    assert words in text
    command = text.partition("convert it: ")[2].partition(", or save it as 'CSV UTF-8'")[0]
    if shutil.which("iconv") is None:
        encoding = shlex.split(command)[2]
        (tmp_path / "my segments-utf8.csv").write_text(content.decode(encoding), "utf-8")
    else:
        subprocess.run(command, shell=True, check=True)
    converted = read_segment_table(tmp_path / "my segments-utf8.csv")
    assert converted.segments["v2"][0].label == "café weiß"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (TABLE.encode() + b"v3,1,2,\xff\n", "0xff in line 4, although it is UTF-8 before: is the"),
        (b"video,start,end,label\nv,1,2,a\0b\n", "got a byte 0 in line 2: no text"),
        ("video,start\nv,跑步走路\n".encode("gbk"), "which its bytes do not tell (byte 0xc5 in li"),
    ],
)
def test_what_nothing_tells(tmp_path, content, words):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_segment_table(path)
    assert words in str(caught.value)
    assert "convert" not in str(caught.value)


def test_a_byte_order_mark_is_no_fault(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(TABLE.encode("utf-8-sig"))
    assert list(read_segment_table(path).segments) == ["v1", "v2"]


def test_a_list_of_classes_may_have_one_as_well(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes("run\nwalk\n".encode("utf-8-sig"))
    assert _classes(str(path)) == ["run", "walk"]


def _subsets(path):
    return read_annotation_file({"database": {"v": {}}}, subsets=path)


@pytest.mark.parametrize(
    ("read", "what"),
    [
        (load_csv, "a CSV file"),
        (_subsets, "CSV"),
        (read_curves, r"a table \(CSV\)"),
        (study_thresholds, r"a table \(CSV\)"),
        (lambda path: load_annotations(path.rename(path.with_suffix(".json"))), "JSON"),
        (lambda path: open_dataset(path.rename(path.with_suffix(".yaml"))), "YAML"),
        (lambda path: load_config(path.rename(path.with_suffix(".yaml"))), "YAML"),
        (lambda path: _classes(str(path)), "text"),
    ],
)
def test_every_reader_tells(tmp_path, read, what):
    path = tmp_path / "a.csv"
    path.write_bytes(b"share,caf\xe9\n10,20\n")
    expected = rf"a\.\w+: expected {what} in UTF-8, got what looks like Windows-1252 .*convert it: "
    with pytest.raises((DataError, ConfigError), match=expected):
        read(path)


def test_what_is_unpacked_is_not_converted_as_it_lies(tmp_path):
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(b'{"caf\xe9": 1}'))
    with pytest.raises(DataError, match=r"expected JSON in UTF-8, got .*\?\)$"):
        load_annotations(path)


def test_only_its_beginning_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr("tal_fast.data.text_files._LOOKED_AT", 8)
    path = tmp_path / "a.csv"
    path.write_bytes(b"abcdefghij\xe9\n")
    assert not_utf8(path, "CSV") == f"{path}: expected CSV in UTF-8, got other bytes after 8"


@pytest.mark.parametrize("text", ["10,55.4\n20,60\n", "10;55.4\n20;60\n"])
def test_curves_without_names_of_columns(tmp_path, text):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=r"line 1: expected the names of the columns, got 10, 55"):
        read_curves(path)
