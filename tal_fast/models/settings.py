# SPDX-License-Identifier: Apache-2.0
"""Settings as nested dicts of plain values: merged by name, then checked as dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from tal_fast.errors import ConfigError, nearest
from tal_fast.models.registry import recipe

__all__ = ["checked", "detector_config", "merge", "plain"]

_T = TypeVar("_T")


def detector_config(name: str, settings: Mapping[str, Mapping[str, Any]] | None = None) -> Any:
    """Returns the settings of a named model.

    Args:
        name: of the model (:func:`~tal_fast.models.registry.recipe`).
        settings: over the model's own, ``{section: {field: value}}``.

    Returns:
        An instance of the model's ``Config``.

    Raises:
        ConfigError: a name is unknown or a value does not fit.
    """
    found = recipe(name)
    merged = plain(asdict(found.detector.Config()))
    for changes in (found.settings, settings or {}):
        sections = {key: value for key, value in changes.items() if key != "training"}
        merge(merged, sections, model=name)
    return checked(found.detector.Config, merged)


def plain(value: Any) -> Any:
    """Returns nested mappings and sequences as dicts and lists."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def merge(
    base: dict[str, Any], changes: Mapping[str, Any], prefix: str = "", *, model: str
) -> None:
    """Puts changes over settings, in place; every key must be there already.

    Args:
        base: the settings.
        changes: over them.
        prefix: where ``base`` is a section, its name and a dot.
        model: whose settings they are, for messages.

    Raises:
        ConfigError: a key is unknown, with the nearest known one, or all of them; or a section is
            no mapping.
    """
    for key, value in changes.items():
        if key not in base:
            hint = _hint(base, str(key), prefix) or (
                f"; {model} has {', '.join(prefix + known for known in base) or 'none there'}"
            )
            raise ConfigError(f"unknown setting {prefix + str(key)!r}{hint}")
        if isinstance(base[key], dict):
            if not isinstance(value, Mapping):
                raise ConfigError(f"setting {prefix + key!r}: expected a section, got {value!r}")
            merge(base[key], value, f"{prefix}{key}.", model=model)
        else:
            base[key] = value


def _hint(base: Mapping[str, Any], key: str, prefix: str) -> str:
    near = nearest(key, base)
    if near:
        return near.replace("'", f"'{prefix}", 1) if prefix else near
    # The right field in the wrong section is a common slip: look through all of them.
    for name, part in base.items():
        if isinstance(part, dict) and key in part:
            return f"; did you mean {f'{name}.{key}'!r}?"
    return ""


def checked(kind: type[_T], settings: Mapping[str, Any], prefix: str = "") -> _T:
    """Builds a dataclass of settings.

    Raises:
        ConfigError: a key is unknown or a value does not fit.
    """
    try:
        return TypeAdapter(kind).validate_python(settings)
    except ValidationError as error:
        lines = [_said(item, prefix) for item in error.errors()]
        raise ConfigError("bad setting" + ";".join(lines)) from None


def _said(item: Any, prefix: str) -> str:
    """Says which setting an error of pydantic is about, what was expected and what was found."""
    place = prefix + ".".join(str(part) for part in item["loc"])
    where = f" {place}: " if place else ": "
    if item["type"] == "value_error" and isinstance(item["input"], Mapping):
        return f"{where}{item['ctx']['error']}"  # of a section, which names what it has found
    return f"{where}{item['msg']}, got {item['input']!r}{_as_list(place, item)}"


def _as_list(place: str, item: Any) -> str:
    """Returns how to write a list, where values were given with commas alone."""
    given = item["input"]
    if item["type"] not in ("tuple_type", "list_type") or not isinstance(given, str):
        return ""
    return f"; write a list in brackets, as in --set '{place}=[{given}]'" if place else ""
