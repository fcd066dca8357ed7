"""What a convolution layer computes, written out, and that the compiled kernel gives the same.

python examples/conv_by_hand.py
"""

import numpy as np

from convserve import kernels
from convserve.errors import ShapeError


def convolve(x, weight, bias, stride, padding):
    """x [N, C, H, W], weight [O, C, FH, FW], bias [O] -> [N, O, OH, OW]."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    n, _, h, w = x.shape
    o, _, fh, fw = weight.shape
    oh, ow = (h - fh) // stride + 1, (w - fw) // stride + 1
    y = np.empty((n, o, oh, ow), np.float32)
    for i in range(oh):
        for j in range(ow):
            window = x[:, None, :, i * stride : i * stride + fh, j * stride : j * stride + fw]
            y[:, :, i, j] = (window * weight).sum(axis=(2, 3, 4)) + bias  # over C, FH and FW
    return y


rng = np.random.default_rng(0)
x = rng.standard_normal((2, 3, 7, 7), dtype=np.float32)  # 2 images, 3 channels, 7x7
weight = rng.standard_normal((4, 3, 3, 3), dtype=np.float32)  # 4 filters of 3 channels, 3x3
bias = rng.standard_normal(4, dtype=np.float32)

for stride, padding in [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)]:
    formula = f"(7 + 2*{padding} - 3) / {stride} + 1"
    try:
        fast = kernels.conv2d(x, weight, bias, stride=stride, padding=padding)
    except ShapeError as error:
        print(f"{formula} does not divide: {error}")
        continue
    slow = convolve(x, weight, bias, stride, padding)
    print(f"{formula} = {fast.shape[2]}, largest difference {np.abs(fast - slow).max():.1e}")
    assert np.allclose(fast, slow, atol=1e-4)

image = np.zeros((1, 1, 5, 5), np.float32)
image[0, 0, :, 2] = 1  # a vertical line
edge = np.array([[[[1, 0, -1]] * 3]], np.float32)  # answers to what is brighter on its left
print("a vertical line:", *image[0, 0].astype(int).tolist(), sep="\n  ")
found = kernels.conv2d(image, edge)
print("its edges:", *found[0, 0].astype(int).tolist(), sep="\n  ")
print("max pooling, 2x2, step 1:", *kernels.max_pool2d(found, 2, 1)[0, 0].tolist(), sep="\n  ")
