"""Nova's own placement behind a pipe; runs in the environment that has Nova, started by bench/placement.py.

stdin, JSON lines: {"cells": [{"id", "cpus", "memory_mib", "siblings"}]} once; then {"start": VMID, "vcpus",
"memory_mib", "policy"} or {"stop": VMID}. stdout: {"ready": true}; for each start {"pins": [CPU of each
vCPU] or null, "ns": CPU time of the fit alone}.
"""

import gc
import json
import logging
import sys
import time

logging.disable(logging.CRITICAL)

from nova import conf, objects  # noqa: E402
from nova.virt import hardware  # noqa: E402

objects.register_all()
conf.CONF([], project="nova", default_config_files=[])


def host_topology(cells):
    return objects.NUMATopology(
        cells=[
            objects.NUMACell(
                id=cell["id"],
                cpuset=set(),
                pcpuset=set(cell["cpus"]),
                memory=cell["memory_mib"],
                cpu_usage=0,
                memory_usage=0,
                pinned_cpus=set(),
                siblings=[set(core) for core in cell["siblings"]],
                mempages=[
                    objects.NUMAPagesTopology(size_kb=4, total=cell["memory_mib"] * 256, used=0, reserved=0)
                ],
                socket=0,
            )
            for cell in cells
        ]
    )


def guest_topology(request):
    return objects.InstanceNUMATopology(
        cells=[
            objects.InstanceNUMACell(
                id=0,
                cpuset=set(),
                pcpuset=set(range(request["vcpus"])),
                memory=request["memory_mib"],
                cpu_policy="dedicated",
                cpu_thread_policy=request["policy"],
            )
        ]
    )


def main():
    # What Nova's scheduler passes for hosts without overcommitment.
    limits = objects.NUMATopologyLimits(cpu_allocation_ratio=1.0, ram_allocation_ratio=1.0)
    host = host_topology(json.loads(sys.stdin.readline())["cells"])
    print(json.dumps({"ready": True}), flush=True)
    running = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "stop" in request:
            placed = running.pop(request["stop"])
            host = hardware.numa_usage_from_instance_numa(host, placed, free=True)
            continue
        guest = guest_topology(request)
        gc.collect(1)
        gc.disable()
        begin = time.thread_time_ns()
        placed = hardware.numa_fit_instance_to_host(host, guest, None, limits)
        took = time.thread_time_ns() - begin
        gc.enable()
        pins = None
        if placed:
            running[request["start"]] = placed
            host = hardware.numa_usage_from_instance_numa(host, placed)
            pinning = placed.cells[0].cpu_pinning
            pins = [pinning[vcpu] for vcpu in sorted(pinning)]
        print(json.dumps({"pins": pins, "ns": took}), flush=True)


main()
