# SPDX-License-Identifier: Apache-2.0
"""The phrases that messages share."""

import ast
import doctest
import errno
import os
import re
from pathlib import Path

import pytest

from tal_fast import errors


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, ""), (1, "0"), (3, "0, 1, 2"), (4, "0, 1, 2, and 1 more"), (9, "0, 1, 2, and 6 more")],
)
def test_the_first_few_of_many(count, expected):
    assert errors.listing(range(count), shown=3, between=", ") == expected


def test_the_first_of_several():
    assert [errors.others(count) for count in (0, 1, 2, 9)] == [
        "",
        "",
        " (and 1 more)",
        " (and 8 more)",
    ]


def test_the_examples_in_its_docstrings():
    assert doctest.testmod(errors, raise_on_error=True).attempted == 12


def test_what_a_terminal_would_obey_is_written_out():
    assert errors.printable("a\x1b[2J\u202eb\x9b\r\ud800") == r"a\x1b[2J\u202eb\x9b\r\ud800"
    assert errors.printable("two\n\tlines, größer ▁▂█") == "two\n\tlines, größer ▁▂█"


def test_differences_are_named_by_dotted_key():
    there = {"a": {"b": 1, "same": 2}, "gone": 3}
    assert errors.differences(there, {"a": {"b": 2, "same": 2}, "new": 4}) == (
        "a.b is 1 there and 2 here; gone is 3 there and None here; new is None there and 4 here"
    )
    assert errors.differences(there, {}, shown=1) == "a.b is 1 there and None here; and 2 more"
    assert errors.differences(there, there) == ""


def test_one_of_a_thing_is_not_many():
    assert [errors.counted(count, "class") for count in (0, 1, 2)] == [
        "0 classes",
        "1 class",
        "2 classes",
    ]
    assert errors.counted(1, "query") == "1 query"
    assert errors.counted(3, "query") == "3 queries"
    assert errors.counted(2, "person") == "2 people"
    assert [errors.counted(2, noun) for noun in ("epoch", "batch")] == ["2 epochs", "2 batches"]
    assert errors.counted(1, "segment", "reach") == "1 segment reaches"
    assert errors.counted(2, "segment", "reach") == "2 segments reach"


# Nouns that messages count; a new one that comes after a number belongs here.
_NOUNS = re.compile(
    r" (videos|segments|epochs|trials|steps|classes|instances|files|processes|detections|windows|"
    r"rows|channels|draws|curves|warnings|seeds|shares|repetitions|trainings|threads|cells|columns|"
    r"queries|clips|predictions|annotations|subsets|studies|recordings|samples|levels|values|"
    r"machines|people)\b"
)


def _uncounted(source):
    """Yields the lines in which a plural follows a number that may be one."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.JoinedStr):
            continue
        for number, rest in zip(node.values, node.values[1:], strict=False):
            if (
                isinstance(number, ast.FormattedValue)
                and number.format_spec is None
                and isinstance(rest, ast.Constant)
                and _NOUNS.match(rest.value)
                and re.match(r"[\w.\[\]']+$|(len|sum|int)\(", ast.unparse(number.value))
            ):
                yield ast.unparse(node)


def test_messages_count_by_the_one_function():
    assert list(_uncounted('f"{len(found)} videos"'))
    assert list(_uncounted('f"{a.b} rows"'))
    assert not list(_uncounted('f"{share:.0%} videos {counted(n, 1)} rows"'))
    package = Path(errors.__file__).parent
    slips = {
        str(path.relative_to(package)): words
        for path in package.rglob("*.py")
        if (words := list(_uncounted(path.read_text("utf-8"))))
    }
    # The name of a split stands there, no number.
    assert set(slips) <= {"study/splits.py"}, slips


def test_another_number_is_no_slip():
    assert errors.nearest("vid10", ["vid09", "vid11"], numbered=True) == ""
    meant = "; did you mean 'vid010'?"
    assert errors.nearest("vid10", ["vid09", "vid010"], numbered=True) == meant
    assert errors.nearest("clip_0O", ["clip_00"], numbered=True) == "; did you mean 'clip_00'?"
    assert errors.nearest("vid1O", ["vid10"], numbered=True) == "; did you mean 'vid10'?"
    assert errors.nearest("float23", ["float32"]) == "; did you mean 'float32'?"


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_what_stands_in_the_way_is_told(tmp_path, make):
    there = tmp_path / "there"
    make(there)
    with pytest.raises(OSError, match="there") as caught:
        (there / "below").read_text() if there.is_file() else there.read_text()
    found = f"expected a directory, found a file: {there}"
    expected = found if there.is_file() else "expected a file, found a directory"
    assert errors.os_reason(caught.value) == expected


def test_what_is_there_already_is_told_as_what_it_is(tmp_path):
    for there, words in (
        (tmp_path / "folder", "a directory is there already"),
        (tmp_path / "file", f"expected a directory, found a file: {tmp_path / 'file'}"),
    ):
        there.mkdir() if there.name == "folder" else there.touch()
        with pytest.raises(FileExistsError) as caught:
            there.mkdir()
        assert errors.os_reason(caught.value) == words
    with pytest.raises(OSError, match="file") as caught:
        (tmp_path / "file" / "below").mkdir(parents=True, exist_ok=True)
    assert errors.os_reason(caught.value).endswith(f"found a file: {tmp_path / 'file'}")


@pytest.mark.parametrize("number", [errno.ENOTDIR, errno.EEXIST])
def test_an_error_of_a_descriptor_has_a_reason(number):
    error = OSError(number, os.strerror(number), 3)
    assert errors.os_reason(error) in ("expected a directory, found a file", "File exists")
