"""The table of the server's benchmark, and that its servers start and answer."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from benchmarks.serving import servers
from benchmarks.serving.clients import Caller, request
from benchmarks.serving.report import TAIL_OF_A_QUEUE, Row, markdown
from convserve.cli._load import poisson


@pytest.mark.parametrize(
    ("ours", "target", "met"),
    [(90, ">= 0.9", True), (89, ">= 0.9", False), (115, "<= 1.15", True), (116, "<= 1.15", False)],
)
def test_a_row_says_whether_its_target_is_met(ours: float, target: str, met: bool) -> None:
    row = Row("what", "µs", ours, "echo", 100, target)
    assert row.met is met
    assert row.cells()[-1] == ("yes" if met else "no")


def test_the_report_is_a_table() -> None:
    rows = [Row("a", "images/s", 12345, "echo", 10000, ">= 0.9")]
    *_, header, rule, line = markdown(rows, 3, 1, True).splitlines()
    assert header.count("|") == rule.count("|") == line.count("|") == 7
    assert line == "| a | 12,345 images/s | echo: 10,000 | 1.23 | ≥ 0.9 | yes |"


def test_echo_servers_share_a_port_and_answer_what_they_got() -> None:
    data = request("lenet", 2, (1, 4, 4))
    with servers.echo(2) as bare:
        caller = Caller(bare.address)
        try:
            assert caller.once(data) == data
        finally:
            caller.close()
        assert bare.resident_mb() > 1
        assert len({*bare.pids}) == 2


@pytest.mark.parametrize(("load", "expected"), [(0.7, TAIL_OF_A_QUEUE), (0.4, 3.5)])
def test_the_tail_that_a_queue_has_by_itself(load, expected):
    """What report and operations guide say of a server that takes requests one by one."""
    free, spent = 0.0, []
    for arrival in itertools.islice(poisson(load), 200_000):
        free = max(free, arrival) + 1.0
        spent.append(free - arrival)
    p50, p99 = np.percentile(spent, [50, 99])
    assert p99 / p50 == pytest.approx(expected, rel=0.05)
