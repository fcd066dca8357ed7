"""The metrics of all processes: models, memory and time as sums, and how the workers fare."""

from __future__ import annotations

import resource
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from convserve.serving.metrics import ModelCollector, ModelFigures, RecordCollector

__all__ = ["registry"]


class _Processes(Collector):
    """prometheus_client's figures of a process, summed; the start is the supervisor's."""

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        self._pids = pids
        self._lock = threading.Lock()
        self._most = 0.0  # seconds of processor time that were said

    def collect(self) -> Iterator[Metric]:
        sums: dict[str, Metric] = {}
        for pid in (None, *self._pids()):
            collector = ProcessCollector(
                pid=lambda pid=pid: "self" if pid is None else pid,  # type: ignore[misc]
                registry=CollectorRegistry(),
            )
            for metric in collector.collect():
                known = sums.setdefault(metric.name, metric)
                if known is not metric and metric.name != "process_start_time_seconds":
                    total = known.samples[0].value + metric.samples[0].value
                    known.samples[0] = known.samples[0]._replace(value=total)
        cpu = sums.get("process_cpu_seconds")
        if cpu is not None:  # a counter: those that have ended count on
            ended = resource.getrusage(resource.RUSAGE_CHILDREN)
            total = cpu.samples[0].value + ended.ru_utime + ended.ru_stime
            with self._lock:  # a process that is just ending may be in neither sum
                total = self._most = max(self._most, total)
            cpu.samples[0] = cpu.samples[0]._replace(value=total)
        yield from sums.values()


class _Workers(Collector):
    def __init__(self, ready: Callable[[], int], restarts: Counter[str]) -> None:
        self._ready, self._restarts = ready, restarts

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("convserve_workers", "Workers that are ready", self._ready())
        restarts = CounterMetricFamily(
            "convserve_worker_restarts", "Workers that were started anew", labels=["reason"]
        )
        for reason, count in sorted(self._restarts.items()):
            restarts.add_metric([reason], count)
        yield restarts


def registry(
    figures: Callable[[], Iterable[ModelFigures]],
    pids: Callable[[], Iterable[int]],
    ready: Callable[[], int],
    restarts: Counter[str],
    dropped: Callable[[], int],
) -> CollectorRegistry:
    """Metrics of the models' `figures`, the processes `pids` and the number of workers `ready`.

    dropped: as in metrics.registry.
    """
    own = CollectorRegistry()
    own.register(ModelCollector(figures))
    own.register(RecordCollector(dropped))
    own.register(_Processes(pids))
    own.register(_Workers(ready, restarts))
    return own
