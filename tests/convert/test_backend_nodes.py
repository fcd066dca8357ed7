"""ONNX's own tests of single operators: each is answered right, or refused; never answered wrong.

The first input is the image, the others are bound as weights. A tensor with fewer than 4 axes is
fed as an image that is reshaped first. The table of what was converted and refused is printed.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from typing import Any

import pytest

pytest.importorskip("onnx", reason="pip install convserve[onnx]")

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests

from convserve.convert.importer import convert_model
from convserve.convert.walk import _NODES
from convserve.engine.model import Model
from convserve.errors import ConversionError, UnsupportedOperatorError

# Of these, every case is out of reach: constants that differ from image to image or from pixel to
# pixel, axes of the batch, types. The tests of their mappings are in test_convert_*.py.
NONE_CONVERTED = {
    "Add", "Cast", "Concat", "Div", "Erf", "Max", "Min", "Mul", "PRelu", "Reciprocal", "ReduceMax",
    "ReduceMean", "Softplus", "Sqrt", "Squeeze", "Sub", "Unsqueeze",
}  # fmt: skip
OPERATORS = sorted({*_NODES, "ConvTranspose", "InstanceNormalization", "Mish", "Resize"})


@cache
def cases() -> dict[str, list[TestCase]]:
    """The operator to its cases; what is written out as several nodes belongs to it too."""
    found: dict[str, list[TestCase]] = {}
    operator_of: dict[str, str] = {}
    for case in sorted(load_model_tests(kind="node"), key=lambda case: len(case.model.graph.node)):
        nodes = case.model.graph.node
        operator = operator_of.get(re.sub(r"_expanded.*", "", case.name), "several nodes")
        if len(nodes) == 1:
            operator = operator_of[case.name] = nodes[0].op_type
        found.setdefault(operator, []).append(case)
    return found


def bound(case: TestCase, inputs: list[Any], outputs: list[Any]) -> tuple[ModelProto, Any]:
    """The case with only its first input left, and what to feed it."""
    model = ModelProto()
    model.CopyFrom(case.model)
    graph = model.graph
    names = [value.name for value in graph.input]
    if not all(isinstance(value, np.ndarray) for value in [*inputs, *outputs]):
        raise UnsupportedOperatorError("a value that is no tensor")
    for name, value in zip(names[1:], inputs[1:], strict=True):
        graph.initializer.append(numpy_helper.from_array(value, name))
    first = graph.input[0]
    del graph.input[1:]
    del graph.output[len(outputs) :]
    if len(graph.node) == 1:
        del graph.node[0].output[len(outputs) :]
    x = inputs[0]
    if x.ndim in (1, 2, 3) and x.dtype == np.float32:
        image = x.reshape(*x.shape, *[1] * (4 - x.ndim))
        graph.initializer.append(numpy_helper.from_array(np.array(x.shape), "given_shape"))
        node = helper.make_node("Reshape", ["image", "given_shape"], [first.name], name="given")
        kept = list(graph.node)
        del graph.node[:]
        graph.node.extend([node, *kept])
        first.CopyFrom(helper.make_tensor_value_info("image", TensorProto.FLOAT, image.shape))
        x = image
    for output, expected in zip(graph.output, outputs, strict=True):
        if np.ndim(expected) in (1, 3):  # an output has 2 or 4
            shape = np.array([*expected.shape, 1])
            graph.initializer.append(numpy_helper.from_array(shape, f"{output.name} shape"))
            inputs_of = [output.name, f"{output.name} shape"]
            graph.node.append(helper.make_node("Reshape", inputs_of, [f"{output.name} out"]))
            output.name += " out"
            output.ClearField("type")
    return model, x


def outcome(case: TestCase) -> str:
    """ "converted", or why it was refused; an AssertionError for a wrong answer."""
    inputs, outputs = ([_array(value) for value in values] for values in case.data_sets[0])
    if not inputs:
        return "it has no input"
    found = "refused"
    for count in {len(outputs): None, 1: None}:  # the first output alone, if not all can be had
        if found != "converted":
            found = _outcome(case, inputs, outputs[:count])
    return found


def _array(value: Any) -> Any:
    return np.asarray(value) if isinstance(value, np.generic) else value


def _outcome(case: TestCase, inputs: list[Any], outputs: list[Any]) -> str:
    try:
        model, x = bound(case, inputs, outputs)
        converted = convert_model(model)
    except (ConversionError, UnsupportedOperatorError) as error:
        return str(error)
    names = list(converted.graph.outputs)
    actual = Model.from_file(converted).predict(x, outputs=names)
    for name, expected in zip(names, outputs, strict=True):
        if name.endswith(" out"):
            actual[name] = actual[name].reshape(actual[name].shape[:-1])
        assert actual[name].shape == expected.shape, case.name
        np.testing.assert_allclose(
            actual[name], expected, rtol=case.rtol, atol=2e-6, err_msg=f"{case.name} {name}"
        )
    return "converted"


@cache
def outcomes(operator: str) -> dict[str, str]:
    return {case.name: outcome(case) for case in cases().get(operator, [])}


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.filterwarnings("ignore")
def test_every_case_is_right_or_refused(operator: str) -> None:
    found = outcomes(operator)
    assert found, "ONNX has no test of it"
    converted = sum(result == "converted" for result in found.values())
    if operator in _NODES and operator not in NONE_CONVERTED:
        assert converted, found


@pytest.mark.filterwarnings("ignore")
def test_the_rest_is_refused_or_right() -> None:
    """Operators that we fold or do not have: not one wrong answer among them either."""
    total = Counter(
        "converted" if outcome(case) == "converted" else "refused"
        for operator in cases()
        if operator not in OPERATORS and not operator.startswith(("Sequence", "Optional", "String"))
        for case in cases()[operator]
    )
    print("\nother operators", dict(total))
    assert total["refused"] > 100


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["", "| operator | converted | refused |", "|---|---|---|"]
    totals = Counter[str]()
    for operator in OPERATORS:
        found = outcomes(operator)
        converted = sum(result == "converted" for result in found.values())
        totals.update(converted=converted, refused=len(found) - converted)
        lines.append(f"| {operator} | {converted} | {len(found) - converted} |")
    lines.append(f"| all | {totals['converted']} | {totals['refused']} |")
    with capsys.disabled():
        if totals:
            print("\n".join(lines))
    assert totals["converted"] > 100
