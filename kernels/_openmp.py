"""Settings of the OpenMP runtime, which reads them when it is loaded: import this module first.

libgomp lets idle threads spin for some milliseconds. On a machine that is busy otherwise they
spin in the place of the very thread that they wait for: with two other busy processes on two cores
a training step took ten times as long as with a short spin.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
