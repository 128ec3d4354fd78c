"""A pass that changes nothing writes nothing."""

import os

from pxsched.guest.process import Process
from pxsched.ledger import file as ledgers
from pxsched.ledger.claim import Claim, State
from pxsched.placement.request import Placement, VmClass
from pxsched.root import Root


def test_a_ledger_that_says_the_same_is_not_written_again(tmp_path):
    root = Root(str(tmp_path))
    placement = Placement(100, VmClass.SHARED, (frozenset((1,)),), frozenset((0,)), frozenset((0,)))
    claim = Claim(placement, State.RUNNING, process=Process(5, 6))
    written_ns = []
    for load in (None, None, 0.5):
        with ledgers.locked(root) as ledger:
            ledger.claims[100] = Claim(placement, State.RUNNING, process=claim.process, load=load)
            ledgers.save(root, ledger)
        written_ns.append(os.stat(root.path(ledgers.FILE)).st_mtime_ns)
    assert written_ns[0] == written_ns[1] != written_ns[2]
