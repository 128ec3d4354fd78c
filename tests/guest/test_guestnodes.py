"""What of a VM's guest NUMA nodes Proxmox refuses, and what counts for nothing."""

import pytest

from pxsched.guest import config, guestnodes

TWO = "numa0: cpus=0-1,hostnodes=0,memory=1024,policy=bind\nnuma1: cpus=2-3,memory=1024"


def said(text: str) -> list[str]:
    return list(guestnodes.remarks(config.machine(config.parse(f"cores: 4\nmemory: 2048\n{text}"))))


@pytest.mark.parametrize("text", ["", "numa: 1", f"numa: 1\n{TWO}", "numa: 1\nhugepages: 2"])
def test_nothing_is_said_of_what_starts(text):
    assert said(text) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hugepages: 2", "cannot start: huge pages need `numa: 1`"),
        (
            "numa: 1\nnuma0: cpus=0-3,hostnodes=1,memory=2048",
            "cannot start: numa0 has `hostnodes` and no `policy`",
        ),
        ("numa: 1\nnuma0: cpus=0-3", "cannot start: numa0 has no memory"),
        (f"numa: 1\nhugepages: any\n{TWO}", "one host node in `hostnodes` of numa1"),
        (
            "numa: 1\nhugepages: 2\nnuma0: cpus=0-3,hostnodes=0-1,memory=2048,policy=bind",
            "`hostnodes` of numa0",
        ),
        ("numa: 1\nnuma0: cpus=0-3,memory=1024", "guest nodes have 1024 MiB, `memory` says 2048"),
        ("numa: 1\nnuma2: cpus=0-3,memory=2048,hostnodes=0", "cannot start: numa2 has `hostnodes`"),
        (f"numa: 0\n{TWO}", "numa0 counts for nothing without `numa: 1`"),
    ],
)
def test_what_proxmox_refuses_or_ignores_is_said(text, words):
    assert any(words in line for line in said(text))
