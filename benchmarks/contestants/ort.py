"""ONNX Runtime: one session, all graph optimisations, its own threads split each operator."""

from __future__ import annotations

import onnxruntime as ort

from benchmarks.contestants import Array, Job, Runner, Setting


def version() -> str:
    return str(ort.__version__)


def settings(job: Job) -> list[Setting]:
    return [Setting(f"ORT_ENABLE_ALL, intra_op={job.threads}", lambda: _session(job))]


def _session(job: Job) -> Runner:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = job.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(job.model), options, ["CPUExecutionProvider"])

    def run(x: Array) -> Array:
        output: Array = session.run(None, {"input": x})[0]
        return output

    return run
