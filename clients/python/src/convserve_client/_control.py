"""Requests that change a server: a model loaded in another way than it lies there, its log."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from convserve_client import protocol
from convserve_client._checks import check_name
from convserve_client._requests import is_encoded, read_image
from convserve_client.errors import InvalidRequestError

Content = bytes | str | os.PathLike[str]
Files = Mapping[str, Content | Any]  # path in the model's folder -> content, or where it is
Setting = bool | int | str


def load_request(model: str, config: Mapping[str, Any] | None, files: Files | None) -> Any:
    """A RepositoryModelLoadRequest."""
    check_name("model", model, "mnist")
    request = protocol.RepositoryModelLoadRequest(model_name=model)
    if config is not None:
        if not isinstance(config, Mapping):
            kind = type(config).__name__
            raise TypeError(f"config must be a dict such as {{'max_batch_size': 8}}, got {kind}")
        request.parameters["config"].string_param = json.dumps(config)
    if files is not None:
        if not isinstance(files, Mapping):
            raise TypeError(f"files must be a dict of contents by path, got {type(files).__name__}")
        if files and config is None:
            raise InvalidRequestError("files need config=; {} is the server's default")
    for path, content in (files or {}).items():
        check_name("each path of files", path, "5/model.npz")
        if not is_encoded(content):
            kind = type(content).__name__
            raise TypeError(f"files[{path!r}] must be bytes, a path or a binary file, got {kind}")
        request.parameters[f"file:{path}"].bytes_param = read_image(content)
    return request


def log_request(changes: Mapping[str, Setting]) -> Any:
    """A LogSettingsRequest; without changes it only asks."""
    if not isinstance(changes, Mapping):
        raise TypeError(f"settings must be a dict of values by name, got {type(changes).__name__}")
    request = protocol.LogSettingsRequest()
    for name, value in changes.items():
        check_name("each name of settings", name, "log_info")
        setting = request.settings[name]
        if isinstance(value, bool):
            setting.bool_param = value
        elif isinstance(value, int):
            if not 0 <= value < 2**32:
                raise InvalidRequestError(f"setting {name!r} must be 0 to 4294967295, got {value}")
            setting.uint32_param = value
        elif isinstance(value, str):
            setting.string_param = value
        else:
            kind = type(value).__name__
            raise TypeError(f"setting {name!r} must be a bool, an int or a string, got {kind}")
    return request
