"""What a model takes, gives and has done: ModelMetadata, ModelConfig, ModelStatistics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from convserve.engine.model import Model
from convserve.engine.repository import ServedModel
from convserve.engine.statistics import Counters
from convserve.serving import config_message
from convserve.serving.config_message import PLATFORM
from convserve_client import protocol

__all__ = ["PLATFORM", "config", "input_datatypes", "metadata", "statistics"]


def input_datatypes(model: Model) -> tuple[str, ...]:
    """The datatypes that the input may have: normalised values, raw pixels, encoded images."""
    return ("FP32",) if model.preprocessing is None else ("FP32", "UINT8", "BYTES")


def _output_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    graph = model.graph
    return {name: graph.shape(node) for name, node in graph.outputs.items()}


def metadata(served: ServedModel, versions: Sequence[str]) -> Any:
    """The ModelMetadataResponse; `versions` are those that are ready."""
    model = served.model
    tensor = protocol.ModelMetadataResponse.TensorMetadata
    return protocol.ModelMetadataResponse(
        name=served.name,
        versions=versions,
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
    pixels, BYTES encoded images as [N] or [N, 1]; `layer_outputs` and `instance_threads`, what
    config.toml says of them.
    """
    model = served.model
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
    )
    config_message.fill(answer, served.name, served.config)
    for name, value in parameters.items():
        answer.parameters[name].string_value = json.dumps(value, ensure_ascii=False)
    return protocol.ModelConfigResponse(config=answer)


def statistics(served: ServedModel, counters: Counters) -> Any:
    """The ModelStatistics of one version that has done what `counters` say."""
    duration = protocol.StatisticDuration
    answer = protocol.ModelStatistics(
        name=served.name,
        version=served.version,
        last_inference=counters.last_ms,
        inference_count=counters.inferences,
        execution_count=counters.executions,
    )
    stats = answer.inference_stats
    for field, count, ns in (
        (stats.success, counters.success, counters.request_ns),
        (stats.fail, sum(counters.failures.values()), counters.failed_ns),
        (stats.queue, counters.executed, counters.queue_ns),
        (stats.compute_input, counters.executed, counters.compute_input_ns),
        (stats.compute_infer, counters.executed, counters.compute_infer_ns),
        (stats.compute_output, counters.executed, counters.compute_output_ns),
    ):
        field.CopyFrom(duration(count=count, ns=ns))
    for size, batch in sorted(counters.batches.items()):
        answer.batch_stats.add(
            batch_size=size,
            compute_input=duration(count=batch.count, ns=batch.compute_input_ns),
            compute_infer=duration(count=batch.count, ns=batch.compute_infer_ns),
            compute_output=duration(count=batch.count, ns=batch.compute_output_ns),
        )
    return answer
