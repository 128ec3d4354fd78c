"""The CPUs that work for one queue of a network device: rps_cpus of a receive queue, xps_cpus of a transmit
queue (Documentation/networking/scaling.rst).
"""

import re

from pxsched.host import cpulist
from pxsched.host.links import NET_DIR
from pxsched.knobs import file
from pxsched.knobs.knob import Gone, Knob
from pxsched.root import Root


class QueueMask(Knob):
    """interface: a tap. ifindex: tells it from a later one with that name. queue: `rx-N` or `tx-N`."""

    kind = "nic-queue"

    interface: str
    ifindex: int
    queue: str

    def label(self, root: Root) -> str:
        return f"CPUs of queue {self.queue} of {self.interface}"

    def read(self, root: Root) -> str:
        text = root.read(self._path(root))
        if text is None:
            raise Gone(self.key)
        return text

    def write(self, root: Root, value: str) -> None:
        file.write(root, self._path(root), value)

    def same(self, now: str, want: str) -> bool:
        return now == want or cpulist.parse_mask(now) == cpulist.parse_mask(want)

    def _path(self, root: Root) -> str:
        queue = re.fullmatch(r"([rt])x-\d{1,5}", self.queue, re.ASCII)
        if queue is None or not re.fullmatch(r"tap\d{1,9}i\d{1,3}", self.interface, re.ASCII):
            raise ValueError(f"no queue of a tap: {self.key[:60]!r}")
        if root.read(f"{NET_DIR}/{self.interface}/ifindex") != str(self.ifindex):
            raise Gone(self.key)
        return f"{NET_DIR}/{self.interface}/queues/{self.queue}/{queue[1]}ps_cpus".replace("tps", "xps")
