"""How a knob in the journal stands now, for `status` and for the details of `top`."""

import pytest

from pxsched.knobs.interrupt import DefaultAffinity
from pxsched.ledger.journal import NODE, Entry
from pxsched.node import planning
from pxsched.root import Root


@pytest.mark.parametrize(
    ("now", "standing"),
    [("00000000,00000003\n", "3"), ("1\n", "1"), ("?\n", "?")],
    ids=["as wanted, in the kernel's spelling", "turned by somebody else", "left out of a bundle"],
)
def test_a_value_that_the_kernel_only_spells_otherwise_stands_as_wanted(tmp_path, now, standing):
    (tmp_path / "proc/irq").mkdir(parents=True)
    (tmp_path / "proc/irq/default_smp_affinity").write_text(now)
    entry = Entry(NODE, "interrupts", "f", "3", 0)
    assert planning.standing(Root(str(tmp_path)), DefaultAffinity().key, entry) == standing
