# SPDX-License-Identifier: Apache-2.0
"""YAML as it is read everywhere here: a key that is written twice is an error, not a choice."""

from __future__ import annotations

from typing import Any

import yaml

from tal_fast.errors import DataError, TalFastError

__all__ = ["parse_yaml"]

# libyaml reads ten times as fast, but its recursion has no limit: text that may be nested more
# deeply than this is left to the reader in Python, which stops.
_DEEPEST = 2000


class _RepeatedKeyError(Exception):
    """A mapping has a key twice."""


class _UniqueKeys:
    """Checks the keys of a document before a safe loader of PyYAML lets the last of two win."""

    def get_single_node(self) -> Any:
        # Here, not in construct_mapping: there, the keys that a merge (<<) brings are already among
        # the mapping's own, which may override them.
        root = super().get_single_node()  # type: ignore[misc]
        waiting, seen = [root], set()
        while waiting:
            node = waiting.pop()
            if id(node) in seen:  # an alias, which may even lie within what it names
                continue
            seen.add(id(node))
            if isinstance(node, yaml.MappingNode):
                self._check_keys(node)
                waiting += [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.SequenceNode):
                waiting += node.value
        return root

    def _check_keys(self, node: Any) -> None:
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            name = self.construct_object(key)  # type: ignore[attr-defined]
            line = key.start_mark.line + 1
            if name in lines:
                raise _RepeatedKeyError(
                    f"expected each key once, got {name!r} in line {lines[name]} and in line {line}"
                )
            lines[name] = line


class _Loader(_UniqueKeys, yaml.SafeLoader):
    """The reader in Python."""


class _FastLoader(_UniqueKeys, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """libyaml, where PyYAML was built with it."""


def parse_yaml(text: str, where: str, error: type[TalFastError] = DataError) -> Any:
    """Returns the content of a YAML text, in plain Python values.

    Args:
        text: the YAML.
        where: what it is, for messages: the path of its file.
        error: the class of the error to raise.

    Raises:
        DataError: (or ``error``) if it is not valid YAML, or a mapping has a key twice.
    """
    depth = text.count("[") + text.count("{") + max(map(len, text.splitlines()), default=0)
    try:
        return yaml.load(text, Loader=_FastLoader if depth < _DEEPEST else _Loader)
    except _RepeatedKeyError as fault:
        raise error(f"{where}: {fault}") from None
    except RecursionError:
        raise error(f"{where}: not valid YAML: nested too deeply") from None
    # ValueError: what looks like a date or a number and is none (2024-13-01).
    except (yaml.YAMLError, ValueError) as fault:
        # PyYAML tells cause and place in lines of their own.
        raise error(f"{where}: not valid YAML: {' '.join(str(fault).split())}") from fault
    # What PyYAML trips over where a tag stands before a text of another kind (!!bool maybe).
    except (ArithmeticError, AttributeError, LookupError, TypeError) as fault:
        raise error(
            f"{where}: not valid YAML: a tag (!!bool, !!timestamp, ...) stands before a text that "
            f"is none of its kind ({type(fault).__name__}: {fault})"
        ) from fault
