"""What docs/configuration.md promises of ModelConfig's parameters, and of layers as outputs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from convserve.engine.repository import ModelRepository
from convserve.serving.server import Options, Server
from convserve_client import Client, errors

DOCS = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


@pytest.fixture
def address(repository, tmp_path):
    shutil.copytree(repository / "digits" / "10", tmp_path / "lenet" / "1")
    (tmp_path / "lenet" / "config.toml").write_text("layer_outputs = true")
    shutil.copytree(repository / "plain", tmp_path / "plain")
    server = Server(ModelRepository.open(tmp_path), Options(port=0, metrics_port=0))
    yield f"127.0.0.1:{server.port}"
    assert server.stop(20)


def test_parameters_of_a_model(address):
    table = DOCS.read_text("utf-8").split("## What a model says of itself")[1].split("###")[0]
    documented = set(re.findall(r"^\| `(\w+)` \|", table, re.M))
    with Client(address) as client:
        given = client.model_config("lenet").parameters
        assert set(given) == documented
        assert json.loads(given["input_datatypes"].string_value) == ["FP32", "UINT8", "BYTES"]
        assert len(json.loads(given["labels"].string_value)) == 10
        assert json.loads(given["preprocessing"].string_value)["height"] == 28
        assert given["layer_outputs"].string_value == "true"
        assert given["instance_threads"].string_value == "0"
        plain = client.model_config("plain").parameters
        assert set(plain) == {"input_datatypes", "layer_outputs", "instance_threads"}
        assert json.loads(plain["input_datatypes"].string_value) == ["FP32"]


def test_the_documented_request_for_layers(address, images, digits):
    x = images[:2]
    code = re.search(r"```python\n(with .*?conv1.*?)```", DOCS.read_text("utf-8"), re.S)[1]
    assert "(N, 6, 28, 28)" in code
    names = {"x": x}
    exec("import convserve_client\n" + code.replace("localhost:8001", address), names)
    maps = names["maps"]
    assert set(maps) == {"conv1", "logits"}
    assert maps["conv1"].shape == (2, 6, 28, 28)
    np.testing.assert_array_equal(maps["conv1"], digits.predict(x, outputs=["conv1"])["conv1"])
    rgb = np.zeros((1, 3, 8, 8), np.float32)
    with Client(address) as client:
        for model, batch, layer in (("lenet", x, "conv9"), ("plain", rgb, "relu1")):
            with pytest.raises(errors.InvalidRequestError, match=layer):
                client.predict(batch, model=model, outputs=[layer])
