"""Folders of images: a folder a class, with and without a test set of their own."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from convserve import datasets
from convserve.datasets import folder as folder_module
from convserve.errors import DatasetError

rng = np.random.default_rng(0)
CLASSES = ("bird", "cat", "zebra fish")


def write_class(folder, pixels, suffix=".png"):
    folder.mkdir(parents=True)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i:03d}{suffix}")


def random_images(count, *shape):
    return rng.integers(0, 256, (count, *shape), np.uint8)


def write_tree(root, parts=("train", "test"), shape=(6, 5), suffix=".png"):
    pixels = {}
    for part in parts:
        for name in CLASSES:
            pixels[part, name] = random_images(4 if part == "train" else 2, *shape)
            write_class(root / part / name, pixels[part, name], suffix)
    return pixels


def test_grey_pngs_in_two_levels(tmp_path):
    pixels = write_tree(tmp_path)
    data = datasets.load(f"folder:{tmp_path}")
    assert data.labels == CLASSES
    assert data.preprocessing.colour == "grey"
    assert (data.train.x[:, 0] == np.concatenate([pixels["train", c] for c in CLASSES])).all()
    assert (data.test.x[:, 0] == np.concatenate([pixels["test", c] for c in CLASSES])).all()
    assert data.train.y.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert data.notes[0] == "every image has 6×5 pixels"


def test_colour_pngs_in_one_level_with_validation(tmp_path):
    pixels = write_tree(tmp_path, parts=(".",), shape=(6, 5, 3))
    data = datasets.load(f"folder:{tmp_path}", validation=0.5)
    assert data.preprocessing.colour == "rgb"
    assert data.test is None
    assert (len(data.train), len(data.validation)) == (3, 3)
    first = pixels[".", "bird"].transpose(0, 3, 1, 2)
    assert {x.tobytes() for x in (*data.train.x[:1], *data.validation.x[:1])} == {
        x.tobytes() for x in first
    }


def test_one_image_with_colour_makes_all_rgb(tmp_path):
    write_tree(tmp_path)
    Image.fromarray(random_images(1, 6, 5, 3)[0]).save(tmp_path / "train" / "cat" / "colour.png")
    data = datasets.load(f"folder:{tmp_path}")
    assert data.train.x.shape == (13, 3, 6, 5)


def test_an_image_size_is_obeyed(tmp_path):
    write_tree(tmp_path, suffix=".bmp")
    data = datasets.load(f"folder:{tmp_path}", image_size=(8, 7))
    assert data.train.x.shape[2:] == (8, 7)
    assert data.notes[0] == "every image is brought to 8×7 pixels"


@pytest.mark.parametrize("cache", [True, False])
def test_images_of_several_sizes_need_to_be_told_what_to_become(tmp_path, cache):
    write_tree(tmp_path / "data")
    where = {"cache": tmp_path / "cache" if cache else False}
    odd = tmp_path / "data" / "test" / "cat" / "wide.png"
    Image.fromarray(random_images(1, 6, 9)[0]).save(odd)
    with pytest.raises(DatasetError, match=r"1 of 19 images have another size .*wide.png: 6×9, not "
                       r"6×5 \(--image-size"):  # fmt: skip
        datasets.load(f"folder:{tmp_path / 'data'}", skip_bad_files=True, **where)
    for told in ({"image_size": (6, 5)}, {"recipe": {"resize": 6}}):
        data = datasets.load(f"folder:{tmp_path / 'data'}", **told, **where)
        assert data.test.x.shape == (7, 1, 6, 5)
    with pytest.raises(DatasetError, match="another size than the first"):
        datasets.load(f"folder:{tmp_path / 'data'}", **where)
    odd.unlink()
    assert len(datasets.load(f"folder:{tmp_path / 'data'}", **where).test) == 6


def test_sizes_are_those_of_the_upright_images(tmp_path):
    write_tree(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(random_images(1, 5, 6)[0]).save(
        tmp_path / "train" / "bird" / "000.jpg", exif=exif
    )
    assert datasets.load(f"folder:{tmp_path}").train.x.shape[2:] == (6, 5)
    with pytest.raises(DatasetError, match="18 of 19 images have another size"):
        datasets.load(f"folder:{tmp_path}", recipe={"exif": False})


def test_other_and_hidden_files_are_left_out_and_counted(tmp_path):
    write_tree(tmp_path)
    (tmp_path / "train" / "bird" / "notes.txt").write_text("two of them are gulls")
    (tmp_path / "train" / "bird" / ".DS_Store").write_bytes(b"\0")
    (tmp_path / "train" / ".cache").mkdir()
    data = datasets.load(f"folder:{tmp_path}")
    assert len(data.train) == 12
    assert data.notes[1].endswith("suffix: 1")


def test_folders_below_a_class_belong_to_it(tmp_path):
    """Files of one name in several folders are several images, in a fixed order."""
    greys = {}
    for grey, place in enumerate(
        ("a/1.png", "a/x/1.png", "a/x/2.png", "a/x/y/1.png", "a/z/1.png", "b/1.png", "b/x/1.png")
    ):
        path = tmp_path / "data" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 30 * grey).save(path)
        greys[str(path)] = 30 * grey
    (tmp_path / "data" / "a" / "x" / "notes.txt").write_text("one of them is a gull")
    (tmp_path / "data" / "a" / ".hidden").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "data" / "a" / ".hidden" / "1.png")
    (tmp_path / "data" / "b" / "round").symlink_to(tmp_path / "data" / "b")
    for cache in (False, tmp_path / "cache", tmp_path / "cache"):
        data = datasets.load(f"folder:{tmp_path / 'data'}", cache=cache)
        assert list(data.train.origin) == sorted(greys)
        assert [int(x[0, 0, 0]) for x in data.train.x] == [greys[p] for p in sorted(greys)]
        assert data.train.y.tolist() == [0] * 5 + [1] * 2
        assert data.notes[-1].endswith("suffix: 1")


@pytest.mark.parametrize("size", [None, (30, 49)])
def test_a_crop_that_may_not_fit_names_the_cure(tmp_path, size):
    write_tree(tmp_path, shape=(30, 49))
    Image.new("L", (60, 60)).save(tmp_path / "train" / "cat" / "square.png")
    told = {"recipe": {"resize": 32}}
    which = "the first one's size, as no image size is given" if size is None else "the image size"
    with pytest.raises(
        DatasetError,
        match=rf"resized to 32 \(--resize-shorter\) can't be cropped to 30×49 pixels, {which}: "
        "choose --image-size 32 or smaller, or resize to 49 or more",
    ):
        datasets.load(f"folder:{tmp_path}", image_size=size, **told)
    assert datasets.load(f"folder:{tmp_path}", image_size=(32, 32), **told).input_shape[1:] == (
        32,
        32,
    )
    with pytest.raises(DatasetError, match=r"another size.*--image-size"):
        datasets.load(f"folder:{tmp_path}")


def test_a_class_of_one_image_is_named(tmp_path):
    write_tree(tmp_path, parts=(".",))
    for path in sorted((tmp_path / "cat").iterdir())[1:]:
        path.unlink()
    with pytest.raises(DatasetError, match="class cat has 1 image: validation needs at least 2"):
        datasets.load(f"folder:{tmp_path}", validation=0.2)


def test_unreadable_files_are_listed_and_stop_everything(tmp_path):
    write_tree(tmp_path)
    (tmp_path / "train" / "bird" / "000.png").write_bytes(b"")
    good = (tmp_path / "test" / "cat" / "001.png").read_bytes()
    (tmp_path / "test" / "cat" / "001.png").write_bytes(good[:-30])
    with pytest.raises(DatasetError, match="2 of 18 images can't be read") as caught:
        datasets.load(f"folder:{tmp_path}")
    assert "bird/000.png" in str(caught.value)
    assert "cat/001.png" in str(caught.value)


def test_a_long_list_of_unreadable_files_is_cut(tmp_path):
    for name in CLASSES:
        (tmp_path / name).mkdir()
        for i in range(5):
            (tmp_path / name / f"{i}.png").write_bytes(b"no")
    with pytest.raises(DatasetError, match="nor can any other"):
        datasets.load(f"folder:{tmp_path}")
    with pytest.raises(DatasetError, match=r"15 of 15 images can't be read.*and 5 more"):
        datasets.load(f"folder:{tmp_path}", image_size=(4, 4))


def test_faulty_trees(tmp_path):
    with pytest.raises(DatasetError, match="no such folder"):
        datasets.load(f"folder:{tmp_path / 'absent'}")
    with pytest.raises(DatasetError, match="two or more classes, it has 0: none"):
        datasets.load(f"folder:{tmp_path}")
    write_tree(tmp_path, parts=("train",))
    with pytest.raises(DatasetError, match=r"no folder test beside it; folder:.*/train takes"):
        datasets.load(f"folder:{tmp_path}")
    assert len(datasets.load(f"folder:{tmp_path / 'train'}", validation=0.5).validation) == 6
    write_tree(tmp_path / "test", parts=(".",))
    (tmp_path / "test" / "cat").rename(tmp_path / "test" / "dog")
    with pytest.raises(DatasetError, match="only one of them has cat, dog"):
        datasets.load(f"folder:{tmp_path}")
    (tmp_path / "test" / "dog").rename(tmp_path / "test" / "cat")
    for file in (tmp_path / "test" / "cat").iterdir():
        file.unlink()
    with pytest.raises(DatasetError, match="cat: there are no images of this class"):
        datasets.load(f"folder:{tmp_path}")


def test_images_that_do_not_fit_in_memory_are_refused_at_once(tmp_path, monkeypatch):
    write_tree(tmp_path)
    monkeypatch.setattr(folder_module, "MEMORY_SHARE", 1e-9)
    with pytest.raises(DatasetError, match="choose a smaller image size"):
        datasets.load(f"folder:{tmp_path}")


def test_a_recipe_is_kept_for_the_model(tmp_path) -> None:
    rng = np.random.default_rng(0)
    pictures = {}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(2):
            picture = Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8))
            picture.save(tmp_path / name / f"{i}.png")
            pictures[name, i] = picture
    recipe = {"resize": 10, "interpolation": "bicubic", "exif": False}
    data = datasets.load(f"folder:{tmp_path}", image_size=(8, 8), recipe=recipe)
    told = data.preprocessing
    assert (told.resize, told.interpolation, told.exif) == (10, "bicubic", False)
    # 10 · 30 / 20 = 15, of which 8 are cropped from 3.5, rounded to the even 4
    resized = pictures["a", 0].resize((15, 10), Image.Resampling.BICUBIC).crop((4, 1, 12, 9))
    np.testing.assert_array_equal(data.train.x[0], np.asarray(resized).transpose(2, 0, 1))
    with pytest.raises(DatasetError, match="can only be set for folder"):
        datasets.load(recipe=recipe)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("pictures", ["L", "RGB"])
def test_images_are_brought_to_the_colour_that_is_asked_for(tmp_path, pictures, cached):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(3):
            picture = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).convert(pictures)
            picture.save(tmp_path / "data" / name / f"{i}.png")
    spec, cache = f"folder:{tmp_path / 'data'}", tmp_path / "cache" if cached else False
    first = Image.open(tmp_path / "data" / "a" / "0.png")
    rgb = np.asarray(first.convert("RGB")).transpose(2, 0, 1)
    expected = {"rgb": rgb, "bgr": rgb[::-1], "grey": np.asarray(first.convert("L"))[None]}
    for colour, pixels in expected.items():
        data = datasets.load(spec, colour=colour, cache=cache, validation=0.4)
        assert data.preprocessing.colour == colour
        assert len(data.preprocessing.mean) == data.input_shape[0] == len(pixels)
        assert len(data.train) == 4 and len(data.validation) == 2
        whole = datasets.load(spec, colour=colour, cache=cache)
        np.testing.assert_array_equal(whole.train.x[0], pixels)
    assert datasets.load(spec).preprocessing.colour == {"L": "grey", "RGB": "rgb"}[pictures]
    with pytest.raises(DatasetError, match="colour must be one of grey, rgb, bgr, not 'blue'"):
        datasets.load(spec, colour="blue")


def test_arrays_in_another_order_of_channels(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (6, 3, 2, 2), np.uint8)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(6) % 2)
    rgb, bgr = (datasets.load(f"npz:{tmp_path / 'd.npz'}", colour=c) for c in ("rgb", "bgr"))
    np.testing.assert_array_equal(bgr.train.x, x[:, ::-1])
    assert bgr.preprocessing.mean == rgb.preprocessing.mean[::-1]
