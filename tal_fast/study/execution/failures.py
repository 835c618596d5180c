# SPDX-License-Identifier: Apache-2.0
"""How a trial's failure travels between processes, and which failures concern every trial."""

from __future__ import annotations

from typing import Any

from tal_fast.errors import ConfigError, DataError, TalFastError

__all__ = ["describe_error", "is_environment_error", "rebuild_error"]


def is_environment_error(error: BaseException) -> bool:
    """Returns whether every other trial would fail as well: bad settings, full disk, no access."""
    return isinstance(error, (OSError, ConfigError)) or isinstance(error.__cause__, OSError)


def describe_error(error: BaseException) -> dict[str, Any]:
    """Returns an exception as JSON can carry it."""
    described: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
    for kind in (ConfigError, DataError, TalFastError):
        if isinstance(error, kind):
            described["kind"] = kind.__name__
            break
    system = error if isinstance(error, OSError) else error.__cause__
    if isinstance(system, OSError) and system.errno is not None:
        name = None if system.filename is None else str(system.filename)
        described["system"] = [system.errno, system.strerror, name]
    return described


def rebuild_error(described: dict[str, Any]) -> Exception:
    """Returns the exception that :func:`describe_error` took apart, or the nearest to it."""
    kinds = {"ConfigError": ConfigError, "DataError": DataError, "TalFastError": TalFastError}
    system = OSError(*described["system"]) if "system" in described else None
    if "kind" in described:
        error = kinds[described["kind"]](described["message"])
        error.__cause__ = system
        return error
    return system or TalFastError(f"{described['type']}: {described['message']}")
