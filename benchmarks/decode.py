"""Files a second that `convserve.images.to_pixels` decodes, in one thread and in several.

python benchmarks/decode.py [THREADS]
"""

import io
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from convserve.images import to_pixels
from convserve.preprocessing import Preprocessing

SECONDS = 1.0
GREY = Preprocessing(28, 28, "grey", (0.13,), (0.31,))
SMALL = Preprocessing(32, 32, "rgb", (0.5,) * 3, (0.25,) * 3)
LARGE = Preprocessing(224, 224, "rgb", (0.5,) * 3, (0.25,) * 3)
CASES = [
    ("PNG", (28, 28), GREY),
    ("JPEG", (32, 32, 3), SMALL),
    ("JPEG", (375, 500, 3), LARGE),
    ("JPEG", (3000, 4000, 3), LARGE),
]


def encoded(form: str, shape: tuple[int, ...]) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, *shape[2:]), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(shape[1::-1]).save(file, form)
    return file.getvalue()


def rate(data: bytes, preprocessing: Preprocessing, threads: int) -> float:
    end = time.perf_counter() + SECONDS

    def decode(_: int) -> int:
        count = 0
        while time.perf_counter() < end:
            to_pixels(data, preprocessing)
            count += 1
        return count

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(decode, range(threads))) / SECONDS


threads = int(sys.argv[1]) if len(sys.argv) > 1 else 2
print(f"{'file':<22}{'to':<12}{'1 thread':>10}{f'{threads} threads':>12}  files/s")
for form, shape, preprocessing in CASES:
    data = encoded(form, shape)
    size = f"{preprocessing.height}x{preprocessing.width} {preprocessing.colour}"
    one, many = rate(data, preprocessing, 1), rate(data, preprocessing, threads)
    name = f"{form} {'x'.join(map(str, shape[:2]))}"
    print(f"{name:<22}{size:<12}{one:10,.0f}{many:12,.0f}")
