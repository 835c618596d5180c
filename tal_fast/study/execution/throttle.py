# SPDX-License-Identifier: Apache-2.0
"""Progress events, not more often than anybody looks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

__all__ = ["Throttle"]


class Throttle:
    """Lets the first event of each stage pass, and of the others one per ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = 0.0
        self._stage: Any = None

    def lets_pass(self, event: Mapping[str, Any]) -> bool:
        """Returns whether this event is worth sending."""
        now = time.monotonic()
        if event["stage"] == self._stage and now - self._last < self._seconds:
            return False
        self._stage, self._last = event["stage"], now
        return True
