# SPDX-License-Identifier: Apache-2.0
"""PEP 517 backend: setuptools', plus the rule for torch as a build requirement.

The native library is compiled against torch's headers. Were torch a fixed build requirement, every
isolated build would download one, perhaps of another version than the installed one. So torch is
asked for only when the target environment has none.
"""

from __future__ import annotations

from typing import Any

from setuptools import build_meta as _setuptools
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

from find_torch import find_torch

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

_TORCH = "torch>=2.10"


def _with_torch(requires: list[str]) -> list[str]:
    return requires if find_torch() is not None else [*requires, _TORCH]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """Names what a wheel build needs beyond ``build-system.requires``."""
    return _with_torch(_setuptools.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """Names what an editable build needs beyond ``build-system.requires``."""
    return _with_torch(_setuptools.get_requires_for_build_editable(config_settings))
