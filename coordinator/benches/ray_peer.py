"""Prints Ray's rate of empty tasks on this machine as one JSON line, for comparison with `cargo bench -p llink-coord --bench load`.

    pip install ray && python coordinator/benches/ray_peer.py [TASKS]

Ray keeps its tasks in memory and loses them with its head node. The coordinator saves each step before it answers.
"""
import json
import os
import sys
import time

import ray

tasks = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
ray.init(num_cpus=os.cpu_count(), include_dashboard=False, logging_level="error")


@ray.remote
def empty(number):
    return number


ray.get([empty.remote(i) for i in range(500)])
began = time.perf_counter()
ray.get([empty.remote(i) for i in range(tasks)])
rate = tasks / (time.perf_counter() - began)
trips = []
for i in range(500):
    began = time.perf_counter()
    ray.get(empty.remote(i))
    trips.append(time.perf_counter() - began)
trips.sort()
print(json.dumps({"bench": "ray", "version": ray.__version__, "tasks": tasks, "tasks_per_second": round(rate), "p50_ms": round(1e3 * trips[250], 2),
                  "p99_ms": round(1e3 * trips[495], 2)}))
