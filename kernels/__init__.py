"""Numeric kernels on float32 arrays: the operators of a CNN, each forward and backward.

Plain functions of NumPy arrays in NCHW order (batch, channels, height, width). They take any
float32 array, strided or read-only too, and return new C-contiguous ones. They know arrays and
strides and nothing of graphs; `convserve.plan` runs the same C kernels on operands packed once.

    conv2d  affine      max_pool2d  avg_pool2d     relu  softmax       the plan's
     │        │         global_avg_pool2d          batch_norm          executor
     ▼        ▼               ▼                       ▼                    │
    _conv  _affine          _pool                 _pointwise           _executor
     └────┬───┴───────────────┴───────────┬───────────┘                    │
          │ pack, tile                    │ typed memoryviews              │
          ▼                               ▼                                ▼
        _core: the table of C kernels, chosen once for this CPU, and the number of threads
          │
          ├── avx512     csrc/*.tmpl.h, one source compiled for each instruction set
          ├── avx2
          └── base       SSE2 or NEON

`_arguments` checks what callers pass and holds the one formula of the output size; the graph's
shape rules share it. Wrong types raise TypeError, wrong sizes `convserve.errors.ShapeError`.

An image's result has the same bits alone, in any batch, at any place in it and with any number of
threads, since work is split by outputs and never by a sum. Instruction sets differ in last bits.
The environment variable CONVSERVE_ISA (avx512, avx2 or base) overrides the choice at import, and
raises if this CPU or this build does not have it.
"""

from __future__ import annotations

import convserve.kernels._openmp  # noqa: F401  # before any compiled module
from convserve.kernels._affine import affine, affine_backward
from convserve.kernels._conv import conv2d, conv2d_backward
from convserve.kernels._core import (
    available_isas,
    isa,
    num_threads,
    peak_gflops,
    set_num_threads,
)
from convserve.kernels._pointwise import (
    batch_norm,
    batch_norm_backward,
    batch_norm_train,
    prelu,
    prelu_backward,
    relu,
    relu_backward,
    softmax,
    softmax_backward,
)
from convserve.kernels._pool import (
    avg_pool2d,
    avg_pool2d_backward,
    global_avg_pool2d,
    global_avg_pool2d_backward,
    max_pool2d,
    max_pool2d_backward,
)

__all__ = [
    "affine",
    "affine_backward",
    "available_isas",
    "avg_pool2d",
    "avg_pool2d_backward",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_train",
    "conv2d",
    "conv2d_backward",
    "global_avg_pool2d",
    "global_avg_pool2d_backward",
    "isa",
    "max_pool2d",
    "max_pool2d_backward",
    "num_threads",
    "peak_gflops",
    "prelu",
    "prelu_backward",
    "relu",
    "relu_backward",
    "set_num_threads",
    "softmax",
    "softmax_backward",
]
