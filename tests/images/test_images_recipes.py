"""Resize, crop, colour, scale: our pixels against Pillow and NumPy, worked out by hand."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convserve.engine.model import Model
from convserve.errors import ImageError, ShapeError, UnknownNameError
from convserve.graph import Graph, layers
from convserve.images import to_pixels
from convserve.model_file import ModelFile, load, save
from convserve.preprocessing import INTERPOLATIONS, Preprocessing
from convserve.presets import PRESETS, preprocessing_for

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng((width, height))
    small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def recipe(**changes: Any) -> Preprocessing:
    return Preprocessing(**{
        "height": 24, "width": 24, "colour": "rgb", "mean": MEAN, "std": STD, **changes,
    })  # fmt: skip


def by_hand(picture: Image.Image, to: tuple[int, int], box: tuple[int, ...], how: str) -> Any:
    resized = picture.resize(to, getattr(Image.Resampling, how.upper()))
    return np.asarray(resized.crop(box)).transpose(2, 0, 1)


@pytest.mark.parametrize("how", INTERPOLATIONS)
def test_every_interpolation(how: str) -> None:
    picture = photo(61, 47)
    found = to_pixels(picture, recipe(interpolation=how, resize=32))
    # 32 · 61 / 47 = 41.5, of which 24 are cropped from 8.5, rounded to the even 8
    np.testing.assert_array_equal(found, by_hand(picture, (41, 32), (8, 4, 32, 28), how))


@pytest.mark.parametrize(
    ("size", "to", "box"),
    [
        ((61, 47), (41, 32), (8, 4, 32, 28)),
        ((47, 61), (32, 41), (4, 8, 28, 32)),
        ((32, 32), (32, 32), (4, 4, 28, 28)),
        ((10, 90), (32, 288), (4, 132, 28, 156)),
    ],
)  # fmt: skip
def test_the_shorter_side(size: Any, to: Any, box: Any) -> None:
    picture = photo(*size)
    expected = by_hand(picture, to, box, "bilinear")
    np.testing.assert_array_equal(to_pixels(picture, recipe(resize=32)), expected)


def test_to_a_size_and_stretched() -> None:
    picture = photo(61, 47)
    found = to_pixels(picture, recipe(resize=(30, 40)))
    expected = by_hand(picture, (40, 30), (8, 3, 32, 27), "bilinear")
    np.testing.assert_array_equal(found, expected)
    expected = by_hand(picture, (24, 24), (0, 0, 24, 24), "bilinear")
    np.testing.assert_array_equal(to_pixels(picture, recipe()), expected)


def test_bgr_and_grey() -> None:
    picture = photo(61, 47)
    rgb, bgr = (to_pixels(picture, recipe(colour=colour)) for colour in ("rgb", "bgr"))
    np.testing.assert_array_equal(bgr, rgb[::-1])
    grey = to_pixels(picture, recipe(colour="grey", mean=(0.5,), std=(0.5,), resize=32))
    expected = picture.convert("L").resize((41, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(grey[0], np.asarray(expected.crop((8, 4, 32, 28))))


def test_exif_orientation_may_be_left_alone() -> None:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # turn right
    photo(24, 24).save(file, "PNG", exif=exif)
    turned, as_it_is = (to_pixels(file.getvalue(), recipe(exif=exif)) for exif in (True, False))
    np.testing.assert_array_equal(as_it_is, np.asarray(photo(24, 24)).transpose(2, 0, 1))
    np.testing.assert_array_equal(turned, np.rot90(as_it_is, -1, (1, 2)))


def test_a_strip_is_not_blown_up() -> None:
    strip = Image.new("RGB", (60_000, 1))
    with pytest.raises(ImageError, match="would be resized to 1920000 x 32"):
        to_pixels(strip, recipe(resize=32), max_pixels=1 << 20)


def test_scale_mean_and_std() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, axis=1)
    signed = recipe(mean=(1.0,) * 3, std=(1.0,) * 3, scale=1 / 127.5).normalise(pixels)
    assert (signed.min(), signed.max()) == (-1, 1)
    np.testing.assert_allclose(signed[0, 0].ravel(), np.arange(256) / 127.5 - 1, atol=1e-7)
    caffe = recipe(mean=(103.939, 116.779, 123.68), std=(1.0,) * 3, scale=1.0).normalise(pixels)
    np.testing.assert_allclose(caffe[0, 2].ravel(), np.arange(256) - 123.68, atol=1e-5)
    usual = recipe().normalise(pixels)
    expected = (np.arange(256) / 255 - 0.456) / 0.224
    np.testing.assert_allclose(usual[0, 1].ravel(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"resize": 23}, ShapeError, "too small to crop 24 × 24"),
        ({"resize": (23, 99)}, ShapeError, "too small"),
        ({"resize": (23,)}, ShapeError, "one side or"),
        ({"resize": 0}, ShapeError, "resize must be from 1"),
        ({"resize": 70_000}, ShapeError, "from 1 to 65535"),
        ({"resize": "a"}, TypeError, "resize must be an integer"),
        ({"exif": 1}, TypeError, "exif must be True or False"),
        ({"scale": 0}, ShapeError, "scale must be above 0"),
        ({"scale": float("nan")}, ShapeError, "finite"),
        ({"scale": "1"}, TypeError, "scale must"),
        ({"interpolation": "cubic"}, UnknownNameError, "hamming"),
    ],
)  # fmt: skip
def test_what_does_not_fit(changes: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        recipe(**changes)


def test_files_keep_it_and_old_ones_are_written_where_they_can_be(tmp_path: Any) -> None:
    graph = Graph((3, 24, 24))
    graph.add(layers.Affine(4), graph.add(layers.Flatten()))
    params = graph.initialise(0)
    full = recipe(
        resize=(30, 40), exif=False, scale=1.0, colour="bgr", interpolation="hamming",
    )  # fmt: skip
    for told in (full, recipe(resize=32), recipe()):
        assert Preprocessing.from_dict(told.to_dict()) == told
        save(tmp_path / "m.npz", ModelFile(graph, params, preprocessing=told))
        assert load(tmp_path / "m.npz").preprocessing == told
    assert recipe().is_basic and not recipe(resize=32).is_basic and not full.is_basic
    assert not recipe(interpolation="hamming").is_basic
    model = Model.from_file(ModelFile(graph, params, preprocessing=full))
    picture = photo(61, 47)
    resized = picture.resize((40, 30), Image.Resampling.HAMMING).crop((8, 3, 32, 27))
    x = np.asarray(resized).transpose(2, 0, 1)[None, ::-1].astype(np.float32)
    x = (x - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
    best = int(model.predict(x.astype(np.float32)).argmax())
    assert model.classify([picture], top_k=1)[0][0][0] == str(best)


def test_presets() -> None:
    found = preprocessing_for((3, 224, 224), "torchvision")
    assert found == Preprocessing(224, 224, "rgb", MEAN, STD, "bilinear", resize=256)
    assert preprocessing_for((3, 299, 299), "torchvision-inception").resize == 342
    assert preprocessing_for((3, 112, 112), "torchvision").resize == 128
    assert preprocessing_for((3, 224, 160), "torchvision").resize == 256
    assert preprocessing_for((3, 299, 260), "slim-inception").resize == (342, 297)
    assert preprocessing_for((3, 224, 224), "keras-caffe").colour == "bgr"
    changed = preprocessing_for((3, 64, 64), "keras-tf", {"interpolation": "box", "std": 0.5})
    assert (changed.interpolation, changed.std, changed.mean) == ("box", (0.5,) * 3, (1.0,) * 3)
    assert preprocessing_for((1, 28, 28)) == Preprocessing(28, 28, "grey", (0.0,), (1.0,))
    for preset in PRESETS:
        for shape in ((3, 224, 224), (3, 299, 260), (3, 7, 5)):
            made = preprocessing_for(shape, preset)
            assert to_pixels(photo(50, 40), made).shape == shape
    for args, words in (
        (((3, 8, 8), "resnet"), "unknown preset 'resnet'"),
        (((3, 8, 8), None, {"crop": 8}), "unknown option 'crop'"),
        (((1, 8, 8), "clip"), "for 3 channels"),
        (((9,), None), "for images"),
    ):
        with pytest.raises((ShapeError, UnknownNameError), match=words):
            preprocessing_for(*args)
