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


def test_the_example_in_its_docstring():
    assert doctest.testmod(errors, raise_on_error=True).attempted == 1
