"""OpenVINO: a fixed batch shape in float32; one request, or streams that share a batch.

The hint LATENCY gives all threads to one request, THROUGHPUT gives each thread a stream of its
own, which needs as many requests as streams: parts of the batch.
"""

from __future__ import annotations

import numpy as np
import openvino as ov

from benchmarks.contestants import Array, Job, Runner, Setting


def version() -> str:
    return str(ov.__version__).partition("-")[0]


def settings(job: Job) -> list[Setting]:
    settings = [Setting("LATENCY", lambda: _one_request(job))]
    if job.threads > 1 and job.batch >= job.threads:
        name = f"THROUGHPUT, {job.threads} streams"
        settings.append(Setting(name, lambda: _streams(job)))
    return settings


def _compile(job: Job, batch: int, hint: str, streams: int) -> ov.CompiledModel:
    core = ov.Core()
    model = core.read_model(job.model)
    model.reshape([batch, *job.input_shape])
    config = {
        "PERFORMANCE_HINT": hint,
        "INFERENCE_NUM_THREADS": job.threads,
        "NUM_STREAMS": streams,
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,  # the machine is shared
    }
    return core.compile_model(model, "CPU", config)


def _one_request(job: Job) -> Runner:
    request = _compile(job, job.batch, "LATENCY", 1).create_infer_request()

    def run(x: Array) -> Array:
        output: Array = request.infer(x, share_inputs=True, share_outputs=False)[0]
        return output

    return run


def _streams(job: Job) -> Runner:
    """Each stream gets an equal part; what doesn't divide makes the first parts larger by one."""
    sizes = [len(part) for part in np.array_split(np.arange(job.batch), job.threads)]
    compiled = {n: _compile(job, n, "THROUGHPUT", job.threads) for n in set(sizes)}
    requests = [compiled[n].create_infer_request() for n in sizes]
    starts = np.cumsum([0, *sizes])

    def run(x: Array) -> Array:
        for request, start, size in zip(requests, starts, sizes, strict=False):
            request.start_async(x[start : start + size], share_inputs=True)
        for request in requests:
            request.wait()
        return np.concatenate([request.get_output_tensor(0).data for request in requests])

    return run
