# SPDX-License-Identifier: Apache-2.0
"""``tal-fast`` with a stand-in for the training: ``drive.py module:function ARGUMENTS...``."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = map(str, Path(__file__).parents[:2])
    from tal_fast.cli import main
    from tal_fast.study import trial
    from tal_fast.study.report import page

    # The drawing takes longer than all else in these studies.
    page.write_report = lambda *arguments, **options: {}

    trial.EXPERIMENT = sys.argv[1]
    sys.exit(main(sys.argv[2:]))
