# SPDX-License-Identifier: Apache-2.0
"""``python -m tal_fast``: the command line."""

import sys

from tal_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
