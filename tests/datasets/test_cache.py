"""Decoded images in a memory-mapped file: the same pixels, found again, and never half a file."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from convserve import datasets
from convserve.datasets import Selection
from convserve.datasets import cache as cache_module
from convserve.datasets import decode as decode_module
from convserve.datasets import folder as folder_module
from convserve.errors import DatasetError
from convserve.training import TrainConfig
from convserve.training.batches import Batches

CLASSES = ("cat", "dog")


@pytest.fixture(params=[(9, 8), (9, 8, 3)], ids=["grey", "colour"])
def photos(request, tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 7), ("test", 3)):
        for name in CLASSES:
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, request.param, np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "photos"


def load(photos, **options):
    return datasets.load(f"folder:{photos}", **{"cache": photos.parent / "cache", **options})


def files(photos):
    return sorted(path.suffix for path in (photos.parent / "cache").iterdir())


def spoil(photos):
    for bad in ("train/cat/2.png", "train/dog/0.png", "test/dog/1.png"):
        (photos / bad).write_bytes(b"no image")


def forbid_decoding(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("decoded again")

    monkeypatch.setattr(cache_module, "decode", refuse)


def test_a_cached_folder_is_the_folder(photos, monkeypatch):
    plain, cached = load(photos, cache=False), load(photos)
    assert files(photos) == [".json", ".npy"]
    forbid_decoding(monkeypatch)
    for data in (cached, load(photos)):
        for part in ("train", "test"):
            kept, wanted = getattr(data, part), getattr(plain, part)
            assert isinstance(kept.x, np.memmap) and not kept.x.flags.writeable
            assert (kept.x == wanted.x).all() and (kept.y == wanted.y).all()
            assert kept.crc32() == wanted.crc32()
        assert data.preprocessing == plain.preprocessing
        (path,) = (photos.parent / "cache").glob("photos-*.npy")
        assert any(str(path) in note for note in data.notes)
    assert np.load(path).shape == (20, data.input_shape[0], 9, 8)


def test_held_out_images_of_a_cached_folder_are_not_copied(photos):
    plain, cached = (load(photos, cache=c, validation=0.3) for c in (False, photos.parent / "c"))
    assert isinstance(cached.train.x, Selection) and isinstance(cached.validation.x, Selection)
    assert cached.train.x.shape == plain.train.x.shape
    assert cached.preprocessing == plain.preprocessing
    assert cached.train.crc32() == plain.train.crc32()
    assert (np.asarray(cached.validation.x) == plain.validation.x).all()
    assert (cached.train.take(np.array([3, 1])).x[:] == plain.train.x[[3, 1]]).all()
    config = TrainConfig(batch_size=4, rotation=10.0, mixup=0.3)
    made = [
        [(x.tobytes(), t.tobytes()) for x, t in batches.epoch(1)]
        for batches in (Batches(d.train, 2, config, d.preprocessing) for d in (plain, cached))
    ]
    assert made[0] == made[1]


def test_a_changed_folder_is_decoded_again_and_the_old_state_removed(photos):
    load(photos)
    (before,) = (photos.parent / "cache").glob("*.npy")
    load(photos, image_size=(4, 4))
    assert len(files(photos)) == 4  # another size is kept beside it
    image = np.full((9, 8, 3), 200, np.uint8)
    Image.fromarray(image).save(photos / "train" / "cat" / "0.png")
    assert (load(photos).train.x[0] == 200).all()
    assert len(files(photos)) == 4 and not before.exists()


def test_bad_files_stop_everything_and_leave_no_cache(photos):
    spoil(photos)
    with pytest.raises(DatasetError, match=r"3 of 20 images can't be read.*cat/2.png.*dog/0.png"):
        load(photos)
    assert files(photos) == []


@pytest.mark.parametrize("cached", [False, True])
def test_bad_files_can_be_skipped(photos, cached, monkeypatch):
    whole = load(photos, cache=False)
    spoil(photos)
    options = {} if cached else {"cache": False}
    data = load(photos, skip_bad_files=True, **options)
    if cached:
        forbid_decoding(monkeypatch)
        data = load(photos, skip_bad_files=True)
        with pytest.raises(DatasetError, match="3 of 20 images can't be read"):
            load(photos)
    rows = np.delete(np.arange(14), [2, 7])
    assert (data.train.x == whole.train.x[rows]).all() and (data.train.y == rows // 7).all()
    assert (data.test.x == whole.test.x[[0, 1, 2, 3, 5]]).all()
    assert data.test.y.tolist() == [0, 0, 0, 1, 1]
    assert any(note.startswith("skipped: 3 of 20 images") for note in data.notes)


def test_nothing_but_bad_files_is_an_error_even_when_they_are_skipped(photos):
    for path in photos.rglob("*.png"):
        path.write_bytes(b"")
    for options in ({}, {"cache": False}):
        with pytest.raises(DatasetError, match="20 of 20 images can't be read"):
            load(photos, image_size=(4, 4), skip_bad_files=True, **options)


def test_a_file_that_vanishes_is_listed(photos, monkeypatch):
    (photos / "train" / "dog" / "3.png").unlink()
    (photos / "train" / "dog" / "3.png").symlink_to(photos / "nowhere.png")
    with pytest.raises(DatasetError, match=r"1 of 20 .*dog/3.png: No such file"):
        load(photos)


def test_worker_processes_decode_as_threads_do(photos, monkeypatch):
    spoil(photos)
    wanted = load(photos, cache=False, skip_bad_files=True)
    monkeypatch.setattr(decode_module, "WORKERS_FROM", 1)
    monkeypatch.setattr(decode_module, "FILES_PER_TASK", 3)
    data = load(photos, skip_bad_files=True)
    assert (data.train.x == wanted.train.x).all() and (data.test.x == wanted.test.x).all()
    assert sorted(data.notes)[-1] == sorted(wanted.notes)[-1]


def test_a_worker_that_dies_is_an_error(photos, monkeypatch):
    monkeypatch.setattr(decode_module, "WORKERS_FROM", 1)
    monkeypatch.setattr(decode_module.sys, "executable", shutil.which("false"))
    with pytest.raises(DatasetError, match=r"ended with status 1, at one .*train/cat/0.png"):
        load(photos)
    assert files(photos) == []


def test_a_full_disk_is_found_before_anything_is_written(photos, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DatasetError, match=r"0.0 MB are needed .* free: No space left on device"):
        load(photos)
    assert files(photos) == []


def test_a_disk_is_not_filled_to_find_that_it_is_too_small(photos, monkeypatch):
    taken = []
    disk = SimpleNamespace(f_blocks=9, f_bavail=3, f_frsize=1000)
    monkeypatch.setattr(os, "posix_fallocate", lambda *arguments: taken.append(arguments))
    monkeypatch.setattr(os, "fstatvfs", lambda file: disk)
    with pytest.raises(DatasetError, match=r"MB are needed .* 0.0 MB are free: No space left"):
        load(photos, image_size=(4096, 4096))
    assert taken == [] and files(photos) == []


def test_a_disk_that_does_not_say_how_large_it_is(photos, monkeypatch):
    """As a tmpfs without a limit."""
    disk = SimpleNamespace(f_blocks=0, f_bavail=0, f_frsize=4096)
    monkeypatch.setattr(os, "fstatvfs", lambda file: disk)
    assert len(load(photos).train) == 7 * len(CLASSES)


def test_a_place_that_can_not_be_written_to(photos):
    (photos.parent / "taken").write_text("a file")
    with pytest.raises(DatasetError, match=r"can't be kept there: .*--cache DIR, --no-cache"):
        load(photos, cache=photos.parent / "taken")


def test_an_interrupt_leaves_nothing(photos, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache_module, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(photos)
    assert files(photos) == []


def test_what_killed_runs_left_is_removed_but_not_what_others_write(photos):
    folder = photos.parent / "cache"
    folder.mkdir()
    left, held, new = (folder / f"{name}.tmp" for name in ("left", "held", "new"))
    for path in (left, held, new):
        path.write_bytes(b"")
    for path in (left, held):
        os.utime(path, (0, 0))
    with held.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        load(photos)
    assert [path.exists() for path in (left, held, new)] == [False, True, True]


@pytest.mark.parametrize("damage", ["short", "no array", "other shape", "no description"])
def test_a_damaged_cache_is_made_again(photos, damage):
    wanted = np.array(load(photos).train.x)
    (path,) = (photos.parent / "cache").glob("*.npy")
    if damage == "short":
        with path.open("r+b") as file:
            file.truncate(200)
    elif damage == "no array":
        path.write_bytes(b"?" * 300)
    elif damage == "other shape":
        np.save(path, np.zeros((2, 3, 4, 4), np.uint8))
    else:
        path.with_suffix(".json").write_text("[]")
    assert (load(photos).train.x == wanted).all()


def test_the_users_cache_folder_is_taken_for_many_images(photos, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(photos.parent / "xdg"))
    assert not isinstance(load(photos, cache=None).train.x, np.memmap)
    monkeypatch.setattr(folder_module, "CACHE_FROM", 100)
    assert isinstance(load(photos, cache=None).train.x, np.memmap)
    (told,) = (photos.parent / "xdg" / "convserve").glob("photos-*.json")
    assert json.loads(told.read_text())["folder"] == str(photos)
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(photos.parent / "home"))
    assert cache_module.default_cache() == photos.parent / "home" / ".cache" / "convserve"


@pytest.mark.parametrize("option", [{"cache": True}, {"cache": "here"}, {"skip_bad_files": True}])
def test_only_folders_have_a_cache(option):
    with pytest.raises(DatasetError, match="can only be set for folder:DIR"):
        datasets.load(None, **option)
