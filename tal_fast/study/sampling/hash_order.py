# SPDX-License-Identifier: Apache-2.0
"""Orders that SHA-256 decides: random to the eye, and the same for ever and everywhere.

Things are ordered by a hash of (purpose, seed, ..., name), and a draw takes the first ones. That is
a uniform draw without replacement which depends on nothing else: not on the order in which the
names came, not on the version of a random generator, not on the machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

__all__ = ["SEPARATOR", "digest", "hash_order"]

# Between the parts of what is hashed, so that ("a", "bc") and ("ab", "c") differ.
SEPARATOR = "\x1f"


def digest(*parts: object) -> bytes:
    """Returns the SHA-256 of the parts, each as ``str`` writes it."""
    return hashlib.sha256(SEPARATOR.join(map(str, parts)).encode()).digest()


def hash_order(names: Sequence[str], *key: object) -> list[int]:
    """Orders names by their hash under a key.

    Args:
        names: what to order, each once.
        key: purpose, seed and whatever else tells this order from others.

    Returns:
        The positions in ``names``: ``names[order[0]]`` comes first.
    """
    # What all names begin with is hashed once and copied.
    begun = hashlib.sha256("".join(f"{part}{SEPARATOR}" for part in key).encode())
    digests = []
    for name in names:
        one = begun.copy()
        one.update(name.encode())
        digests.append(one.digest())
    return sorted(range(len(digests)), key=digests.__getitem__)
