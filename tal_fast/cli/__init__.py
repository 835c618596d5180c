# SPDX-License-Identifier: Apache-2.0
"""The command line ``tal-fast``: parses, calls, prints.

Everything heavy is imported inside the commands, so that ``-h`` answers at once.

Exit status: 0 done, 1 bad data or a failure, 2 wrong usage or settings, 130 Ctrl-C,
143 SIGTERM.
"""

from tal_fast.cli.app import app, main

# Imported for the commands that they add to the program, in the order of its help.
from tal_fast.cli import prepare, data, models, studies, curves, drawing  # isort: skip
from tal_fast.cli import profiles, external_profiles  # isort: skip

__all__ = [
    "app",
    "curves",
    "data",
    "drawing",
    "external_profiles",
    "main",
    "models",
    "prepare",
    "profiles",
    "studies",
]
