"""Runs the hook where systemd takes its time to read its files; each reading is noted.

usage: slow_systemd.py LOG SECONDS VMID PHASE
"""

import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from pxsched import hook
from pxsched.host import systemd


def call(root, *arguments):
    with open(sys.argv[1], "a") as log:
        print(*arguments, file=log)
    time.sleep(float(sys.argv[2]))


systemd.call = call
sys.exit(hook.main(sys.argv[3:]))
