# SPDX-License-Identifier: Apache-2.0
"""Runs tasks on a Ray cluster: ``ray_drive.py ADDRESS TASKS LOGS SECONDS``.

TASKS is a file of tasks, SECONDS is how long connecting may take.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tal_fast.study.execution.ray.cluster import RayCluster
from tal_fast.study.trial import TrialTask


def main(address: str, tasks: str, logs: str, seconds: str) -> int:
    cluster = RayCluster(address, threads=1, logs=Path(logs), connect_seconds=float(seconds))
    lines = Path(tasks).read_text().splitlines()
    try:
        for outcome in cluster.run([TrialTask.from_json(line) for line in lines], print):
            print(outcome, flush=True)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
