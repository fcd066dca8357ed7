"""config.toml: every knob is read, everything else is refused by its full path."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convserve.engine import config_file
from convserve.engine.config import (
    AllVersions,
    DynamicBatching,
    InstanceGroup,
    ModelConfig,
    ModelWarmup,
    QueuePolicy,
    VersionPolicy,
    WarmupInput,
)
from convserve.errors import ConfigError

DOCS = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"

FULL = b"""
max_batch_size = 32
layer_outputs = true
[dynamic_batching]
preferred_batch_size = [8, 16]
max_queue_delay_microseconds = 500
priority_levels = 2
default_priority_level = 2
[dynamic_batching.default_queue_policy]
max_queue_size = 256
default_timeout_microseconds = 1000
allow_timeout_override = true
[dynamic_batching.priority_queue_policy.1]
timeout_action = "DELAY"
[instance_group]
count = 2
threads = 1
[version_policy.all]
[[model_warmup]]
name = "one"
batch_size = 4
count = 3
[model_warmup.inputs.input]
data_type = "TYPE_UINT8"
random_data = true
"""


def parse(text):
    return config_file.build(config_file.parse(text, "config.toml"))


def test_every_knob():
    default = QueuePolicy(
        max_queue_size=256, default_timeout_microseconds=1000, allow_timeout_override=True
    )
    first = QueuePolicy("DELAY", 1000, True, 256)  # the rest is taken from the default policy
    warmup = WarmupInput(data_type="TYPE_UINT8", random_data=True)
    assert parse(FULL) == ModelConfig(
        max_batch_size=32,
        layer_outputs=True,
        dynamic_batching=DynamicBatching((8, 16), 500, 2, 2, default, {1: first}),
        instance_group=InstanceGroup(2, 1),
        version_policy=VersionPolicy(all=AllVersions()),
        model_warmup=(ModelWarmup("one", 4, 3, {"input": warmup}),),
    )


def test_an_empty_file_is_all_defaults():
    assert parse(b"") == ModelConfig()
    assert ModelConfig().dynamic_batching.default_queue_policy.max_queue_size == 1024


def test_a_file_goes_over_defaults_key_by_key():
    defaults = {"max_batch_size": 8, "dynamic_batching": {"priority_levels": 3}}
    tables = {"dynamic_batching": {"default_priority_level": 3}}
    config = config_file.build(tables, defaults)
    assert (config.max_batch_size, config.dynamic_batching.priority_levels) == (8, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batchsize = 8", "unknown key max_batchsize: did you mean max_batch_size?"),
        ("batching = 8", "unknown key batching: did you mean dynamic_batching?"),
        ("zzz = 8", "unknown key zzz; known are max_batch_size, "),
        ("dynamic_batching = 3", "dynamic_batching must be a table, got 3"),
        ("max_batch_size = true", "max_batch_size must be an integer, got True"),
        ("max_batch_size = 1.5", "max_batch_size must be an integer, got 1.5"),
        ("max_batch_size = 0", "max_batch_size must be 1 to 65536, got 0"),
        ("layer_outputs = 1", "layer_outputs must be true or false, got 1"),
        ("[dynamic_batching]\npriority = 1", "dynamic_batching.priority: did you mean priority"),
        ("[dynamic_batching]\npreferred_batch_size = 8", "preferred_batch_size must be a list"),
        ("[dynamic_batching]\npreferred_batch_size = [0]", "preferred_batch_size must be 1 to"),
        ("[dynamic_batching]\npreferred_batch_size = [65]", "is more than max_batch_size 64"),
        ("[dynamic_batching]\npriority_levels = 2", "default_priority_level must be 1 to 2, got 0"),
        ("[dynamic_batching]\ndefault_priority_level = 1", "must be 0 without priority_levels"),
        ("[dynamic_batching.default_queue_policy]\nmax_queue_size = 0", "must be 1 to 100000"),
        (
            '[dynamic_batching.default_queue_policy]\ntimeout_action = "DROP"',
            "dynamic_batching.default_queue_policy.timeout_action must be one of",
        ),
        ("[dynamic_batching.priority_queue_policy.1]", "has the level 1, priority_levels is 0"),
        ("[dynamic_batching.priority_queue_policy.x]", "must be a whole number, got 'x'"),
        (
            "[version_policy.all]\n[version_policy.latest]",
            "version_policy: only one of ['latest', 'all']",
        ),
        ("[version_policy.specific]", "version_policy.specific.versions must name at least one"),
        ("[[model_warmup]]\nbatch_size = 65", "model_warmup.batch_size 65 is more than"),
        ("[[model_warmup]]\n[model_warmup.inputs.x]", "inputs.x: give exactly one of zero_data"),
        ("max_batch_size = ", "config.toml: "),
        ("a" + ".a" * 5000 + " = 1", "config.toml: |unknown key"),
        ("\xff", "unknown key|config.toml: "),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(ConfigError) as caught:
        parse(text.encode("latin-1"))
    assert any(part in str(caught.value) for part in message.split("|"))
    assert len(str(caught.value)) < 500


@given(st.binary(max_size=80) | st.text(max_size=80).map(str.encode))
def test_no_bytes_make_another_error(data):
    try:
        parse(data)
    except ConfigError:
        pass
    else:
        assert not data.strip() or b"#" in data or b"[" in data or b"=" in data


def test_files(tmp_path):
    assert config_file.read(tmp_path / "config.toml") == {}
    with pytest.raises(ConfigError, match="directory"):
        config_file.read(tmp_path)
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * (config_file.MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="over the limit"):
        config_file.read(large)


def test_version_policies():
    def chosen(text):
        return parse(text).version_policy.choose([3, 1, 10])

    assert chosen(b"") == [10]
    assert chosen(b"[version_policy.latest]\nnum_versions = 2") == [3, 10]
    assert chosen(b"[version_policy.latest]\nnum_versions = 9") == [1, 3, 10]
    assert chosen(b"[version_policy.all]") == [1, 3, 10]
    assert chosen(b"[version_policy.specific]\nversions = [3, 1]") == [1, 3]
    with pytest.raises(ConfigError, match="version 2, which is missing"):
        chosen(b"[version_policy.specific]\nversions = [2]")


def test_the_documentation_is_the_code():
    """Write it anew with `python -m convserve.engine.config_file`."""
    assert config_file.reference() in DOCS.read_text(encoding="utf-8")


def test_the_documentations_example_is_valid():
    example = DOCS.read_text(encoding="utf-8").split("```toml\n")[1].split("```")[0]
    assert parse(example.encode()).max_batch_size == 32
