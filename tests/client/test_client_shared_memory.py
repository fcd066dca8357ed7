"""Tensors by shared memory: the same answers, nothing left behind, no memory used twice at once."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convserve_client import Client, errors
from convserve_client._shared_memory import Region, Regions

SHAPE = (3, 64, 64)  # 48 KiB an image
SEGMENTS = Path("/dev/shm")

pytestmark = pytest.mark.skipif(not SEGMENTS.is_dir(), reason="no /dev/shm to look into")


@pytest.fixture
def server(server: Any) -> Any:
    server.models["toy"] = server.Model(shape=SHAPE, outputs=("copy", "output"), max_batch_size=4)
    return server


@pytest.fixture
def client(connect: Any, server: Any) -> Any:
    return connect(server.address, shared_memory=True)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Any:
    before = {*SEGMENTS.iterdir()}
    yield
    assert {*SEGMENTS.iterdir()} <= before


def names(server: Any) -> list[str]:
    return list(server.regions)


@pytest.mark.parametrize("count", [1, 4, 5, 70])
def test_answers_are_the_same(client: Any, server: Any, count: int) -> None:
    x = server.images(count, shape=SHAPE)
    answer = client.predict(x)
    np.testing.assert_array_equal(answer["copy"], x)
    np.testing.assert_array_equal(answer["output"], server.scores_of(x))
    assert all(not request.raw_input_contents for request in server.requests)
    assert all("shared_memory_region" in r.outputs[0].parameters for r in server.requests)
    client.close()
    assert server.regions == {}


def test_only_what_is_asked_for_comes_back(client: Any, server: Any) -> None:
    x = server.images(2, shape=SHAPE)
    assert list(client.predict(x, outputs=["output"])) == ["output"]
    assert not server.requests[-1].outputs[0].parameters  # small: in the message
    client.close()


@pytest.mark.parametrize("dtype", [np.uint8, np.dtype(">f4")])
def test_other_dtypes_and_layouts(client: Any, server: Any, dtype: Any) -> None:
    server.models["toy"] = server.Model(shape=SHAPE)
    x = (server.images(4, shape=SHAPE) * 255).astype(dtype)[::2, :, ::-1]
    if dtype == np.uint8:
        np.testing.assert_array_equal(client.predict(x), server.scores_of(x))
    else:
        with pytest.raises(TypeError, match="float32"):
            client.predict(x)
    client.close()


def test_regions_are_used_again(client: Any, server: Any) -> None:
    for seed in range(5):
        x = server.images(4, seed, SHAPE)
        np.testing.assert_array_equal(client.predict(x)["copy"], x)
    assert server.calls.count("SystemSharedMemoryRegister") == 1
    client.close()


def test_small_tensors_and_files_travel_in_the_message(client: Any, server: Any) -> None:
    server.models["toy"] = server.Model()
    np.testing.assert_array_equal(
        client.predict(server.images(4)), server.scores_of(server.images(4))
    )
    assert client.classify([b"abc"])[0][0] == ("sum", 100.0)
    assert "SystemSharedMemoryRegister" not in server.calls
    client.close()


def test_predict_many(client: Any, server: Any) -> None:
    x = server.images(23, shape=SHAPE)
    results = list(client.predict_many(iter(x), batch=3, in_flight=4))
    np.testing.assert_array_equal(np.stack([result["copy"] for result in results]), x)
    assert server.calls.count("SystemSharedMemoryRegister") == 4
    client.close()
    assert server.regions == {}


def test_a_server_that_was_started_anew(client: Any, server: Any) -> None:
    x = server.images(3, shape=SHAPE)
    client.predict(x)
    server.lose_regions()
    np.testing.assert_array_equal(client.predict(x)["copy"], x)
    client.close()


def test_memory_of_a_lost_call_is_not_used_again(client: Any, server: Any) -> None:
    x = server.images(1, shape=SHAPE)
    client.predict(x)
    (first,) = names(server)
    server.hold = threading.Event()
    with pytest.raises(errors.DeadlineExceededError):
        client.predict(x, timeout=0.2)
    hold, server.hold = server.hold, None
    y = server.images(1, 1, SHAPE)
    np.testing.assert_array_equal(client.predict(y)["copy"], y)
    assert first not in names(server)
    hold.set()
    client.close()


def test_threads_have_memory_of_their_own(server: Any) -> None:
    wrong: list[int] = []
    with Client(server.address, shared_memory=True) as client:

        def work(seed: int) -> None:
            for turn in range(5):
                x = server.images(2, 100 * seed + turn, SHAPE)
                if not np.array_equal(client.predict(x)["copy"], x):
                    wrong.append(seed)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert server.regions == {}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # forking beside threads
@pytest.mark.parametrize("ends", ["first", "last"])
def test_a_forks_child_has_memory_of_its_own(ends: str) -> None:
    regions, region = Regions(), Region(1 << 16)
    regions.registered(region)
    regions.give_back([region])
    child = os.fork()
    if child == 0:
        status = 1
        with suppress(BaseException):
            if ends == "first":
                region._unlink()  # as at the end of a process
            if regions.take(1, 1) == [] == regions.take_abandoned():
                regions.close()
                status = len(regions.take_abandoned())
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert (SEGMENTS / region.name).exists()
    assert regions.take(1, 1) == [region]
    regions.discard([region])


def test_a_server_without_it_says_so(client: Any, server: Any) -> None:
    server.missing = {"SystemSharedMemoryRegister"}
    with pytest.raises(errors.UnimplementedError):
        client.predict(server.images(1, shape=SHAPE))
    client.close()


@pytest.mark.parametrize("address", ["10.0.0.1:8001", ["localhost:1", "localhost:2"]])
def test_it_is_for_one_local_server(address: Any) -> None:
    with pytest.raises(ValueError, match="one server on this machine"):
        Client(address, shared_memory=True)


def test_arrays_travel_in_messages_where_there_is_no_room(
    client: Any, server: Any, monkeypatch: Any, caplog: Any
) -> None:
    """Writing to memory that the system can't give would end the process."""

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    x = server.images(9, shape=SHAPE)
    np.testing.assert_array_equal(client.predict(x)["copy"], x)
    answers = client.predict_many(iter(x), batch=2, in_flight=3)
    np.testing.assert_array_equal([answer["copy"] for answer in answers], x)
    assert all(request.raw_input_contents for request in server.requests)
    assert server.regions == {}
    assert [r.getMessage() for r in caplog.records].count(
        "tensors travel in messages: no shared memory is to be had: "
        "[Errno 28] No space left on device"
    ) == 1
