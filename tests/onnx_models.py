"""Small ONNX models, and what ONNX's own reference makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from convserve.convert.importer import convert_model
from convserve.engine.model import Model
from convserve.model_file import ModelFile

Array = np.ndarray[Any, Any]
node = helper.make_node


def weights(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def model(
    nodes: Sequence[NodeProto],
    constants: Mapping[str, Any] | None = None,
    shape: Sequence[Any] = ("N", 4, 6, 8),
    *,
    opset: int = 17,
    outputs: Sequence[str] = ("y",),
    as_nodes: bool = False,
) -> ModelProto:
    """From the image "x" to the outputs; constants are weights, or Constant nodes."""
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()]
    before = [node("Constant", [], [t.name], value=t) for t in tensors] if as_nodes else []
    graph = helper.make_graph(
        [*before, *nodes],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [] if as_nodes else tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def check(
    proto: ModelProto,
    *,
    batches: Sequence[int] = (1, 3),
    channels_last: bool = False,
    expect: Callable[[Array], Array] | None = None,
) -> ModelFile:
    """Converts, and compares with the reference on random images; returns what it became.

    `expect` takes the place of ONNX's reference, which is not right everywhere.
    """
    converted = convert_model(proto)
    runner, engine = ReferenceEvaluator(proto), Model.from_file(converted)
    names = list(converted.graph.outputs)
    for batch in batches:
        x = weights(batch, *converted.graph.input_shape, seed=batch)
        fed = x.transpose(0, 2, 3, 1) if channels_last else x
        expected = runner.run(None, {"x": fed}) if expect is None else [expect(fed)]
        actual = engine.predict(x, outputs=names)
        for name, value in zip(names, expected, strict=True):
            assert actual[name].shape == value.shape
            np.testing.assert_allclose(actual[name], value, rtol=2e-4, atol=2e-5, err_msg=name)
    return converted


def ops(converted: ModelFile) -> list[str]:
    return [entry.op.op for entry in converted.graph.nodes]


def small() -> ModelProto:
    """A whole classifier of six nodes with names."""
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], pads=[1] * 4, name="conv"),
        node("BatchNormalization", ["c", "b", "b", "b", "v"], ["n"], name="norm"),
        node("Relu", ["n"], ["r"], name="act"),
        node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        node("Flatten", ["p"], ["f"], name="flat"),
        node("Gemm", ["f", "d"], ["y"], transB=1, name="dense"),
    ]
    constants = {
        "w": weights(6, 4, 3, 3), "b": weights(6), "v": np.ones(6, np.float32), "d": weights(5, 6),
    }  # fmt: skip
    return model(nodes, constants)
