# SPDX-License-Identifier: Apache-2.0
"""Every public op shows in its docstring how it is called, and the example runs."""

from __future__ import annotations

import doctest
import inspect
import sys

import pytest

from tal_fast import ops

FUNCTIONS = [name for name in ops.__all__ if inspect.isfunction(getattr(ops, name))]


def test_all_names_exist():
    assert FUNCTIONS
    assert [name for name in ops.__all__ if not hasattr(ops, name)] == []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_example_runs(name):
    function = getattr(ops, name)
    scope = dict(vars(sys.modules[function.__module__]))
    (test,) = doctest.DocTestFinder(recurse=False).find(function, name, globs=scope)
    assert test.examples, f"ops.{name} has no example"
    results = doctest.DocTestRunner(verbose=False).run(test)
    assert results.failed == 0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_says_what_goes_in_and_out(name):
    text = inspect.getdoc(getattr(ops, name)) or ""
    for section in ("Args:", "Returns:", "Raises:"):
        assert section in text, f"ops.{name}: the docstring has no {section}"
