"""ncnn: converted by pnnx, which fuses activations and folds batch norm; float32 throughout.

It has no batch dimension: images go one after the other through all threads, or, where it is
faster, each thread takes images of its own.
"""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ncnn
import numpy as np
import pnnx

from benchmarks.contestants import Array, Job, Runner, Setting


def version() -> str:
    return str(ncnn.__version__)


def settings(job: Job) -> list[Setting]:
    settings = [Setting(f"fp32, num_threads={job.threads}", lambda: _images_in_turn(job))]
    if job.threads > 1 and job.batch >= job.threads:
        name = f"fp32, {job.threads} threads with images of their own"
        settings.append(Setting(name, lambda: _images_at_once(job)))
    return settings


def _convert(job: Job) -> Path:
    """The stem of the .param and .bin files; pnnx writes beside the model, so it gets a copy."""
    folder = job.folder / f"ncnn-{job.model.stem}"
    stem = folder / job.model.stem
    if not stem.with_suffix(".ncnn.bin").exists():
        folder.mkdir(exist_ok=True)
        copy = Path(shutil.copy(job.model, folder))
        shape = ",".join(map(str, (1, *job.input_shape)))
        command = [pnnx.EXEC_PATH, str(copy), f"inputshape=[{shape}]", "fp16=0"]
        subprocess.run(command, check=True, cwd=folder, capture_output=True)
    return stem


def _net(job: Job, threads: int) -> ncnn.Net:
    stem = _convert(job)
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    for name in dir(net.opt):
        if name.startswith(("use_fp16", "use_bf16", "use_int8")):
            setattr(net.opt, name, False)
    if net.load_param(f"{stem}.ncnn.param") or net.load_model(f"{stem}.ncnn.bin"):
        raise RuntimeError(f"ncnn can't load {stem.name}")
    return net


def _image(net: ncnn.Net, x: Array) -> Array:
    extractor = net.create_extractor()
    extractor.input("in0", ncnn.Mat(x))
    return np.array(extractor.extract("out0")[1])


def _images_in_turn(job: Job) -> Runner:
    net = _net(job, job.threads)
    return lambda x: np.stack([_image(net, image) for image in x])


def _images_at_once(job: Job) -> Runner:
    net = _net(job, 1)
    pool = ThreadPoolExecutor(job.threads)

    def part(images: Array) -> list[Array]:
        return [_image(net, image) for image in images]

    def run(x: Array) -> Array:
        parts = pool.map(part, np.array_split(x, job.threads))
        return np.stack([output for outputs in parts for output in outputs])

    return run
