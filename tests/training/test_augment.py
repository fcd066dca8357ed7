"""Augmentation against loops, its draws against their distributions, and what it may depend on."""

from __future__ import annotations

from math import floor
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convserve.errors import ShapeError, TrainingError
from convserve.kernels._augment import augment
from convserve.preprocessing import Preprocessing
from convserve.training import TrainConfig
from convserve.training.augment import AugmentConfig, Augmenter, batch
from convserve.training.augment.batch import LUMA
from convserve.training.augment.draws import Draws
from convserve.training.augment.geometry import crop_boxes, cutout_boxes, make_maps

COLOURS = {1: "grey", 3: "rgb"}
EVERYTHING = {
    "flip": "random", "crop_scale": 0.3, "rotation": 20.0, "zoom": 0.2, "shift": 2,
    "brightness": 0.4, "contrast": 0.5, "cutout": 3, "mixup": 0.4, "label_smoothing": 0.1,
}  # fmt: skip
NONE = AugmentConfig(shift=0)


def images(count, channels=3, height=6, width=5, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, channels, height, width), np.uint8)


def preprocessing_for(x, colour=None):
    _, channels, height, width = x.shape
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.25, 0.3)[:channels]
    return Preprocessing(height, width, colour or COLOURS[channels], mean, std)


def mirror(place, size):
    """numpy.pad's mode "reflect", one step at a time."""
    while size > 1 and not 0 <= place <= size - 1:
        place = -place if place < 0 else 2 * (size - 1) - place
    return place if size > 1 else 0


def reference(image, map_, preprocessing, photometry=(1.0, 1.0), box=None, reflect=False):
    """One image by loops in float64, with the kernel's meaning."""
    _, height, width = image.shape
    luma = np.array(LUMA[preprocessing.colour])
    bright = np.clip(image * photometry[0], 0, 255)
    grey = float(luma @ bright.mean(axis=(1, 2)))
    pixels = np.clip(bright * photometry[1] + (1 - photometry[1]) * grey, 0, 255)
    out = np.zeros(image.shape)

    def pixel(c, row, column):
        if reflect:
            row, column = mirror(row, height), mirror(column, width)
        inside = 0 <= row < height and 0 <= column < width
        return pixels[c, row, column] if inside else 0.0

    for c, i, j in np.ndindex(*image.shape):
        x = map_[0] * j + map_[1] * i + map_[2]
        y = map_[3] * j + map_[4] * i + map_[5]
        column, row = floor(x), floor(y)
        dx, dy = x - column, y - row
        above = (1 - dx) * pixel(c, row, column) + dx * pixel(c, row, column + 1)
        below = (1 - dx) * pixel(c, row + 1, column) + dx * pixel(c, row + 1, column + 1)
        value = (1 - dy) * above + dy * below
        out[c, i, j] = (value / 255 - preprocessing.mean[c]) / preprocessing.std[c]
    if box is not None:
        out[:, box[0] : box[2], box[1] : box[3]] = 0
    return out


def run_kernel(x, rows, maps, **options):
    p = preprocessing_for(x)
    out = np.full((len(rows), *x.shape[1:]), np.nan, np.float32)
    luma = np.array(LUMA[p.colour])
    augment(x, rows, maps, p.table(), p.factor, p.shift, luma, out, **options)
    return out


@pytest.mark.parametrize("reflect", [False, True])
@pytest.mark.parametrize("shape", [(3, 6, 5), (1, 4, 9), (1, 1, 3), (3, 7, 1)])
def test_the_kernel_equals_loops(shape, reflect):
    rng = np.random.default_rng(1)
    count = 12
    x = rng.integers(0, 256, (5, *shape), np.uint8)
    rows = rng.integers(0, 5, count)
    maps = rng.normal(0, 0.5, (count, 6)) + np.array([1, 0, 0, 0, 1, 0])
    maps[:, [2, 5]] = rng.uniform(-9, 9, (count, 2))  # far outside, too
    maps[:4] = [[1, 0, 2, 0, 1, -1], [-1, 0, shape[2] - 1, 0, 1, 0], [1, 0, -20, 0, 1, 30],
                [1, 0, 0, 0, 1, 0]]  # fmt: skip
    photometry = rng.uniform(0.5, 1.6, (count, 2))
    boxes = np.sort(rng.integers(0, 5, (count, 2, 2)), axis=1).reshape(count, 4).astype(np.int32)
    boxes = np.minimum(boxes, [shape[1], shape[2]] * 2).astype(np.int32)
    out = run_kernel(x, rows, maps, photometry=photometry, boxes=boxes, reflect=reflect)
    for i in range(count):
        expected = reference(
            x[rows[i]], maps[i], preprocessing_for(x), photometry[i], boxes[i], reflect
        )
        np.testing.assert_allclose(out[i], expected, atol=2e-5, err_msg=f"image {i}: {maps[i]}")


def test_without_augmentation_the_bits_are_those_of_normalise():
    x = images(9)
    p = preprocessing_for(x)
    out, targets = batch(x, np.arange(9) % 3, np.arange(9), 1, NONE, p)
    assert out.tobytes() == p.normalise(x).tobytes()
    assert (targets == np.eye(3, dtype=np.float32)[np.arange(9) % 3]).all()


def test_strided_and_read_only_images():
    x = images(8)
    p = preprocessing_for(x[:, :1])
    wanted = p.normalise(x[::2, :1, ::-1])
    view = x[::2, :1, ::-1]
    view.flags.writeable = False
    assert (batch(view, np.zeros(4, int), np.arange(4), 1, NONE, p)[0] == wanted).all()
    turned = x[:, :1].transpose(0, 1, 3, 2)
    p = preprocessing_for(turned)
    assert (
        batch(turned, np.zeros(8, int), np.arange(8), 1, NONE, p)[0] == p.normalise(turned)
    ).all()


@pytest.mark.parametrize("reflect", [False, True])
@pytest.mark.parametrize("shape", [(3, 6, 5), (1, 5, 37)])
def test_maps_of_whole_pixels_equal_loops_to_the_bit(shape, reflect):
    """Moved and mirrored by any distance, within the image, over its edges and beyond them."""
    rng = np.random.default_rng(1)
    x, width = rng.integers(0, 256, (4, *shape), np.uint8), shape[2]
    p = preprocessing_for(x)
    moves = [0, 1, -1, 3, -3, width, -width, 2 * width, -3 * width, 400, -400]
    maps = [
        [side, 0, move + (width - 1 if side < 0 else 0), 0, 1, down]
        for side in (1, -1) for move in moves for down in (0, 2, -1, 50)
    ]  # fmt: skip
    rows = rng.integers(0, 4, len(maps))
    out = run_kernel(x, rows, np.array(maps, float), reflect=reflect)
    pad = 410
    mode = "reflect" if reflect else "constant"
    for i, (side, _, right, _, _, down) in enumerate(maps):
        around = np.pad(x[rows[i]], ((0, 0), (pad, pad), (pad, pad)), mode)
        columns = pad + side * np.arange(width) + right
        moved = around[:, pad + down + np.arange(shape[1])][:, :, columns]
        assert out[i].tobytes() == p.normalise(moved[None])[0].tobytes(), maps[i]


@pytest.mark.parametrize("fault", [{"rows": [0, 5]}, {"rows": [-1, 0]}, {"maps": np.nan}])
def test_the_kernel_refuses_what_would_read_elsewhere(fault):
    rows = np.array(fault.get("rows", [0, 1]))
    maps = np.zeros((2, 6)) + fault.get("maps", 1.0)
    with pytest.raises(ShapeError, match="must be"):
        run_kernel(images(5), rows, maps)


def test_the_kernel_refuses_arrays_that_do_not_fit():
    with pytest.raises(ShapeError, match=r"maps must be float64 \(2, 6\), got float64 \(3, 6\)"):
        run_kernel(images(5), np.array([0, 1]), np.zeros((3, 6)))


@given(
    st.builds(
        lambda **settings: settings,
        flip=st.sampled_from(["none", "random", "alternating"]),
        crop_scale=st.sampled_from([0.1, 0.5, 1.0]),
        rotation=st.sampled_from([0, 15, 180]),
        zoom=st.sampled_from([0.0, 0.3]),
        shift=st.integers(0, 9),
        padding_mode=st.sampled_from(["zeros", "reflect"]),
        brightness=st.sampled_from([0.0, 0.9]),
        contrast=st.sampled_from([0.0, 0.9]),
        cutout=st.integers(0, 20),
        mixup=st.sampled_from([0.0, 0.2, 1.0]),
        label_smoothing=st.sampled_from([0.0, 0.2]),
        seed=st.integers(0, 2**70),
    ),
    st.integers(1, 9),
    st.sampled_from([(1, 6, 5), (3, 1, 4), (3, 8, 8)]),
)
def test_an_image_depends_on_seed_epoch_and_row_only(settings, epoch, shape):
    x, y = images(11, *shape), np.arange(11) % 4
    config, p = AugmentConfig(**settings), preprocessing_for(images(1, *shape))
    maker = Augmenter(x, y, 4, config, p)
    whole, targets = maker.batch(np.arange(11), epoch)
    order = np.random.default_rng(0).permutation(11)
    for rows in (order[:4], order[4:]):
        part, part_targets = maker.batch(rows, epoch)
        assert part.tobytes() == whole[rows].tobytes()
        assert part_targets.tobytes() == targets[rows].tobytes()
    low, high = p.normalise(np.array([0, 255], np.uint8).reshape(2, 1, 1, 1).repeat(shape[0], 1))
    assert (whole >= np.minimum(low, 0) - 1e-5).all() and (whole <= high + 1e-5).all()
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-5)
    assert (targets >= 0).all()


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 2}])
def test_other_seeds_and_epochs_give_other_images(change):
    x, y = images(20), np.arange(20) % 4
    epoch = change.pop("epoch", 1)
    p = preprocessing_for(x)
    first = batch(x, y, np.arange(20), 1, AugmentConfig(**EVERYTHING), p)[0]
    other = batch(x, y, np.arange(20), epoch, AugmentConfig(**EVERYTHING, **change), p)[0]
    assert all((a != b).any() for a, b in zip(first, other, strict=True))


def maps_of(count=4000, height=8, width=10, epoch=1, **settings):
    config = AugmentConfig(**{"shift": 0, **settings})
    return make_maps(Draws(config.seed, epoch, np.arange(count)), config, count, height, width)


def test_shift_moves_by_whole_pixels_equally_often():
    maps = maps_of(shift=2)
    assert (maps[:, [0, 1, 3, 4]] == [1, 0, 0, 1]).all()
    places, counts = np.unique(maps[:, [2, 5]], axis=0, return_counts=True)
    assert {tuple(p) for p in places} == {(x, y) for x in range(-2, 3) for y in range(-2, 3)}
    assert counts.min() > 110 and counts.max() < 210  # 160 each, deviation 12.5


def test_shift_right_moves_the_image_right():
    config = AugmentConfig(shift=1)
    dot = np.zeros((30, 1, 5, 5), np.uint8)
    dot[:, :, 2, 2] = 255
    out = batch(dot, np.zeros(30, int), np.arange(30), 1, config, preprocessing_for(dot))[0]
    draws = Draws(0, 1, np.arange(30))
    rows = 2 + draws.integers("shift down", -1, 1)
    columns = 2 + draws.integers("shift right", -1, 1)
    assert (out.reshape(30, 25).argmax(axis=1) == 5 * rows + columns).all()


def test_random_flip_mirrors_half_of_the_images_anew_each_epoch():
    first, second = (maps_of(flip="random", epoch=e)[:, 0] == -1 for e in (1, 2))
    assert 0.46 < first.mean() < 0.54
    assert 0.46 < (first ^ second).mean() < 0.54


def test_alternating_flip_shows_both_sides_of_every_image_in_two_epochs():
    mirrored = [maps_of(flip="alternating", epoch=e)[:, 0] == -1 for e in (1, 2, 3)]
    assert 0.46 < mirrored[0].mean() < 0.54
    assert (mirrored[0] != mirrored[1]).all()
    assert (mirrored[0] == mirrored[2]).all()


def test_flip_keeps_the_columns():
    x = images(50)
    p = preprocessing_for(x)
    config = AugmentConfig(shift=0, flip="random")
    out = batch(x, np.zeros(50, int), np.arange(50), 3, config, p)[0]
    plain = p.normalise(x)
    mirrored = maps_of(50, 6, 5, epoch=3, flip="random")[:, 0] == -1
    assert (out[mirrored] == plain[mirrored, ..., ::-1]).all()
    assert (out[~mirrored] == plain[~mirrored]).all()


def test_rotation_and_zoom_turn_about_the_centre():
    maps = maps_of(rotation=30, zoom=0.2)
    linear = maps.reshape(-1, 2, 3)[:, :, :2]
    scale = 1 / np.sqrt(np.linalg.det(linear))
    angle = np.rad2deg(np.arctan2(linear[:, 1, 0], linear[:, 0, 0]))
    for values, limit in ((scale - 1, 0.2), (angle, 30)):
        assert np.abs(values).max() <= limit + 1e-9
        assert abs(values.mean()) < 0.05 * limit
        assert abs(values.std() - limit / 3**0.5) < 0.03 * limit
    centre = np.array([4.5, 3.5, 1.0])
    np.testing.assert_allclose(maps.reshape(-1, 2, 3) @ centre, np.tile([4.5, 3.5], (4000, 1)))


def crop_by_loop(rng, scale, ratio, height, width):
    """Share of the area and logarithm of the aspect ratio, as torchvision documents them."""
    while True:
        area = height * width * rng.uniform(scale, 1)
        aspect = np.exp(rng.uniform(-np.log(ratio), np.log(ratio)))
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if w <= width and h <= height:
            return h * w / (height * width), np.log(w / h)


def test_crops_are_those_of_random_resized_crop():
    config = AugmentConfig(crop_scale=0.25, crop_ratio=4 / 3)
    count, height, width = 6000, 100, 120
    boxes = crop_boxes(Draws(0, 1, np.arange(count)), config, count, height, width)
    top, left, bottom, right = boxes.T
    assert (boxes >= 0).all() and (bottom <= height).all() and (right <= width).all()
    h, w = bottom - top, right - left
    area, ratio = h * w / (height * width), np.log(w / h)
    assert 0.24 < area.min() < 0.26 and area.max() > 0.95
    assert abs(ratio).max() < np.log(4 / 3) + 0.02
    rng = np.random.default_rng(0)
    wanted = np.array([crop_by_loop(rng, 0.25, 4 / 3, height, width) for _ in range(count)])
    for got, expected in ((area, wanted[:, 0]), (ratio, wanted[:, 1])):
        for q in (0.1, 0.25, 0.5, 0.75, 0.9):
            assert abs(np.quantile(got, q) - np.quantile(expected, q)) < 0.02
    loose = h < 60
    assert 0.45 < (top[loose] / (height - h[loose])).mean() < 0.55


def test_a_crop_that_never_fits_is_central():
    config = AugmentConfig(crop_scale=0.99, crop_ratio=1.0)
    boxes = crop_boxes(Draws(0, 1, np.arange(5)), config, 5, 10, 40)
    assert (boxes == [0, 15, 10, 25]).all()


def test_a_crop_is_stretched_to_the_whole():
    maps = maps_of(crop_scale=0.25, height=8, width=8)
    corners = maps.reshape(-1, 2, 3) @ np.array([[-0.5, 7.5], [-0.5, 7.5], [1, 1]])
    config = AugmentConfig(crop_scale=0.25)
    boxes = crop_boxes(Draws(0, 1, np.arange(4000)), config, 4000, 8, 8)
    np.testing.assert_allclose(corners[:, :, 0], boxes[:, [1, 0]] - 0.5, atol=1e-12)
    np.testing.assert_allclose(corners[:, :, 1], boxes[:, [3, 2]] - 0.5, atol=1e-12)


def test_cutout_is_centred_anywhere_and_clipped():
    boxes = cutout_boxes(Draws(0, 1, np.arange(4000)), 4, 8, 10)
    top, left, bottom, right = boxes.T
    assert set(top) == set(range(6)) and set(bottom) == set(range(2, 9))
    assert set(left) == set(range(8)) and set(right) == set(range(2, 11))
    x = images(200, 1, 8, 10) | 1
    config = AugmentConfig(shift=0, cutout=4)
    p = Preprocessing(8, 10, "grey", (0.0,), (1.0,))
    out = batch(x, np.zeros(200, int), np.arange(200), 1, config, p)[0]
    erased = (out == 0).sum(axis=(1, 2, 3))
    assert (erased == ((bottom - top) * (right - left))[:200]).all()


def test_mixup_mixes_images_and_targets_by_one_share():
    x = np.zeros((300, 1, 2, 2), np.uint8)
    y = np.arange(300) % 2
    x[y == 1] = 255
    p = Preprocessing(2, 2, "grey", (0.0,), (1.0,))
    out, targets = batch(x, y, np.arange(300), 1, AugmentConfig(shift=0, mixup=1.0), p)
    np.testing.assert_allclose(out[:, 0, 0, 0], targets[:, 1], atol=1e-6)
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
    assert 0.35 < ((targets > 0.02) & (targets < 0.98)).all(axis=1).mean() < 0.6


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 3.0])
def test_beta_draws_have_the_moments_of_beta(alpha):
    values = Draws(3, 1, np.arange(40_000)).beta("share", alpha)
    expected = np.random.default_rng(0).beta(alpha, alpha, 400_000)
    for q in (0.01, 0.1, 0.3, 0.5, 0.8, 0.99):
        got, wanted = np.quantile(values, q), np.quantile(expected, q)
        assert abs((expected < got).mean() - q) < 0.01 or abs(got - wanted) < 0.005
    assert abs(values.mean() - 0.5) < 0.01
    assert abs(values.var() - 1 / (4 * (2 * alpha + 1))) < 0.005


def test_draws_are_splitmix64_of_seed_epoch_stream_and_row():
    """By Python's integers: stored runs and figures rest on these numbers."""
    mask = 2**64 - 1

    def mix(z):
        z = (z + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    def number(seed, epoch, name, row):
        folded = 0
        while seed:
            folded, seed = mix(folded ^ (seed & mask)), seed >> 64
        key = mix(mix(mix(folded) ^ epoch) ^ crc32(name.encode()))
        # `mix` adds the constant that the row has once more
        return (mix((row - 1) * 0x9E3779B97F4A7C15 + key) >> 11) * 2.0**-53

    rows = np.array([0, 1, 7, 10**9])
    for seed in (0, 5, 2**70 + 3):
        draws = Draws(seed, 3, rows)
        expected = np.array([number(seed, 3, "name", int(row)) for row in rows])
        assert (draws.uniform("name") == expected).all()
        assert (draws.uniform("name", -2.0, 6.0) == -2.0 + 8.0 * expected).all()
        assert (draws.integers("name", -3, 3) == -3 + np.floor(7 * expected)).all()
        assert (draws.integers("name", -3, np.full(4, 3)) == draws.integers("name", -3, 3)).all()


def test_draws_are_uniform_and_streams_independent():
    draws = Draws(0, 1, np.arange(50_000))
    a, b = draws.uniform("a"), draws.uniform("b")
    later = Draws(0, 2, np.arange(50_000)).uniform("a")
    for values in (a, b, later):
        assert values.min() >= 0 and values.max() < 1
        counts = np.histogram(values, 50, (0, 1))[0]
        assert ((counts - 1000) ** 2 / 1000).sum() < 90  # chi-squared, 49 degrees: 1 in 3000
    for first, second in ((a, b), (a, later), (a[1:], a[:-1])):
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.015
    assert set(draws.integers("c", -1, 1)) == {-1, 0, 1}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"flip": "sometimes"}, "flip must be one of none, random, alternating"),
        ({"padding_mode": "wrap"}, "padding_mode must be one of zeros, reflect"),
        ({"crop_scale": 0.0}, "crop_scale must be above 0"),
        ({"crop_scale": 1.5}, "crop_scale must be above 0 and at most 1, not 1.5"),
        ({"crop_ratio": 0.5}, "crop_ratio must be at least 1"),
        ({"rotation": 181}, "rotation must be at most 180"),
        ({"zoom": 1.0}, "zoom must be at least 0 and below 1"),
        ({"brightness": -0.1}, "brightness must be at least 0"),
        ({"contrast": float("nan")}, "contrast must be at least 0"),
        ({"cutout": -1}, "cutout must be at least 0"),
        ({"mixup": -1.0}, "mixup must be at least 0"),
        ({"shift": -1}, "shift must be at least 0"),
    ],
)
def test_settings_are_checked(setting, message):
    with pytest.raises(TrainingError, match=message):
        TrainConfig(**setting)


def test_a_bool_is_no_flip():
    with pytest.raises(TypeError, match="flip must be a string, not True"):
        TrainConfig(flip=True)
