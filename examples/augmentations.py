"""What each augmentation does: one image in eight epochs, a row for each, drawn into a PNG.

    python examples/augmentations.py [--image photo.jpg] [augmentations.png]

Without an image it takes a digit of the embedded sample of MNIST.
"""

from __future__ import annotations

import argparse

import numpy as np
from PIL import Image, ImageDraw

from convserve import datasets
from convserve.images import to_pixels
from convserve.preprocessing import Preprocessing
from convserve.training.augment import AugmentConfig, batch

EPOCHS, SIDE, LABEL, GAP = 8, 84, 200, 4
ROWS = {
    "none": {},
    "shift 4": {"shift": 4},
    "shift 4, padding_mode reflect": {"shift": 4, "padding_mode": "reflect"},
    "flip random": {"flip": "random"},
    "flip alternating": {"flip": "alternating"},
    "crop_scale 0.3": {"crop_scale": 0.3},
    "rotation 20": {"rotation": 20},
    "zoom 0.3": {"zoom": 0.3},
    "brightness 0.5": {"brightness": 0.5},
    "contrast 0.8": {"contrast": 0.8},
    "cutout 8": {"cutout": 8},
    "mixup 1.0": {"mixup": 1.0},
    "several": {"shift": 3, "rotation": 10, "zoom": 0.1, "contrast": 0.3, "cutout": 6},
}


def images_of(path: str | None) -> tuple[np.ndarray, Preprocessing]:
    """Two images, uint8 [2, C, H, W]: the one to draw, and one to mix it with."""
    if path is None:
        data = datasets.load()
        three, seven = (int(np.flatnonzero(data.train.y == label)[0]) for label in (3, 7))
        return data.train.x[[three, seven]], data.preprocessing
    preprocessing = Preprocessing(64, 64, "rgb", (0.5,) * 3, (0.25,) * 3)
    image = to_pixels(path, preprocessing)
    return np.stack([image, np.ascontiguousarray(image[:, ::-1])]), preprocessing


def picture(x: np.ndarray, preprocessing: Preprocessing) -> Image.Image:
    """float32 [C, H, W], normalised, as an image of SIDE pixels."""
    mean, std = (np.array(v)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
    pixels = np.rint(255 * np.clip(x * std + mean, 0, 1)).astype(np.uint8).transpose(1, 2, 0)
    return Image.fromarray(pixels.squeeze()).resize((SIDE, SIDE), Image.Resampling.NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", default="augmentations.png")
    parser.add_argument("--image", help="an image file")
    options = parser.parse_args()
    x, preprocessing = images_of(options.image)
    y, first = np.array([0, 1]), np.array([0])
    step = SIDE + GAP
    sheet = Image.new("RGB", (LABEL + EPOCHS * step, len(ROWS) * step), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (name, settings) in enumerate(ROWS.items()):
        config = AugmentConfig(**{"shift": 0, "seed": 2, **settings})
        draw.text((GAP, row * step + SIDE // 2), name, "black")
        for epoch in range(1, EPOCHS + 1):
            made, _ = batch(x, y, first, epoch, config, preprocessing)
            sheet.paste(picture(made[0], preprocessing), (LABEL + (epoch - 1) * step, row * step))
    sheet.save(options.out, optimize=True)
    print(f"wrote {options.out}: {len(ROWS)} augmentations, {EPOCHS} epochs")


if __name__ == "__main__":
    main()
