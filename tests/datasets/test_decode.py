"""Decoding that is given up."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from convserve.datasets import decode as decoding
from convserve.preprocessing import Preprocessing


@pytest.mark.parametrize("workers_from", [1, 10**6], ids=["workers", "threads"])
def test_an_interrupt_while_tasks_are_handed_out_ends_those_that_were(
    tmp_path, monkeypatch, workers_from
):
    path = tmp_path / "white.png"
    Image.new("L", (4, 4), 255).save(path)
    handed = 0

    class Pool(ThreadPoolExecutor):
        """Its tasks wait until no more are handed out."""

        begin = threading.Event()

        def submit(self, task, /, *args):
            nonlocal handed
            handed += 1
            if handed == 2:
                raise KeyboardInterrupt
            return super().submit(lambda: (self.begin.wait(), task(*args))[1])

        def shutdown(self, *args, **kwargs):
            self.begin.set()
            super().shutdown(*args, **kwargs)

    monkeypatch.setattr(decoding, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(decoding, "WORKERS_FROM", workers_from)
    monkeypatch.setattr(decoding, "usable_cores", lambda: 2)
    paths = [str(path)] * (2 * decoding.FILES_PER_TASK)
    wanted = Preprocessing(4, 4, "rgb", (0.0,) * 3, (1.0,) * 3)
    pixels = np.memmap(tmp_path / "pixels", np.uint8, "w+", shape=(len(paths), 3, 4, 4))
    with pytest.raises(KeyboardInterrupt):
        decoding.decode(paths, wanted, pixels)
    assert not pixels.any()


def test_a_worker_whose_parent_was_killed_ends_without_a_word(tmp_path):
    path, file = tmp_path / "white.png", tmp_path / "pixels"
    Image.new("L", (4, 4), 255).save(path)
    file.write_bytes(bytes(3 * 16))
    wanted = Preprocessing(4, 4, "rgb", (0.0,) * 3, (1.0,) * 3)
    told = {
        "file": str(file), "offset": 0, "shape": [1, 3, 4, 4], "one_size": False,
        "preprocessing": wanted.to_dict(),
    }  # fmt: skip
    worker = subprocess.Popen(
        [sys.executable, "-m", "convserve.datasets.decode_worker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    worker.stdout.close()
    _, said = worker.communicate(f"{json.dumps(told)}\n{json.dumps([0, [str(path)]])}\n")
    assert (worker.returncode, said) == (1, "")
    assert file.read_bytes() == bytes([255]) * 48
