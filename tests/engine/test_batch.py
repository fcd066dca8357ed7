"""The batcher's arithmetic: who joins a batch, and that splitting undoes merging exactly."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convserve.engine.batch import Batch, economical, select
from convserve.errors import ShapeError


class Item(NamedTuple):
    size: int
    key: str = "a"


def test_select_takes_the_oldest_and_what_fits_behind_it():
    waiting = [Item(2), Item(1), Item(1, "b"), Item(3)]
    assert select(waiting, 8) == ([Item(2), Item(1), Item(3)], False)
    assert select(waiting, 6) == ([Item(2), Item(1), Item(3)], True)


def test_select_never_lets_a_request_overtake_one_of_its_kind():
    waiting = [Item(4), Item(5), Item(1)]
    assert select(waiting, 8) == ([Item(4)], True)


def test_select_of_nothing():
    assert select([], 8) == ([], False)


@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from("ab"))), st.integers(9, 20))
def test_select_is_a_prefix_of_the_oldest_kind(items, limit):
    waiting = [Item(*item) for item in items]
    chosen, full = select(waiting, limit)
    same = [item for item in waiting if item.key == waiting[0].key] if waiting else []
    assert chosen == same[: len(chosen)]
    assert sum(item.size for item in chosen) <= limit
    left = same[len(chosen) :]
    size = sum(item.size for item in chosen)
    assert full == (size == limit or bool(left))
    if left:
        assert size == limit or size + left[0].size > limit


@given(st.lists(st.integers(0, 7), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_split_undoes_merge(sizes, random):
    random.shuffle(sizes)
    arrays, start = [], 0
    for size in sizes:
        arrays.append(np.arange(start, start + size * 6, dtype=np.float32).reshape(size, 2, 3))
        start += size * 6
    batch = Batch(arrays)
    merged = batch.merge()
    assert batch.size == sum(sizes) == len(merged)
    parts = batch.split({"twice": merged * 2, "same": merged})
    for array, part in zip(arrays, parts, strict=True):
        np.testing.assert_array_equal(part["same"], array)
        np.testing.assert_array_equal(part["twice"], array * 2)


def test_one_array_is_passed_on_without_a_copy():
    x = np.ones((3, 1, 2, 2), np.float32)
    assert Batch([x]).merge() is x


def test_arrays_that_do_not_fit_together_are_refused():
    x = np.ones((3, 4), np.float32)
    for other in (x[:, :3], x.astype(np.uint8), np.float32(1).reshape(())):
        with pytest.raises(ShapeError, match="must agree"):
            Batch([x, other])
    with pytest.raises(ShapeError, match="at least one"):
        Batch([])


def test_an_output_of_the_wrong_size_is_refused():
    batch = Batch([np.ones((3, 4), np.float32)])
    with pytest.raises(ShapeError, match="'output' of a batch of 3"):
        batch.split({"output": np.ones((2, 4), np.float32)})


def by_rounds(images):
    """Seconds of a model that deals images out to four threads."""
    return 0.1 + -(-images // 4)


def test_a_batch_leaves_out_what_would_start_another_round():
    five, six = [Item(1)] * 5, [Item(2)] * 3
    assert economical(five, 4, by_rounds) == five[:4]
    assert economical(six, 4, by_rounds) == six[:2]
    # None within a round of these is cheaper, or not by enough.
    for whole in ([Item(1)] * 4, [Item(1)] * 3, [Item(5)], [Item(1)] * 47):
        assert economical(whole, 4, by_rounds) == whole
    assert economical(five, 4, lambda images: 20.0 + images / 4) == five
    assert economical(five, 1, by_rounds) == five


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 9))
def test_a_cheaper_batch_is_a_prefix_and_costs_no_more(sizes, threads):
    chosen = [Item(size) for size in sizes]

    def seconds(images):
        return 0.01 + -(-images // threads)

    def each(batch):
        images = sum(item.size for item in batch)
        return seconds(images) / images

    batch = economical(chosen, threads, seconds)
    assert batch == chosen[: len(batch)] != []
    assert each(batch) <= each(chosen)
    assert sum(sizes) - sum(item.size for item in batch) < threads
