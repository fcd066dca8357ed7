"""What the supervisor keeps of its workers: when the next starts, and what they have counted."""

from __future__ import annotations

import subprocess
import sys

import pytest

from convserve.engine.statistics import Counters
from convserve.serving.workers.pages import _Processes
from convserve.serving.workers.supervisor import _Slot
from convserve.serving.workers.totals import Account, Report, Totals


class Worker:
    gone = False


def account(number, success):
    counters = Counters()
    counters.success = success
    return Account([Report("m", "1", "id", counters, 0, 0)], 0, number)


def successes(totals):
    (figures,) = totals.figures()
    return figures.counters.success


def test_an_account_that_is_overtaken_takes_nothing_back():
    totals, worker = Totals(), Worker()
    totals.update(worker, account(0, 5))
    totals.update(worker, account(2, 9))
    totals.update(worker, account(1, 7))
    assert successes(totals) == 9
    worker.gone = True
    totals.died(worker)
    totals.update(worker, account(3, 11))  # it has been counted among the dead
    assert successes(totals) == 9
    totals.update(Worker(), account(0, 1))
    assert successes(totals) == 10


@pytest.mark.parametrize(
    ("lives", "delays"),
    [
        (0.0, [0, 0.5, 1, 2, 4, 8, 16, 30, 30]),  # a crash loop
        (0.75, [0, 0, 0.25, 1.25, 1.25, 1.25]),  # what it has lived counts
        (3.0, [0] * 10),
        (12.0, [0] * 10),  # each has served for long enough to forget the earlier ones
    ],
)
def test_when_the_next_worker_starts(lives, delays):
    slot, now = _Slot(), 100.0
    for expected in delays:
        started, now = now, now + lives
        assert slot.ended(started, started + 0.5 if lives else None, now) == expected
        assert slot.due == now + expected and slot.worker is None
        now = slot.due


def test_only_workers_that_never_got_ready_count_as_attempts():
    """Three of them end the server when no other worker is ready."""
    slot = _Slot()
    for ready_since, attempts in [(2.0, 0), (2.0, 0), (None, 1), (None, 2), (2.0, 0), (None, 1)]:
        slot.ended(1.0, ready_since, 3.0)
        assert slot.attempts == attempts


def test_the_time_of_a_process_that_is_ending_is_not_taken_back():
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True); input()"
    pids = []
    processes = _Processes(lambda: pids)

    def seconds():
        (metric,) = [m for m in processes.collect() if m.name == "process_cpu_seconds"]
        return metric.samples[0].value

    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        pids.append(process.pid)
        before = seconds()
        pids.clear()  # its connection has ended, and nobody has waited for it yet
        assert seconds() >= before
        process.stdin.close()
