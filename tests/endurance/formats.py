# SPDX-License-Identifier: Apache-2.0
"""Any bytes under a known name: what they say, or an error of ours, in little time and memory.

Files of every format are made by their own writers, then bent (``mutators``), then read through the
public functions and, one case in some, through the commands.
"""

from __future__ import annotations

from endurance import feature_cases, model_cases, study_cases, text_cases
from endurance.warm_cases import part_of

_SUBJECTS = (
    *feature_cases.SUBJECTS,
    *text_cases.SUBJECTS,
    *model_cases.SUBJECTS,
    *study_cases.SUBJECTS,
)
#: A million cases in all.
_EACH = -(-1_000_000 // len(_SUBJECTS))

PART = part_of("formats", "Formats", dict.fromkeys(_SUBJECTS, _EACH))
