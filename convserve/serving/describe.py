"""What a model takes and gives: the answers of ModelMetadata and ModelConfig."""

from __future__ import annotations

import json
from typing import Any

from convserve.engine.model import Model
from convserve.engine.repository import ServedModel
from convserve_client import protocol

__all__ = ["PLATFORM", "config", "input_datatypes", "metadata"]

PLATFORM = "convserve"


def input_datatypes(model: Model) -> tuple[str, ...]:
    """The datatypes that the input may have: normalised values, raw pixels, encoded images."""
    return ("FP32",) if model.preprocessing is None else ("FP32", "UINT8", "BYTES")


def _output_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    graph = model.graph
    return {name: graph.shape(node) for name, node in graph.outputs.items()}


def metadata(served: ServedModel) -> Any:
    """The ModelMetadataResponse."""
    model = served.model
    tensor = protocol.ModelMetadataResponse.TensorMetadata
    return protocol.ModelMetadataResponse(
        name=served.name,
        versions=[served.version],
        platform=PLATFORM,
        inputs=[
            tensor(name=name, datatype="FP32", shape=[-1, *shape])
            for name, shape in model.inputs.items()
        ],
        outputs=[
            tensor(name=name, datatype="FP32", shape=[-1, *shape])
            for name, shape in _output_shapes(model).items()
        ],
    )


def config(served: ServedModel) -> Any:
    """The ModelConfigResponse.

    Parameters: `labels`, a JSON array; `preprocessing`, a JSON object, if the model has one;
    `input_datatypes`, a JSON array: FP32 is the normalised tensor [N, C, H, W], UINT8 its raw
    pixels, BYTES encoded images as [N] or [N, 1].
    """
    model, batching = served.model, served.scheduler.batching
    parameters: dict[str, Any] = {"input_datatypes": input_datatypes(model)}
    if model.labels is not None:
        parameters["labels"] = list(model.labels)
    if model.preprocessing is not None:
        parameters["preprocessing"] = model.preprocessing.to_dict()
    fp32 = protocol.DataType.Value("TYPE_FP32")
    answer = protocol.ModelConfig(
        name=served.name,
        platform=PLATFORM,
        backend=PLATFORM,
        max_batch_size=batching.max_batch_size,
        input=[
            protocol.ModelInput(
                name=name,
                data_type=fp32,
                format=(
                    protocol.ModelInput.FORMAT_NCHW
                    if len(shape) == 3
                    else protocol.ModelInput.FORMAT_NONE
                ),
                dims=shape,
            )
            for name, shape in model.inputs.items()
        ],
        output=[
            protocol.ModelOutput(name=name, data_type=fp32, dims=shape)
            for name, shape in _output_shapes(model).items()
        ],
        instance_group=[
            protocol.ModelInstanceGroup(
                name=served.name, count=1, kind=protocol.ModelInstanceGroup.KIND_CPU
            )
        ],
    )
    answer.version_policy.latest.num_versions = 1
    answer.dynamic_batching.max_queue_delay_microseconds = round(batching.max_queue_delay * 1e6)
    answer.dynamic_batching.default_queue_policy.max_queue_size = batching.max_queue_size
    for name, value in parameters.items():
        answer.parameters[name].string_value = json.dumps(value, ensure_ascii=False)
    return protocol.ModelConfigResponse(config=answer)
