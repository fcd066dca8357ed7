"""PyTorch: the same weights as modules, channels last, in inference mode.

Traced, frozen and optimised for inference (batch norm folded, oneDNN convolutions), or compiled by
Inductor with frozen weights.
"""

from __future__ import annotations

import warnings

import onnx
import torch
from onnx import numpy_helper
from torch import fx, nn

from benchmarks.contestants import Array, Job, Runner, Setting


def version() -> str:
    return str(torch.__version__)


def settings(job: Job) -> list[Setting]:
    return [
        Setting("jit optimize_for_inference, channels_last", lambda: _traced(job, True)),
        Setting("jit optimize_for_inference", lambda: _traced(job, False)),
        Setting("compile (freezing), channels_last", lambda: _compiled(job), slow=True),
    ]


def _prepare(job: Job, channels_last: bool) -> tuple[nn.Module, torch.Tensor]:
    torch.set_num_threads(job.threads)
    module = from_onnx(onnx.load(job.model)).eval()
    example = torch.zeros(job.batch, *job.input_shape)
    if channels_last:
        module = module.to(memory_format=torch.channels_last)
        example = example.contiguous(memory_format=torch.channels_last)
    return module, example


def _traced(job: Job, channels_last: bool) -> Runner:
    module, example = _prepare(job, channels_last)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.optimize_for_inference(torch.jit.trace(module, example))
    return _runner(traced, channels_last)


def _compiled(job: Job) -> Runner:
    import torch._inductor.config as inductor

    inductor.freezing = True
    module, example = _prepare(job, True)
    compiled = torch.compile(module, dynamic=False)
    with torch.inference_mode():
        compiled(example)
    return _runner(compiled, True)


def _runner(module: nn.Module, channels_last: bool) -> Runner:
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def run(x: Array) -> Array:
        with torch.inference_mode():
            output: Array = module(torch.from_numpy(x).contiguous(memory_format=layout)).numpy()
            return output

    return run


def from_onnx(model: onnx.ModelProto) -> fx.GraphModule:
    """The modules of an ONNX file that `benchmarks.models` wrote."""
    weights = {w.name: torch.from_numpy(numpy_helper.to_array(w).copy())
               for w in model.graph.initializer}  # fmt: skip
    root, graph = nn.Module(), fx.Graph()
    values = {"input": graph.placeholder("input")}
    for node in model.graph.node:
        inputs = [values[name] for name in node.input if name in values]
        given = [weights[name] for name in node.input if name in weights]
        if node.op_type == "Add":
            values[node.output[0]] = graph.call_function(torch.add, tuple(inputs))
            continue
        root.add_module(node.name, _module(node, given))
        values[node.output[0]] = graph.call_module(node.name, tuple(inputs))
    graph.output(values["output"])
    return fx.GraphModule(root, graph)


def _module(node: onnx.NodeProto, weights: list[torch.Tensor]) -> nn.Module:
    a = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    match node.op_type:
        case "Conv":
            filters, channels = weights[0].shape[:2]
            module = nn.Conv2d(
                channels * a["group"], filters, a["kernel_shape"], a["strides"], a["pads"][:2],
                groups=a["group"], bias=len(weights) > 1,
            )  # fmt: skip
        case "Gemm":
            module = nn.Linear(*reversed(weights[0].shape))
        case "BatchNormalization":
            module = nn.BatchNorm2d(len(weights[0]), eps=a["epsilon"])
            module.running_mean, module.running_var = weights[2], weights[3]
        case "MaxPool":
            return nn.MaxPool2d(a["kernel_shape"], a["strides"], a["pads"][:2])
        case "Softmax":
            return nn.Softmax(a["axis"])
        case "Relu" | "Clip" | "GlobalAveragePool" | "Flatten" as name:
            return {
                "Relu": nn.ReLU(),
                "Clip": nn.ReLU6(),
                "GlobalAveragePool": nn.AdaptiveAvgPool2d(1),
                "Flatten": nn.Flatten(),
            }[name]
        case other:
            raise ValueError(f"{node.name}: no module for {other}")
    module.weight = nn.Parameter(weights[0], requires_grad=False)
    if len(weights) > 1:
        module.bias = nn.Parameter(weights[1], requires_grad=False)
    return module
