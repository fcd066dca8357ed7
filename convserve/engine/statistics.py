"""What a served model has done so far, as plain counters; exporters read a snapshot.

Counting is on every request's path, so it costs an addition under a lock and no more. Durations
are in nanoseconds. Names and meanings follow the inference protocol's ModelStatistics.
"""

from __future__ import annotations

import copy
import threading
import time
from bisect import bisect_left
from dataclasses import dataclass, field, fields

__all__ = ["LATENCY_BUCKETS", "BatchCounters", "Counters", "Statistics"]

# Upper bounds in seconds of the request-duration histogram; the last bucket is what lies beyond.
LATENCY_BUCKETS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0,
)  # fmt: skip
_BUCKETS_NS = tuple(round(bound * 1e9) for bound in LATENCY_BUCKETS)


@dataclass
class BatchCounters:
    """The batches of one size; durations are sums over batches."""

    count: int = 0
    compute_input_ns: int = 0
    compute_infer_ns: int = 0
    compute_output_ns: int = 0


@dataclass
class Counters:
    """Totals since the model was loaded; durations are sums over requests."""

    success: int = 0
    failures: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("REJECTED", "CANCELED", "BACKEND", "OTHER"), 0)
    )
    failed_ns: int = 0
    inferences: int = 0  # images
    executions: int = 0  # batches
    executed: int = 0  # requests in them
    last_ms: int = 0  # when the last batch ended, since the epoch; 0: none has
    request_ns: int = 0
    queue_ns: int = 0
    compute_input_ns: int = 0
    compute_infer_ns: int = 0
    compute_output_ns: int = 0
    batches: dict[int, BatchCounters] = field(default_factory=dict)  # by the images in a batch
    latencies: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BUCKETS) + 1))

    def add(self, other: Counters) -> None:
        """Add what other counters have counted."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for reason, count in other.failures.items():
            self.failures[reason] = self.failures.get(reason, 0) + count
        for size, batch in other.batches.items():
            own = self.batches.setdefault(size, BatchCounters())
            own.count += batch.count
            own.compute_input_ns += batch.compute_input_ns
            own.compute_infer_ns += batch.compute_infer_ns
            own.compute_output_ns += batch.compute_output_ns
        self.latencies = [a + b for a, b in zip(self.latencies, other.latencies, strict=True)]
        self.last_ms = max(self.last_ms, other.last_ms)

    @property
    def batch_sizes(self) -> dict[int, int]:
        """Images in a batch -> batches."""
        return {size: batch.count for size, batch in self.batches.items()}


_SUMS = tuple(f.name for f in fields(Counters) if f.type == "int" and f.name != "last_ms")


class Statistics:
    """The counters of one model version; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters = Counters()

    def executed(
        self, requests: int, images: int, queue: int, merge: int, infer: int, split: int
    ) -> None:
        """Count one batch: `queue` is the sum of its requests' waits, the rest its own times."""
        now = time.time_ns() // 1_000_000
        with self._lock:
            c = self._counters
            c.executions += 1
            c.executed += requests
            c.inferences += images
            c.last_ms = now
            c.queue_ns += queue
            c.compute_input_ns += requests * merge
            c.compute_infer_ns += requests * infer
            c.compute_output_ns += requests * split
            batch = c.batches.get(images)
            if batch is None:
                batch = c.batches[images] = BatchCounters()
            batch.count += 1
            batch.compute_input_ns += merge
            batch.compute_infer_ns += infer
            batch.compute_output_ns += split

    def succeeded(self, duration: int) -> None:
        """Count one answered request, from its arrival to its answer."""
        bucket = bisect_left(_BUCKETS_NS, duration)
        with self._lock:
            self._counters.success += 1
            self._counters.request_ns += duration
            self._counters.latencies[bucket] += 1

    def failed(self, reason: str, duration: int) -> None:
        """Count one failed request: REJECTED, CANCELED, BACKEND or OTHER."""
        with self._lock:
            self._counters.failures[reason] += 1
            self._counters.failed_ns += duration

    def snapshot(self) -> Counters:
        """A consistent copy."""
        with self._lock:
            return copy.deepcopy(self._counters)
