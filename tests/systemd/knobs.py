"""Turns knobs inside the lab: reads steps [[operation, key, value], ...] as JSON, prints what each gave.

usage: python3 knobs.py CHECKOUT <STEPS
"""

import json
import sys
import time

sys.path.insert(0, sys.argv[1])

from pxsched.knobs import knob as knobs
from pxsched.knobs.knob import Gone
from pxsched.root import Root

ROOT = Root("/")


def act(operation: str, key: str, *value: str) -> object:
    knob = knobs.from_key(key)
    try:
        if operation == "write":
            began = time.monotonic()
            knob.write(ROOT, *value)
            return time.monotonic() - began
        return knob.original(ROOT) if operation == "original" else knob.read(ROOT)
    except Gone:
        return "gone"


print(json.dumps([act(*step) for step in json.load(sys.stdin)]))
