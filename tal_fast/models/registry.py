# SPDX-License-Identifier: Apache-2.0
"""Models by name: presets of this library, of installed packages, and of anyone's own file."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tal_fast.errors import ConfigError, nearest
from tal_fast.models.base import Detector, DetectorConfig
from tal_fast.models.called import is_own

__all__ = ["ENTRY_POINTS", "Recipe", "available", "code_of", "detector_of", "recipe"]

# A model of this library: its class, whose presets are the names that it goes by.
_DETECTORS = (
    "tal_fast.models.tadtr:TadTR",
    "tal_fast.models.actionformer:ActionFormer",
    "tal_fast.models.tridet:TriDet",
    "tal_fast.models.temporalmaxer:TemporalMaxer",
)

ENTRY_POINTS = "tal_fast.models"
"""Group of entry points by which an installed package offers models: ``name = module:Class``."""


@dataclass(frozen=True)
class Recipe:
    """A model and the settings to start from.

    Attributes:
        name: the preset, or where the class is.
        detector: the class.
        settings: over the defaults of its ``Config`` and of the training.
    """

    name: str
    detector: type[Detector]
    settings: Mapping[str, Mapping[str, Any]]


def available() -> tuple[str, ...]:
    """Returns the names of all presets."""
    return tuple(_presets())


def recipe(name: str) -> Recipe:
    """Finds a model.

    Args:
        name: one of :func:`available`; or ``package.module:Class`` or ``path/to/file.py:Class``, a
            class that derives from :class:`~tal_fast.models.base.Detector`.

    Raises:
        ConfigError: there is no such model, or it cannot be imported, or is no detector.
    """
    presets = _presets()
    if name in presets:
        return presets[name]
    if ":" not in name:
        known = available()
        raise ConfigError(
            f"unknown model {name!r}{nearest(name, known)} (known: {', '.join(known)}; or "
            "package.module:Class or path/to/file.py:Class for one of your own)"
        )
    detector = _imported(name)
    return Recipe(name, detector, detector.recipe)


def detector_of(name: str) -> type[Detector]:
    """Returns the class behind a name; errors are those of :func:`recipe`."""
    return recipe(name).detector


def code_of(name: str) -> str | None:
    """Returns a hash of the file that defines a model of one's own; None for the library's.

    Of that file alone: what it imports may change without a trace.
    """
    detector = detector_of(name)
    if not is_own(detector):
        return None
    try:
        file = inspect.getsourcefile(detector)
        return None if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except (OSError, TypeError):  # made without a file
        return None


@functools.cache
def _presets() -> dict[str, Recipe]:
    found: dict[str, Recipe] = {}
    for place in _DETECTORS:
        _add(found, _imported(place), None)
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        _add(found, _imported(point.value), point.name)
    return found


def _add(recipes: dict[str, Recipe], detector: type[Detector], name: str | None) -> None:
    """Adds a detector's presets; one without presets goes by the name of its entry point."""
    presets = detector.presets or ({} if name is None else {name: {}})
    for preset, settings in presets.items():
        if preset in recipes:
            raise ConfigError(
                f"two models are called {preset!r}: {_place(recipes[preset].detector)} and "
                f"{_place(detector)}"
            )
        recipes[preset] = Recipe(preset, detector, _over(detector.recipe, settings))


def _over(
    base: Mapping[str, Mapping[str, Any]], changes: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    sections = dict.fromkeys([*base, *changes])
    return {key: {**base.get(key, {}), **changes.get(key, {})} for key in sections}


def _place(detector: type[Detector]) -> str:
    return f"{detector.__module__}:{detector.__qualname__}"


def _imported(place: str) -> type[Detector]:
    """Imports ``module:Class`` or ``file.py:Class`` and checks that it is a whole detector."""
    source, _, attribute = place.rpartition(":")
    module = _from_file(source, place) if source.endswith(".py") else _module(source, place)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            detectors = [
                key
                for key, item in vars(module).items()
                if inspect.isclass(item) and issubclass(item, Detector) and item is not Detector
            ]
            raise ConfigError(
                f"model {place!r}: {source} has no {attribute!r}{nearest(attribute, detectors)} "
                f"(detectors there: {', '.join(detectors) or 'none'})"
            )
        found = getattr(found, part)
    if not (inspect.isclass(found) and issubclass(found, Detector)):
        raise ConfigError(
            f"model {place!r}: expected a class that derives from tal_fast.models.Detector, "
            f"got {found!r}"
        )
    missing = sorted(found.__abstractmethods__)
    if missing:
        raise ConfigError(f"model {place!r}: {attribute} lacks {', '.join(missing)}")
    _check_settings(found, f"model {place!r}: {attribute}")
    return found


def _check_settings(detector: type[Detector], where: str) -> None:
    """Checks that a class describes settings; their names and types are checked where they meet."""
    config: Any = detector.Config
    if not (inspect.isclass(config) and issubclass(config, DetectorConfig)):
        raise ConfigError(
            f"{where}.Config: expected a dataclass that derives from "
            f"tal_fast.models.DetectorConfig, got {config!r}"
        )
    presets: Any = detector.presets
    recipes: dict[str, Any] = {"recipe": detector.recipe}
    if isinstance(presets, Mapping):
        recipes |= {f"presets[{name!r}]": item for name, item in presets.items()}
    else:
        recipes["presets"] = presets
    for name, settings in recipes.items():
        sections = settings.values() if isinstance(settings, Mapping) else [None]
        if not all(isinstance(section, Mapping) for section in sections):
            raise ConfigError(
                f"{where}.{name}: expected {{section: {{field: value}}}}, got {settings!r}"
            )


def _module(name: str, place: str) -> ModuleType:
    # A console script does not look into the directory that it is called in, as python -m does.
    here = str(Path.cwd())
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise _broken(place, error) from error
    finally:
        if added:
            sys.path.remove(here)


def _from_file(source: str, place: str) -> ModuleType:
    path = Path(source).resolve()
    if not os.path.isfile(path):
        raise ConfigError(f"model {place!r}: no file {source}")
    # The same name in every process: what is pickled in one is looked up by it in another.
    name = f"tal_fast_own_model_{path.stem}_{zlib.crc32(os.fsencode(path)):08x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look it up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _broken(place, error) from error
    return module


def _broken(place: str, error: Exception) -> ConfigError:
    reason = str(error)
    if isinstance(error, SyntaxError):
        reason = f"{error.msg} ({error.filename}, line {error.lineno})"
    return ConfigError(f"model {place!r}: cannot be imported: {type(error).__name__}: {reason}")
