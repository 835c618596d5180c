# SPDX-License-Identifier: Apache-2.0
"""A Ray cluster of two nodes on this machine, in a process that takes it down when it ends.

``ray_nodes.py DIRECTORY`` prints the address, then obeys the lines on standard input, with the line
``done`` after each: ``kill`` kills the second node, ``add`` brings it back, ``version 1.2.3`` makes
the cluster claim to be of another version of Ray.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import ray
from processes import HANG
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster

CPUS = 1


def pretend(cluster: Cluster, version: str) -> None:
    client = GcsClient(address=cluster.address)
    key, space = b"CLUSTER_METADATA", b"cluster"
    facts = json.loads(client.internal_kv_get(key, space, timeout=HANG))
    facts["ray_version"] = version
    client.internal_kv_put(key, json.dumps(facts).encode(), True, space, timeout=HANG)


def is_alive(cluster: Cluster, socket: str) -> bool:
    """Whether Ray takes the node with this object store for alive."""
    nodes = cluster.global_state.node_table()
    return any(node["Alive"] and node["ObjectStoreSocketName"] == socket for node in nodes)


def main() -> None:
    def start(name: str, **more: Any) -> Any:
        node = cluster.add_node(
            wait=False,  # for 30 s it would
            num_cpus=CPUS,
            object_store_memory=80 * 2**20,
            env_vars={"FAKE_NODE": name},
            **more,
        )
        cluster._wait_for_node(node, timeout=HANG)
        return node

    # Not by temp_dir=: whatever that says, the cluster writes its address below the default one,
    # which is there only where Ray has run before, and which belongs to the user's own clusters.
    os.environ["RAY_TMPDIR"] = sys.argv[1]
    cluster = Cluster()
    try:
        start("first", include_dashboard=False)
        second = start("second")
        print(cluster.address, flush=True)
        for line in sys.stdin:
            command, _, argument = line.strip().partition(" ")
            if command == "kill":
                socket = second.plasma_store_socket_name
                cluster.remove_node(second, allow_graceful=False)
                # Ray notices by missed heartbeats, and then tells every driver that is connected.
                while is_alive(cluster, socket):
                    time.sleep(0.1)
            elif command == "add":
                second = start("second")
            elif command == "version":
                pretend(cluster, argument or ray.__version__)
            print("done", flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
