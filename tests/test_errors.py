# SPDX-License-Identifier: Apache-2.0
"""The phrases that messages share."""

import doctest

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
    assert doctest.testmod(errors, raise_on_error=True).attempted == 7


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
