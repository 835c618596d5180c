# SPDX-License-Identifier: Apache-2.0
"""Fast native building blocks and data-efficiency studies for temporal action localization.

Importing this package is cheap: it imports neither torch nor the native library. ``tal_fast.ops``
brings both; ``tal_fast.data``, ``tal_fast.evaluation``, ``tal_fast.models``, ``tal_fast.training``,
``tal_fast.curves``, ``tal_fast.profiling`` and ``tal_fast.study`` are the layers above, each
importing only those below it.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
