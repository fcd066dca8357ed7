"""MNN: converted by its own converter, a fixed batch shape, float32.

The converter's command wants to send statistics: the module behind it is called instead.
"""

from __future__ import annotations

from pathlib import Path

import _tools
import MNN
import numpy as np
from MNN import expr, nn

from benchmarks.contestants import Array, Job, Runner, Setting


def version() -> str:
    return str(MNN.version())


def settings(job: Job) -> list[Setting]:
    return [
        Setting(f"Session, precision high, numThread={job.threads}", lambda: _session(job)),
        Setting(f"Module, precision high, numThread={job.threads}", lambda: _module(job)),
    ]


def _convert(job: Job) -> Path:
    path = job.folder / f"{job.model.stem}.mnn"
    if not path.exists():
        files = ["--modelFile", str(job.model), "--MNNModel", str(path)]
        if not _tools.mnnconvert(["mnnconvert", "-f", "ONNX", *files, "--bizCode", "MNN"]):
            raise RuntimeError(f"MNN can't convert {job.model.name}")
    return path


def _session(job: Job) -> Runner:
    interpreter = MNN.Interpreter(str(_convert(job)))
    config = {"backend": "CPU", "numThread": job.threads, "precision": "high"}
    session = interpreter.createSession(config)
    shape = (job.batch, *job.input_shape)
    target = interpreter.getSessionInput(session, "input")
    interpreter.resizeTensor(target, shape)
    interpreter.resizeSession(session)
    source = interpreter.getSessionOutput(session, "output")
    out_shape = source.getShape()
    layout = MNN.Tensor_DimensionType_Caffe

    def run(x: Array) -> Array:
        target.copyFrom(MNN.Tensor(shape, MNN.Halide_Type_Float, x, layout))
        interpreter.runSession(session)
        output = np.empty(out_shape, np.float32)
        host = MNN.Tensor(out_shape, MNN.Halide_Type_Float, output, layout)
        source.copyToHostTensor(host)
        result: Array = host.getNumpyData().reshape(out_shape).copy()
        return result

    return run


def _module(job: Job) -> Runner:
    config = {"backend": "CPU", "numThread": job.threads, "precision": "high"}
    manager = nn.create_runtime_manager((config,))
    module = nn.load_module_from_file(
        str(_convert(job)), ["input"], ["output"],
        runtime_manager=manager, shape_mutable=False, rearrange=True,
    )  # fmt: skip
    source = expr.placeholder([job.batch, *job.input_shape], expr.NCHW)

    def run(x: Array) -> Array:
        source.write(x)
        output: Array = module.forward([source])[0].read().copy()
        return output

    return run
