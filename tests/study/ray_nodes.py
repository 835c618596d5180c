# SPDX-License-Identifier: Apache-2.0
"""A Ray cluster of two nodes on this machine, in a process that takes it down when it ends.

``ray_nodes.py DIRECTORY`` prints the address, then obeys the lines on standard input, with the line
``done`` after each: ``kill`` kills the second node, ``add`` brings it back, ``version 1.2.3`` makes
the cluster claim to be of another version of Ray.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import ray
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster

CPUS = 1


def pretend(cluster: Cluster, version: str) -> None:
    client = GcsClient(address=cluster.address)
    key, space = b"CLUSTER_METADATA", b"cluster"
    facts = json.loads(client.internal_kv_get(key, space, timeout=10))
    facts["ray_version"] = version
    client.internal_kv_put(key, json.dumps(facts).encode(), True, space, timeout=10)


def main() -> None:
    def start(name: str, **more: Any) -> Any:
        return cluster.add_node(
            num_cpus=CPUS,
            object_store_memory=80 * 2**20,
            env_vars={"FAKE_NODE": name},
            **more,
        )

    cluster = Cluster()
    start("first", temp_dir=sys.argv[1], include_dashboard=False)
    try:
        second = start("second")
        print(cluster.address, flush=True)
        for line in sys.stdin:
            command, _, argument = line.strip().partition(" ")
            if command == "kill":
                cluster.remove_node(second, allow_graceful=False)
            elif command == "add":
                second = start("second")
            elif command == "version":
                pretend(cluster, argument or ray.__version__)
            print("done", flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
