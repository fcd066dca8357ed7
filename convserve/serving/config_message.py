"""A model's configuration as the protocol's ModelConfig message, and back.

Whatever ModelConfig answers can be given to RepositoryModelLoad as its `config`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format

from convserve.engine.config import DynamicBatching, ModelConfig, QueuePolicy, VersionPolicy
from convserve.engine.source import MODEL_FILENAME
from convserve.errors import InvalidRequestError
from convserve_client import protocol

__all__ = ["PLATFORM", "fill", "tables"]

PLATFORM = "convserve"
_LAYER_OUTPUTS, _THREADS = "layer_outputs", "instance_threads"
# A level's policy in JSON leaves out what is zero, which is not what the default policy says.
_ZEROS = {
    "timeout_action": "REJECT",
    "default_timeout_microseconds": 0,
    "allow_timeout_override": False,
}
# What Triton's message has and convserve nothing for, by the field that it is in.
_ABSENT = {
    "": ("cc_model_filenames", "metric_tags", "runtime"),
    "dynamic_batching.": ("preserve_ordering",),
    "instance_group.": ("gpus", "profile", "passive", "secondary_devices", "host_policy"),
}


def fill(message: Any, name: str, config: ModelConfig) -> None:
    """Put all that `config` says into a ModelConfig message."""
    message.max_batch_size = config.max_batch_size
    _fill_versions(message.version_policy, config.version_policy)
    _fill_batching(message.dynamic_batching, config.dynamic_batching)
    message.instance_group.add(
        name=name,
        count=config.instance_group.count,
        kind=protocol.ModelInstanceGroup.KIND_CPU,
    )
    for batch in config.model_warmup:
        added = message.model_warmup.add(
            name=batch.name, batch_size=batch.batch_size, count=batch.count
        )
        for input_name, given in batch.inputs.items():
            target = added.inputs[input_name]
            target.data_type = protocol.DataType.Value(given.data_type)
            for choice in ("zero_data", "random_data", "input_data_file"):
                if value := getattr(given, choice):
                    setattr(target, choice, value)
    message.parameters[_LAYER_OUTPUTS].string_value = json.dumps(config.layer_outputs)
    message.parameters[_THREADS].string_value = str(config.instance_group.threads)


def _fill_versions(message: Any, policy: VersionPolicy) -> None:
    if policy.specific is not None:
        message.specific.versions.extend(policy.specific.versions)
    elif policy.all is not None:
        message.all.SetInParent()
    else:
        message.latest.num_versions = 1 if policy.latest is None else policy.latest.num_versions


def _fill_batching(message: Any, batching: DynamicBatching) -> None:
    message.preferred_batch_size.extend(batching.preferred_batch_size)
    for knob in (
        "max_queue_delay_microseconds",
        "priority_levels",
        "default_priority_level",
    ):
        setattr(message, knob, getattr(batching, knob))
    _fill_policy(message.default_queue_policy, batching.default_queue_policy)
    for level, policy in batching.priority_queue_policy.items():
        _fill_policy(message.priority_queue_policy[level], policy)


def _fill_policy(message: Any, policy: QueuePolicy) -> None:
    message.timeout_action = protocol.ModelQueuePolicy.TimeoutAction.Value(policy.timeout_action)
    message.default_timeout_microseconds = policy.default_timeout_microseconds
    message.allow_timeout_override = policy.allow_timeout_override
    message.max_queue_size = policy.max_queue_size


def tables(text: str, name: str) -> dict[str, Any]:
    """A ModelConfig in JSON as the tables of a configuration.

    What the model itself decides (name, platform, backend, inputs, outputs, its parameters) may be
    there and is not looked at, but for a name of another model. Raises InvalidRequestError for what
    is no ModelConfig and for what convserve has no knob for.
    """
    if not text.lstrip().startswith("{"):  # protobuf would take an empty list for no fields
        raise InvalidRequestError(f"the config of model '{name}' is no ModelConfig in JSON")
    try:
        message = json_format.Parse(text, protocol.ModelConfig(), max_recursion_depth=20)
    except json_format.ParseError as error:
        raise InvalidRequestError(
            f"the config of model '{name}' is no ModelConfig in JSON: {str(error)[:300]}"
        ) from None
    if message.name not in ("", name):
        raise InvalidRequestError(f"the config is of model {message.name[:128]!r}, not of '{name}'")
    for field in ("platform", "backend"):
        if getattr(message, field) not in ("", PLATFORM):
            raise InvalidRequestError(f"the config's {field} must be '{PLATFORM}'")
    found = _given(message, json.loads(text))
    _check_absent("", found)
    if found.get("default_model_filename", MODEL_FILENAME) not in ("", MODEL_FILENAME):
        raise InvalidRequestError(f"the config's default_model_filename must be '{MODEL_FILENAME}'")
    same = ("max_batch_size", "version_policy", "model_warmup")
    result = {key: found[key] for key in same if key in found}
    for batch in result.get("model_warmup", ()):
        for given in batch.get("inputs", {}).values():
            given.pop("dims", None)  # always the model's own
    if "dynamic_batching" in found:
        result["dynamic_batching"] = _batching(found["dynamic_batching"])
    result["instance_group"] = _instances(found, name)
    if _LAYER_OUTPUTS in found.get("parameters", {}):
        value = found["parameters"][_LAYER_OUTPUTS].get("string_value")
        result["layer_outputs"] = {"true": True, "false": False}.get(value, value)
    numbers: dict[str, Any] = _whole_numbers(result)
    return numbers


def _given(message: Any, text: Mapping[str, Any]) -> dict[str, Any]:
    """A message as a dict of what its JSON, parsed as `text`, gives. Protobuf's own leaves out what
    is zero, as if it had not been given."""
    result: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        names = (field.name, field.json_name)
        given = next((text[name] for name in names if text.get(name) is not None), None)
        if given is None:
            continue
        value, kind = getattr(message, field.name), field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            value = _given_map(value, given, kind.fields_by_name)
        elif kind is not None and isinstance(given, list):
            value = [_given(*pair) for pair in zip(value, given, strict=True)]
        elif kind is not None:
            value = _given(value, given)
        elif isinstance(given, list):
            value = list(value)
        elif field.enum_type is not None:
            known = field.enum_type.values_by_number.get(value)
            value = value if known is None else known.name
        result[field.name] = value
    return result


def _given_map(values: Any, text: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    number = fields["key"].cpp_type != fields["key"].CPPTYPE_STRING
    given = {int(key) if number else key: each for key, each in text.items()}
    if fields["value"].message_type is None:
        return {str(key): value for key, value in values.items()}
    return {str(key): _given(value, given[key]) for key, value in values.items()}


def _check_absent(field: str, found: Mapping[str, Any]) -> None:
    for key in _ABSENT[field]:
        if found.get(key):
            raise InvalidRequestError(f"{field}{key} does not exist here")


def _batching(found: Mapping[str, Any]) -> dict[str, Any]:
    _check_absent("dynamic_batching.", found)
    result = {key: value for key, value in found.items() if key not in _ABSENT["dynamic_batching."]}
    levels = "priority_queue_policy"
    if levels in result:
        result[levels] = {name: {**_ZEROS, **policy} for name, policy in result[levels].items()}
    return result


def _instances(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    groups = found.get("instance_group") or [{}]
    if len(groups) != 1 or groups[0].get("kind", "KIND_CPU") not in ("KIND_AUTO", "KIND_CPU"):
        raise InvalidRequestError(f"model '{name}' can have one instance_group, of KIND_CPU")
    _check_absent("instance_group.", groups[0])
    result = {key: groups[0][key] for key in ("count",) if key in groups[0]}
    if _THREADS in found.get("parameters", {}):
        result["threads"] = found["parameters"][_THREADS].get("string_value")
    return result


def _whole_numbers(value: Any) -> Any:
    """JSON of protobuf writes 64-bit integers as text."""
    if isinstance(value, dict):
        return {
            key: item if key in ("name", "input_data_file") else _whole_numbers(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_whole_numbers(item) for item in value]
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return int(value)
    return value
