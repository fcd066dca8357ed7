"""Settings and fixtures that all tests share."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

# A run in the background has SIGINT ignored, and what it starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "convserve",
    derandomize=True,
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("convserve")
