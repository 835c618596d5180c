# SPDX-License-Identifier: Apache-2.0
"""Adapters to other projects' code that the user already has.

``TAL_FAST_PEERS`` names a folder of checkouts (``TadTR``, ...). An adapter imports from there and
says so when there is nothing; it never fetches or builds.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["PeerMissingError", "checkout"]


class PeerMissingError(RuntimeError):
    """The peer is not on this machine."""


def checkout(name: str) -> Path:
    """Returns the folder of a peer's checkout.

    Raises:
        PeerMissingError: ``TAL_FAST_PEERS`` is not set or has no such folder.
    """
    folder = Path(os.environ.get("TAL_FAST_PEERS", "")) / name
    if "TAL_FAST_PEERS" not in os.environ or not folder.is_dir():
        raise PeerMissingError(f"{name} is absent: set TAL_FAST_PEERS to the folder that holds it")
    return folder
