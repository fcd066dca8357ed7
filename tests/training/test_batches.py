"""Batches: every image once, the same from any place on, made in another thread."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from convserve.datasets import Split
from convserve.preprocessing import Preprocessing
from convserve.training import TrainConfig
from convserve.training.batches import Batches

X = np.arange(23, dtype=np.uint8).reshape(23, 1, 1, 1).repeat(4, 2).repeat(4, 3)
SPLIT = Split(X, np.arange(23) % 3)
PREPROCESSING = Preprocessing(4, 4, "grey", (0.0,), (1.0,))
BATCH_BYTES = 5 * 4 * 4 * 4


@pytest.fixture(autouse=True, params=[1, 2 * BATCH_BYTES, 1 << 20], ids=["one", "two", "all"])
def batches_a_job(request, monkeypatch):
    """How many batches are made together must show nowhere."""
    monkeypatch.setattr("convserve.training.batches.JOB_BYTES", request.param)


def batches(**settings):
    return Batches(SPLIT, 3, TrainConfig(batch_size=5, shift=0, **settings), PREPROCESSING)


def collected(iterator):
    return [(x.copy(), targets) for x, targets in iterator]


def test_every_image_comes_once_with_its_label_in_an_order_of_the_epoch():
    made = batches()
    orders = []
    for epoch in (1, 2):
        parts = collected(made.epoch(epoch))
        assert [len(x) for x, _ in parts] == [5, 5, 5, 5, 3]
        assert len(made) == 5
        values = np.rint(np.concatenate([x for x, _ in parts])[:, 0, 0, 0] * 255).astype(int)
        labels = np.concatenate([targets for _, targets in parts]).argmax(axis=1)
        assert sorted(values) == list(range(23))
        assert (labels == values % 3).all()
        orders.append(values)
    assert (orders[0] != orders[1]).any()


def test_an_epoch_can_begin_at_any_batch():
    made = batches(mixup=0.5, rotation=10.0)
    whole = collected(made.epoch(4))
    for first in range(6):
        part = collected(made.epoch(4, first))
        assert len(part) == 5 - first
        for (x, targets), (also_x, also_targets) in zip(whole[first:], part, strict=True):
            assert x.tobytes() == also_x.tobytes() and targets.tobytes() == also_targets.tobytes()


def test_a_batch_is_made_while_the_one_before_is_used(monkeypatch):
    monkeypatch.setattr("convserve.training.batches.JOB_BYTES", BATCH_BYTES)
    made = batches()
    started = threading.Event()
    inner = made._augmenter.batch
    calls = []

    def watched(*arguments):
        calls.append(threading.current_thread())
        if len(calls) == 3:
            started.set()
        return inner(*arguments)

    made._augmenter.batch = watched
    iterator = made.epoch(1)
    next(iterator)
    assert started.wait(60)  # the third batch, though only the first was asked for
    assert threading.current_thread() not in calls
    iterator.close()
    assert not any(t.name.startswith("augment") for t in threading.enumerate())


def test_an_error_in_the_thread_reaches_the_loop():
    made = batches()
    made._augmenter.batch = lambda *arguments: 1 / 0
    with pytest.raises(ZeroDivisionError):
        next(made.epoch(1))
