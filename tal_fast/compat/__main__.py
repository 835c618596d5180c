# SPDX-License-Identifier: Apache-2.0
"""``python -m tal_fast.compat SCRIPT ARGS…``."""

import sys

from tal_fast.compat.launcher import main

sys.exit(main())
