"""Does all kinds of things with an embedded store, and prints a dot for each: diligent.py FILE STEPS SEED."""

from __future__ import annotations

import sys

import cloudstore_mapping as cm
from tests.crash.script import steps

with cm.open(sys.argv[1]) as store:
    for step in steps(store, int(sys.argv[2]), int(sys.argv[3])):
        step()
        sys.stdout.write(".")
        sys.stdout.flush()
