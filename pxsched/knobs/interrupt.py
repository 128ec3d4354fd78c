"""Where interrupts go: the CPU list of one interrupt, and the mask that new interrupts start with.

Rules: Documentation/core-api/irq/irq-affinity.rst. Managed interrupts (the queues of nvme and other drivers)
refuse with EIO or EPERM; one that vanishes meanwhile may answer EIO as well.
"""

import errno

from pxsched.host import cpulist, interrupts
from pxsched.host.interrupts import IRQ_DIR
from pxsched.knobs import file
from pxsched.knobs.knob import Gone, Knob, in_words
from pxsched.root import Root

# write_irq_affinity() in kernel/irq/proc.c, and what drivers answer
_REFUSALS = {
    errno.EINVAL: "none of these CPUs is online",
    errno.EIO: "its driver manages it, or it takes no other CPU",
    errno.EPERM: "its driver manages it",
}


class InterruptAffinity(Knob):
    """identity: the interrupt's name, which holds the PCI address of a passed-through device; its number may
    be another interrupt's tomorrow.
    """

    kind = "irq"

    number: int
    identity: str

    def label(self, root: Root) -> str:
        return f"affinity of interrupt {self.number} ({self.identity})"

    def read(self, root: Root) -> str:
        text = root.read(f"{IRQ_DIR}/{self.number}/smp_affinity_list")
        if text is None or not self._present(root):
            raise Gone(self.key)
        return text

    def write(self, root: Root, value: str) -> None:
        if not self._present(root):
            raise Gone(self.key)
        try:
            with in_words(_REFUSALS):
                file.write(root, f"{IRQ_DIR}/{self.number}/smp_affinity_list", value)
        except OSError as error:
            if error.errno in (errno.EIO, errno.ENOENT, errno.ENODEV) and not self._present(root):
                raise Gone(self.key) from None
            raise

    def same(self, now: str, want: str) -> bool:
        return now == want or cpulist.parse(now) == cpulist.parse(want)

    def _present(self, root: Root) -> bool:
        return interrupts.present(root, self.number, self.identity)


class DefaultAffinity(Knob):
    """The mask that interrupts get when they are set up."""

    kind = "irq-default"

    def label(self, root: Root) -> str:
        return "affinity of new interrupts"

    def read(self, root: Root) -> str:
        text = root.read(f"{IRQ_DIR}/default_smp_affinity")
        if text is None:
            raise Gone(self.key)
        return text

    def write(self, root: Root, value: str) -> None:
        with in_words(_REFUSALS):
            file.write(root, f"{IRQ_DIR}/default_smp_affinity", value)

    def same(self, now: str, want: str) -> bool:
        return now == want or cpulist.parse_mask(now) == cpulist.parse_mask(want)
