# SPDX-License-Identifier: Apache-2.0
import pytest

from tal_fast.data.yaml_files import parse_yaml
from tal_fast.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "x: expected each key once, got 'a' in line 1 and in line 3"),
        ("b: 1\nc:\n- {a: 1}\n- {a: 1, a: 1}\n", "got 'a' in line 4 and in line 4"),
        ("1: a\n0x1: b\n", "got 1 in line 1 and in line 2"),
        ("d: 2024-13-01\n", "x: not valid YAML: month must be in 1..12"),
        ("a: " + "9" * 6000, "x: not valid YAML: .*limit"),
        ("a: !!timestamp soon", "x: not valid YAML: a tag .* is none of its kind"),
        ("!!timestamp soon: 1", "x: not valid YAML: a tag .* is none of its kind"),
        ("a: !!bool maybe", "x: not valid YAML: a tag .* is none of its kind"),
        ("a: !!int ''", "x: not valid YAML: a tag .* is none of its kind"),
        ("a: !!float ''", "x: not valid YAML: a tag .* is none of its kind"),
        ("a: {b: [}", "x: not valid YAML: while parsing"),
        ("? [a]\n: 1\n", "x: not valid YAML: .* found unhashable key .* line 1, column 3$"),
        ("- " * 100_000 + "a", "x: not valid YAML: nested too deeply"),
        ("{a: " * 100_000, "x: not valid YAML: nested too deeply"),
    ],
)
def test_refused(text, message):
    with pytest.raises(DataError, match=message):
        parse_yaml(text, "x")
    with pytest.raises(ConfigError, match=message):
        parse_yaml(text, "x", ConfigError)


def test_merged_keys_may_be_overridden():
    text = "base: &b {a: 1, c: 2}\nmine: {<<: *b, a: 3}\nothers: [{<<: *b}, {<<: *b}]\n"
    base = {"a": 1, "c": 2}
    assert parse_yaml(text, "x") == {"base": base, "mine": {"a": 3, "c": 2}, "others": [base] * 2}


def test_a_list_that_holds_itself_ends():
    (item,) = parse_yaml("&a [*a]", "x")
    assert item[0] is item
