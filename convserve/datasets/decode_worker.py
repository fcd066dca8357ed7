"""A process that decodes images into a memory-mapped file: `decode` starts and feeds it.

Standard input: a line of JSON that describes the file, then a line for each task, [row, paths].
Standard output: a line for each task, [{row: fault}, grey, odd]. It ends with its input.
"""

from __future__ import annotations

import json
import os
import sys

import numpy as np

from convserve.datasets.decode import decode_task
from convserve.preprocessing import Preprocessing


def main() -> None:
    told = json.loads(sys.stdin.readline())
    shape, offset = tuple(told["shape"]), told["offset"]
    pixels = np.memmap(told["file"], np.uint8, "r+", offset, shape)
    wanted = Preprocessing.from_dict(told["preprocessing"])
    for line in sys.stdin:
        start, paths = json.loads(line)
        outcome = decode_task((start, paths), wanted, pixels, told["one_size"])
        try:
            print(json.dumps(outcome), flush=True)
        except BrokenPipeError:
            os._exit(1)  # who asked was killed: there is nobody to tell, and a buffer that can't go


if __name__ == "__main__":
    main()
